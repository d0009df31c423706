# `make demo` runs the main job, `make test` checks everything, `make check` what takes a minute.
# All of them set up .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

# Use the ROS of the wheels, not one that this shell has sourced.
unexport PYTHONPATH AMENT_PREFIX_PATH LD_LIBRARY_PATH

# One thread per process: the models are small, and threads that wait for each other spin.
# The package is compiled once, not by each of the processes that tests start.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# What `make check` runs: tests that start no process, without those that take longest.
QUICK := test/test_docs.py test/test_names.py test/benchmarks \
	test/tasks test/skipping test/datasets test/pipeline test/calibration test/report test/vlm
NOT_QUICK := test/benchmarks/test_rivals.py \
	test/calibration/test_evaluation.py test/calibration/test_search_demo_model.py \
	test/report/test_calibration_report.py test/report/test_pages_in_chromium.py \
	test/report/test_replay_report.py test/vlm/test_ask.py test/vlm/test_candidates.py \
	test/vlm/test_demo_model.py test/vlm/test_load.py

.PHONY: demo lint check test demo-model demo-skip-lists clean

demo: $(READY)
	$(BIN)/gmskip demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -n 2 $(QUICK) $(NOT_QUICK:%=--ignore=%)

# A third worker uses the cores while tests of nodes and processes wait.
test: lint
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder

# Train the embedded model again (80 minutes on two cores) and find its skip lists (most of an hour).
demo-model: $(READY)
	$(BIN)/python tools/demo_model/train.py
	$(MAKE) demo-skip-lists

CALIBRATE := $(BIN)/gmskip calibrate --dataset build/scenes --images 200 --test-images 200 \
	--min-score-ratio 0.95
demo-skip-lists: $(READY)
	$(BIN)/gmskip scenes --out build/scenes -n 700 --seed 20000000
	$(CALIBRATE) --task single_object --out build/single_object
	$(CALIBRATE) --task multi_object --out build/multi_object
	$(CALIBRATE) --task captioning --out build/captioning
	for task in single_object multi_object captioning; do \
		cp build/$$task/$$task.skip.yaml gmskip_ros/assets/skip_lists/demo_$$task.skip.yaml; done

# A virtual environment cannot be moved: it is made again if this folder was moved.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif
$(READY): setup.py setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit( \
		"make: Python %d.%d is not supported: use 3.10 to 3.12, for example make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[model,ros,test]'
	@echo '$(CURDIR)' > $@

clean:
	rm -rf .venv build install log out *.egg-info
