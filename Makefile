# Everything happens in .venv; a target sets up what it needs and does nothing twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_VENV := .venv-gpu
DEMO_FLAGS ?=
BENCH ?= /tmp/segue-bench

# Which tests run: the everyday ones. CI runs MARKS="not nightly". All cores are busy with four processes on two cores,
# as tests wait for services most of the time. A file stays in one process, which shares its fixtures.
# Tests marked `alone`, which are slow ones in tests/live, run first and one after another.
MARKS ?= not slow
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test fuzz check docs lock image-check bench bench-serving bench-training gpu-check clean

demo: $(VENV)/.demo-installed  ## the whole path on synthetic data, then the player
	$(BIN)/segue demo $(DEMO_FLAGS)

test: $(VENV)/.dev-installed  ## the everyday tests; SEGUE_DATA=folder adds those on real data, TESTS= chooses
	$(if $(TESTS)$(filter-out not slow,$(MARKS)),$(PYTEST) -m "($(MARKS)) and alone" $(or $(TESTS),tests/live) || [ $$? = 5 ])
	$(PYTEST) -m "($(MARKS)) and not alone" $(if $(TESTS),,$(PARALLEL)) --durations=25 $(TESTS)

fuzz: $(VENV)/.dev-installed  ## 110,000 damaged inputs and 500 examples of each endpoint: half an hour
	$(PYTEST) -m nightly

check: $(VENV)/.dev-installed  ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev-installed  ## the documentation site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lock: $(VENV)/.dev-installed  ## pin what the images install, by version and hash; LOCK_FLAGS=--upgrade for newer versions
	.ci/lock $(LOCK_FLAGS)

image-check:  ## the steps of the service's image in a clean root, minutes; as root on Debian, IMAGES= names others
	.ci/image-steps $(IMAGES)

bench: $(VENV)/.dev-installed  ## the measurements behind benchmarks/README.md; needs SEGUE_DATA
	$(BIN)/python benchmarks/prepare_lfm1k.py --folder $(BENCH)/lfm1k
	$(BIN)/python benchmarks/index_search.py
	$(BIN)/segue simulate --tracks 1000 --sessions 6000 --seed 1 --out $(BENCH)/synthetic --overwrite
	$(BIN)/segue reproduce $(BENCH)/synthetic --recipe demo --split last-play --protocol full --out $(BENCH)/out
	$(BIN)/segue prepare events $(SEGUE_DATA)/mssd-sample.csv.gz --out $(BENCH)/mssd --overwrite
	$(BIN)/segue reproduce $(BENCH)/mssd --recipe mssd --out $(BENCH)/out
	$(BIN)/python benchmarks/peers/run.py --folder $(BENCH)/peers

bench-serving: $(VENV)/.dev-installed  ## what one core of the service can do, beside its parts
	$(BIN)/python -m benchmarks.serving.run --folder $(BENCH)/serving

gpu-check: $(if $(DRY_RUN),$(VENV)/.dev-installed,$(GPU_VENV)/.installed)  ## prove and measure what runs on a GPU; DRY_RUN=1 tries the code on a CPU
	$(if $(DRY_RUN),$(BIN)/python -m benchmarks.gpu --dry-run --again,$(GPU_VENV)/bin/python -m benchmarks.gpu) $(GPU_CHECK_FLAGS)

bench-training: $(VENV)/.dev-installed  ## where a training step's time goes, beside RecTools and RecBole and the machine's bound
	$(BIN)/python -m benchmarks.training.run --folder $(BENCH)/training --peers $(BENCH)/peers

clean:  ## everything that was made here, but no data or release of yours
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

# An environment of its own: faiss-gpu takes the place of faiss-cpu, which the others need.
$(GPU_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(GPU_VENV)
	$(PYTHON) -m benchmarks.gpu.bundle --list --have > $(GPU_VENV)/requirements.txt
	$(GPU_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $(GPU_VENV)/requirements.txt
	$(GPU_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
