# Every target sets up what it needs. `make demo` first; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
# One thread a process: bundles and test workers run side by side, one a core.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
SNAKEMAKE  := $(ONE_THREAD) $(BIN)/snakemake --profile profiles/default
DEFAULT_TESTS := not slow and not network and not gpu and not system
SYSTEM_TESTS  ?= system

# One line instead of a resolver's page, where nobody has tried the pins.
REFUSE := import sys; here = (sys.platform, *sys.version_info[:2]); \
  sys.exit(None if here[0] == "linux" and (3, 11) <= here[1:] <= (3, 13) else \
  "Linux and Python 3.11 to 3.13 are needed, this is %s and %d.%d: make PYTHON=python3.11" % here)

define where
	@cat results/$(1)/logs/tables.log
	@printf '%s\n' "" \
	  "tables     results/$(1)/tables" \
	  "figures    results/$(1)/figures" \
	  "records    results/$(1)/records" \
	  "dashboard  $(BIN)/python -m benchmarks track ui --suite $(1)"
endef

.DEFAULT_GOAL := help
.PHONY: help demo cpu cost test test-all test-system robustness field lint format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

# Pins carry no index address, so pip's own settings decide where packages come from. uv is three times
# as fast; byte code compiled now saves every process seconds of imports later. The library and the benchmark
# are linked to this folder, `saflex-bench` with them; the lock has all they need, setuptools included.
# Stamped last, so that an installation cut short is done again.
EDITABLE := --no-deps --no-build-isolation -e . -e ./benchmarks
$(READY): requirements.lock pyproject.toml benchmarks/pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c '$(REFUSE)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/pip install -q uv; then \
	  $(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode -r requirements.lock && \
	  $(BIN)/uv pip install -q --python $(BIN)/python $(EDITABLE); \
	else \
	  $(BIN)/pip install -q -r requirements.lock && $(BIN)/python -m compileall -q $(VENV)/lib && \
	  $(BIN)/pip install -q $(EDITABLE); \
	fi
	@touch $@

demo: $(READY) ## data that ships with scikit-learn -> table, figures, dashboard (minutes)
	@$(SNAKEMAKE) --config suite=demo
	$(call where,demo)

cpu: $(READY) ## the real data at hand on two cores (`make cost` says how long)
	@$(BIN)/python -m benchmarks cost --suite cpu
	@$(SNAKEMAKE) --config suite=cpu
	$(call where,cpu)

cost: $(READY) ## what the cpu suite will take
	@$(BIN)/python -m benchmarks cost --suite cpu

test: $(READY) ## the tests that need no network, GPU or services
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -m "$(DEFAULT_TESTS)"

test-all: $(READY) ## the slow ones as well
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not network and not gpu and not system"

test-system: $(READY) ## real Slurm, PostgreSQL and Chromium, started and stopped again (root, Debian)
	tests/system/install.sh
	$(ONE_THREAD) $(BIN)/python -m pytest -m "$(SYSTEM_TESTS)" $(PYTEST_OPTIONS)

robustness: $(READY) ## docs/robustness.md: try every situation of tests/saflex/situations_*.py anew
	$(ONE_THREAD) PYTHONPATH=. $(BIN)/python tests/saflex/situations.py

field: $(READY) ## docs/field.md from the tests of tests/field
	$(BIN)/python tests/field/reports.py

lint: $(READY) ## ruff, snakefmt, snakemake --lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	@# its findings are on standard error; silent when there is nothing to say
	$(BIN)/snakemake --lint

format: $(READY) ## rewrite files as ruff and snakefmt want them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/snakefmt Snakefile workflow

clean: ## the demo's results and every cache; the virtual environment and committed results stay
	rm -rf results/demo .snakemake .pytest_cache .ruff_cache
	find saflex benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
