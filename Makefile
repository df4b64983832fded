# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# For another torch build, e.g. PIP_ARGS='--extra-index-url URL-OF-A-WHEEL-INDEX'
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow portable faults fuzz compose check format clean

demo: $(VENV)/installed
	$(BIN)/python -m pipeline.sample data/sample
	$(BIN)/python -m pipeline.shard data/sample --out shards/sample --size 128
	$(BIN)/python -m service.train demo --data.shards shards/sample --out runs/demo
	$(BIN)/python -m service.visualise runs/demo --out runs/demo/filters.png

# A file's tests share what they start; tests/conftest.py has the files that take longest first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed-dev
	$(PYTEST) -m 'not slow'

# What takes long: compiling, many processes, many states; a part of each is in `make test`.
slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 -m slow

# The tests that compute, as on a processor that has AVX2 and no more: other kernels of oneDNN and of torch, which round
# otherwise and emulate bfloat16. Those are all files that import torch or the network, or start a worker; what others
# import of torch by way of service/ is no arithmetic. The tag, because what `make test` has compiled for this processor
# would run, and compute other numbers.
portable: export ONEDNN_MAX_CPU_ISA := AVX2
portable: export ATEN_CPU_CAPABILITY := avx2
portable: export TORCH_COMPILE_CACHE_KEY_TAG := avx2
portable: $(VENV)/installed-dev
	$(PYTEST) -m 'not slow' $$(grep -lE '^(from|import) (torch|model)\b|^from processes import (\(|.*\bcommand\b)' $$(find tests -name 'test_*.py'))

# Crashes, faults while it runs, hostile files, load and a soak, in under an hour; a part of it is in `make test`.
SEED ?= 0
ROUNDS ?= 200
faults: $(VENV)/installed-dev
	PYTHONPATH=tests/helpers:tests/docker $(BIN)/python tests/faults/every_fault.py --seed $(SEED) --rounds $(ROUNDS)

# Mutations of all that is read from elsewhere, so many seconds of each; a part of it is in `make test`.
SECONDS ?= 60
fuzz: $(VENV)/installed-dev
	PYTHONPATH=.:tests/helpers $(BIN)/python tests/faults/fuzz.py --seed $(SEED) --seconds $(SECONDS)

# Builds the image, and runs the containers for real; needs a Docker engine with Compose.
compose:
	tests/docker/compose.sh

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

# Stamps, so that an environment that is there costs nothing. Python compiles what is imported, which is a tenth of it.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q --no-compile $(PIP_ARGS) -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --disable-pip-version-check -q --no-compile $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@
