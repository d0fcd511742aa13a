# make quickstart   a simulated app: data, training, evaluation, a served decision, an A/B test and its report
# make test         the test suite            (make test ARGS="-k features")
# make check        ruff, pyright, import-linter
# make format       ruff's fixes and formatting
# make bench        the benchmarks: other libraries, the world
# make wheel        dist/cluster, what cluster.yaml copies to the nodes
# PYTHON picks the interpreter (3.11 or newer), VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BENCHMARKS ?= data_plane train_iit world

SHELL := /bin/bash
BIN := $(VENV)/bin
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
BENCH := $(VENV)/.installed-bench
SOURCES := pyproject.toml constraints.txt plpm_ray/__init__.py

export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test check format bench wheel clean

help:
	@sed -n 's/^# make/make/p' Makefile

quickstart: $(BASE)
	@$(BIN)/plpm quickstart

test: $(DEV)
	@$(BIN)/python -m pytest $(ARGS)

check: $(DEV)
	@echo "ruff"         && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "pyright"      && $(BIN)/pyright --pythonpath $(BIN)/python
	@echo "import-linter" && $(BIN)/lint-imports --no-cache --no-logo

format: $(DEV)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(BENCH)
	@for name in $(BENCHMARKS); do echo "benchmarks/$$name.py" && $(BIN)/python benchmarks/$$name.py || exit 1; done

wheel: $(BASE)
	@rm -rf dist/cluster && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist/cluster .
	@cp constraints.txt dist/cluster/ && ls dist/cluster

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis

# Each stamp is newer than what it was made from, so a second `make` installs nothing.
$(BASE): $(BIN)/python $(SOURCES)
	$(call install,.)
	@touch $(BASE)

$(DEV): $(BIN)/python $(SOURCES)
	$(call install,.[dev])
	@touch $(BASE) $(DEV)

$(BENCH): $(DEV)
	$(call install,.[bench])
	@touch $(BENCH)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "plpm_ray needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Creating the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# pip reports some hundred lines; shown of it are the large downloads, and everything from the first error on.
SHOW := /^ *(ERROR|error)/ { bad = 1 } \
  bad || /Downloading .*([0-9]{2,}\.[0-9]|[0-9]{2,}) [MG]B/ || /^Installing collected/ { print substr($$0, 1, 110); fflush() }

define install
	@echo "Installing $(1) into $(VENV) (some minutes the first time)"; start=$$SECONDS; set -o pipefail; \
	$(BIN)/python -m pip install --progress-bar off --no-compile -c constraints.txt -e '$(1)' 2>&1 | awk '$(SHOW)' \
	&& echo "Installed in $$((SECONDS - start)) s"
endef
