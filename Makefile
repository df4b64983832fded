# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# For another torch build, e.g. PIP_ARGS='--extra-index-url URL-OF-A-WHEEL-INDEX'
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow compose check format clean

demo: $(VENV)/installed
	$(BIN)/python -m pipeline.sample data/sample
	$(BIN)/python -m pipeline.shard data/sample --out shards/sample --size 128
	$(BIN)/python -m service.train demo --data.shards shards/sample --out runs/demo
	$(BIN)/python -m service.visualise runs/demo --out runs/demo/filters.png

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

# What takes minutes to compile; a small part of each is in `make test`.
slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 -m slow

# Builds the image, and runs the containers for real; needs a Docker engine with Compose.
compose:
	tests/compose.sh

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

format: $(VENV)/installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) data/sample shards/sample runs/demo build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps, so that an environment that is there costs nothing.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@
