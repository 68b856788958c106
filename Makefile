# All targets use .venv. A target installs its dependencies and reuses completed steps.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_VENV := .venv-gpu
DEMO_FLAGS ?=
BENCH ?= /tmp/segue-bench

# The tests to run; CI uses MARKS="not nightly". Two cores run three processes, because tests also wait for services; with more, the services answer late. A file stays in one process, so that its tests share fixtures.
# Tests marked `alone`, which are slow ones in tests/live, run first and one after another. Each browser keeps a core busy, so only two run at a time.
MARKS ?= not slow
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-alone test-browser test-others fuzz check docs lock image-check bench bench-serving bench-training gpu-check clean

demo: $(VENV)/.demo-installed  ## train on synthetic data and open the player
	$(BIN)/segue demo $(DEMO_FLAGS)

test: test-alone test-browser test-others  ## run the tests; SEGUE_DATA=folder adds those on real data, TESTS= selects some

test-alone: $(VENV)/.dev-installed
	$(if $(TESTS)$(filter-out not slow,$(MARKS)),$(PYTEST) -m "($(MARKS)) and alone" $(or $(TESTS),tests/live) || [ $$? = 5 ])

test-browser: $(VENV)/.dev-installed
	$(if $(TESTS),,$(PYTEST) -m "$(MARKS)" $(subst -n 3,-n 2,$(PARALLEL)) tests/browser)

test-others: $(VENV)/.dev-installed
	$(PYTEST) -m "($(MARKS)) and not alone" $(if $(TESTS),,$(PARALLEL) --ignore tests/browser) --durations=25 $(TESTS)

fuzz: $(VENV)/.dev-installed  ## fuzz parsers with 110,000 inputs and each endpoint with 500; takes half an hour
	$(PYTEST) -m nightly

check: $(VENV)/.dev-installed  ## check format, lint, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev-installed  ## build the documentation site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lock: $(VENV)/.dev-installed  ## pin the images' packages by version and hash; LOCK_FLAGS=--upgrade updates them
	.ci/lock $(LOCK_FLAGS)

image-check:  ## run the steps of the service image in a clean root (minutes; needs root on Debian; IMAGES= selects others)
	.ci/image-steps $(IMAGES)

bench: $(VENV)/.dev-installed  ## run the benchmarks of benchmarks/README.md; needs SEGUE_DATA
	$(BIN)/python benchmarks/prepare_log.py --folder $(BENCH)/lfm1k
	$(BIN)/python benchmarks/index_search.py
	$(BIN)/segue simulate --tracks 1000 --sessions 6000 --seed 1 --out $(BENCH)/synthetic --overwrite
	$(BIN)/segue reproduce $(BENCH)/synthetic --recipe demo --split last-play --protocol full --out $(BENCH)/out
	$(BIN)/segue prepare events $(SEGUE_DATA)/mssd-sample.csv.gz --out $(BENCH)/mssd --overwrite
	$(BIN)/segue reproduce $(BENCH)/mssd --recipe mssd --out $(BENCH)/out
	$(BIN)/python benchmarks/peers/run.py --folder $(BENCH)/peers

bench-serving: $(VENV)/.dev-installed  ## benchmark one core of the service and its components
	$(BIN)/python -m benchmarks.serving.run --folder $(BENCH)/serving

gpu-check: $(if $(DRY_RUN),$(VENV)/.dev-installed,$(GPU_VENV)/.installed)  ## test and benchmark on a GPU; DRY_RUN=1 runs the code on a CPU
	$(if $(DRY_RUN),$(BIN)/python -m benchmarks.gpu --dry-run --again,$(GPU_VENV)/bin/python -m benchmarks.gpu) $(GPU_CHECK_FLAGS)

bench-training: $(VENV)/.dev-installed  ## profile a training step; compare with RecTools, RecBole and the machine's limit
	$(BIN)/python -m benchmarks.training.run --folder $(BENCH)/training --peers $(BENCH)/peers

clean:  ## remove generated files; keeps your data and releases
	rm -rf $(VENV) $(GPU_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "segue needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[service,training]'
	touch $@

$(VENV)/.dev-installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.demo-installed

# A separate environment: faiss-gpu replaces faiss-cpu, which the other targets need.
$(GPU_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(GPU_VENV)
	$(PYTHON) -m benchmarks.gpu.bundle --list --have > $(GPU_VENV)/requirements.txt
	$(GPU_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $(GPU_VENV)/requirements.txt
	$(GPU_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
