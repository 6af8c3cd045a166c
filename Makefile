# The two commands of a fresh machine are `make demo` and `make test`; each creates the environment by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export TOKENIZERS_PARALLELISM ?= false

.PHONY: help env demo test test-all lint format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(READY)  ## create the environment in .venv and fetch the embedded model

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 2; }
	@echo "creating the environment in $(VENV) (a few minutes)"
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "error: $(PYTHON) -m venv failed (on Debian or Ubuntu: apt install python3-venv)" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m alpaca_ray.models
	@touch $@

demo: $(READY)  ## generate, train and serve with the embedded model; ends with a table and a report page
	$(BIN)/python jobs/demo.py

test: lint  ## lint, type check and every test that is not slow
	$(BIN)/python -m pytest -m 'not slow'

test-all: lint  ## everything, slow tests included
	$(BIN)/python -m pytest

lint: $(READY)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the start-up benchmark; each program in benchmarks/ also runs alone
	$(BIN)/python benchmarks/startup.py

clean:  ## remove the environment and everything that the demo and the tests wrote here
	rm -rf $(VENV) out build *.egg-info .pytest_cache .ruff_cache .mypy_cache
