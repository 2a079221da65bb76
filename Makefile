# One command each. Every target does its own set-up in .venv, so a fresh clone needs only
# Python 3.11 or newer with the venv module, make and a C compiler.

# The first of these that is new enough; `make PYTHON=/path/to/python3 ...` overrides.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	command -v $$p >/dev/null 2>&1 && $$p -c '$(NEW_ENOUGH)' 2>/dev/null && { echo $$p; break; }; done)
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
USE_STAMP := $(VENV)/.stamp-use
DEV_STAMP := $(VENV)/.stamp-dev

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow notebook docs clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(USE_STAMP) ## fine-tune the shipped model to 4, 3, 2, 1.58 and 1 bit, pack it, report (minutes)
	$(BIN)/python -m experiments.quickstart

# Dozens of processes import jax, none of whose files was compiled when it was installed: the first one keeps what it
# made of them, even where the environment says that Python keeps nothing.
test: $(DEV_STAMP) ## lint, types, layers, docs and behaviour: everything but the slow tests
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(DEV_STAMP) ## the tests that take minutes or need a model the repository does not ship
	$(BIN)/python -m pytest -m slow

notebook: $(DEV_STAMP) ## execute the notebooks and store their outputs
	$(BIN)/python scripts/run_notebooks.py

docs: $(DEV_STAMP) ## regenerate what the docs and the README take from code and results
	$(BIN)/python scripts/make_numerics_page.py
	$(BIN)/python scripts/make_commands_page.py
	$(BIN)/python scripts/make_records.py
	$(BIN)/python scripts/make_recipe_page.py
	$(BIN)/python scripts/make_ptq_page.py
	$(BIN)/python scripts/make_mixed_precision_page.py
	$(BIN)/python scripts/make_finetuning_page.py
	$(BIN)/python scripts/make_speed_page.py
	$(BIN)/python scripts/make_evaluation_page.py
	$(BIN)/python scripts/make_kernels_page.py
	$(BIN)/python scripts/make_gpu_kernels_page.py
	$(BIN)/python scripts/make_generation_page.py
	$(BIN)/python scripts/make_tables.py

clean: ## remove caches and build products, keep the environment and the runs
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find lowbit tests experiments configs scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove the environment as well
	rm -rf $(VENV) *.egg-info

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "lowbit needs Python 3.11 or newer, and found none on PATH." >&2; \
		echo "  -> install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is older than Python 3.11, which lowbit needs." >&2; \
		echo "  -> name a newer one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks the venv module." >&2; \
		echo "  -> on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Installing is repeated when either list of requirements changes, and only then. Python compiles to bytecode what it
# imports when it does, in a fraction of the time that all files of all packages take.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e

$(USE_STAMP): $(VENV)/pyvenv.cfg requirements.txt pyproject.toml
	$(INSTALL) .
	@touch $@

# One call that installs what use needs besides: a second one would resolve and build everything again.
$(DEV_STAMP): $(VENV)/pyvenv.cfg requirements.txt pyproject.toml
	$(INSTALL) '.[dev,notebook]'
	@touch $(USE_STAMP) $@
