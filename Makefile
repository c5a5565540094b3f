# A machine with Python 3.10 or newer and make is enough: the first target that needs it fills .venv.

PYTHON ?= python3
CONFIG ?= configs/atari/quickstart.yaml
# Test processes at a time.
JOBS ?= 2
# More arguments for `kfrl train` or pytest: make train ARGS="--seed 1"; make test ARGS="-m 'not slow' -k flow"
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help setup train test check docs format-check lint types layers house spelling format hooks

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 @\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F@ '{ printf "%-20s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## make .venv and install kfrl and its tools into it (every target does this by itself)

train: $(INSTALLED) ## train a student by CONFIG, the quick start unless told otherwise
	@$(BIN)/kfrl train --config $(CONFIG) $(ARGS)

# One thread a process: on two busy cores PyTorch's default, a thread a core in each, made the tests three times slower.
test: $(INSTALLED) ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: format-check lint types layers house spelling ## run every check that needs no training: what must pass before a commit

format-check: $(INSTALLED)
	@$(BIN)/ruff format --check .

lint: $(INSTALLED)
	@$(BIN)/ruff check .

types: $(INSTALLED)
	@$(BIN)/mypy

layers: $(INSTALLED)
	@$(BIN)/lint-imports --no-logo

# Imports every module, among others.
house: $(INSTALLED)
	@$(BIN)/python -m pytest -q tests/test_house.py

spelling: $(INSTALLED)
	@$(BIN)/codespell

docs: $(INSTALLED) ## build the site of the pages in docs/ into site/; a dead link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

format: $(INSTALLED) ## format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

hooks: $(INSTALLED) ## run the checks at every git commit
	@$(BIN)/pre-commit install

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.10 or newer, or say where it is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "kfrl needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Say where a newer one is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing kfrl and its tools into .venv; on a new machine this takes a few minutes."
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --editable '.[dev]'
	@touch $@
