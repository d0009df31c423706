# Two commands: `make demo` runs the main job, `make test` checks everything. Both set up .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

# The wheels' ROS, and not one that this shell has sourced.
unexport PYTHONPATH AMENT_PREFIX_PATH LD_LIBRARY_PATH

.PHONY: demo test demo-model clean

demo: $(READY)
	$(BIN)/gmskip demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

# The embedded model, trained again (80 minutes on two cores), and its skip lists.
demo-model: $(READY)
	$(BIN)/python tools/demo_model/train.py
	$(BIN)/python tools/demo_model/find_skip_lists.py

# A virtual environment does not survive a move: in another folder it is made anew.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
$(READY): setup.py setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit( \
		"make: Python %d.%d does not do: use 3.10 to 3.12, for example make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[model,ros,test]'
	@echo '$(CURDIR)' > $@

clean:
	rm -rf .venv build install log out *.egg-info
