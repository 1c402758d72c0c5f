# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Byte code is kept, outside the tree: without it every `import tensorflow` costs three times the CPU.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
export TF_CPP_MIN_LOG_LEVEL ?= 2
export MOXSERVE_SHARED ?= $(abspath $(CURDIR)/../shared)

WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help env quickstart test test-fast lint format bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(STAMP) ## Create the virtual environment with everything in it

$(STAMP): pyproject.toml
	@if command -v uv >/dev/null 2>&1 \
	    && uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) \
	    && uv pip install --quiet --python $(BIN)/python -e '.[dev]'; then :; \
	else \
	  $(PYTHON) -m venv $(VENV) \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $@

quickstart: $(STAMP) ## Train, export, verify, serve, predict and load-test on real digits
	$(BIN)/moxserve quickstart --out build/quickstart

test: $(STAMP) lint ## Lint, types, import rules and the whole test suite
	$(PYTEST)

test-fast: $(STAMP) ## The tests that take seconds
	$(PYTEST) -m 'not slow'

lint: $(STAMP) ## ruff, mypy, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP) ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Every benchmark, as ratios against peers in one run
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/client.py
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/nets.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/file.py

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) .cache build dist
