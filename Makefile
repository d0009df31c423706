# Two commands: `make demo` runs the main job, `make test` checks everything. Both set up .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: demo test demo-model clean

demo: $(READY)
	$(BIN)/gmskip demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

demo-model: $(READY)  ## train the embedded model again (an hour on two cores)
	$(BIN)/python tools/demo_model/train.py

$(READY): setup.py setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit( \
		"make: Python %d.%d does not do: use 3.10 to 3.12, for example make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[model,ros,test]'
	touch $@

clean:
	rm -rf .venv build install log out *.egg-info
