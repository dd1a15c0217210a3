# make help prints this list
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done
TESTS ?= tests

.PHONY: help setup quick test lint format bench status clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(SETUP)  ## .venv with the tested versions (constraints.txt) and this package

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sparsebench needs Python 3.11 or newer; set PYTHON=python3.x"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quick: $(SETUP)  ## the main job: seven methods on digits, a table and a picture in results/quick
	@$(BIN)/sparsebench -m +table=quick

test: $(SETUP) lint  ## lint, types, tests
	$(BIN)/python -m pytest $(TESTS) -n 2 --dist worksteal

lint: $(SETUP)  ## ruff and mypy
	$(BIN)/ruff check sparsebench tests scripts
	$(BIN)/ruff format --check sparsebench tests scripts
	$(BIN)/mypy

format: $(SETUP)  ## let ruff rewrite
	$(BIN)/ruff check --fix sparsebench tests scripts
	$(BIN)/ruff format sparsebench tests scripts

bench: $(SETUP)  ## ratios of time and memory, each measured side by side in one run
	$(BIN)/python scripts/bench/all.py

status: $(SETUP)  ## results/STATUS.md from the tests and tables
	$(BIN)/python scripts/status.py

clean:  ## remove what tests and builds leave, not runs or results
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
