# Two targets are all a user needs: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The strict editable install links every file, so that type checkers can follow it: a folder's
# time changes when a file is added or removed, and the install is brought up to date.
FOLDERS := $(shell find lib tasks flows configs -type d -not -name '__pycache__')
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--config-settings editable_mode=strict

.PHONY: demo test test-all lint types bench format constraints system clean

demo: $(VENV)/.user
	$(BIN)/reelmill demo demo

# Images often forbid Python to keep what it compiled; then each of some hundred processes of the
# tests would compile Reelmill, and pytest its tests. tests/runs come first: a file of theirs that
# began last would keep one process busy while the others have nothing left to do.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.dev lint types
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# With torch and the libraries that read datasets for training: a gigabyte with torch's CPU
# build, several with the one for CUDA. Without them their tests are skipped.
test-all: $(VENV)/.dev-torch test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What some tests skip without, on Debian and its like; needs root.
SYSTEM := chromium postgresql iproute2 ffmpeg

system:
	@dpkg -s $(SYSTEM) >/dev/null 2>&1 || { apt-get update -q && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(SYSTEM); }

# The versions of the packages in the images, from those that are installed here.
constraints: $(VENV)/.dev
	$(BIN)/python infra/images/constraints.py

clean:
	rm -rf $(VENV) build demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Reelmill needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml $(FOLDERS) | $(BIN)/python
	@echo "Installing Reelmill into $(VENV) (a minute or two, once) ..."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml $(FOLDERS) | $(BIN)/python
	@echo "Installing Reelmill and its test tools into $(VENV) (a minute or two, once) ..."
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.user

$(VENV)/.dev-torch: $(VENV)/.dev
	@echo "Installing torch and what reads datasets for training into $(VENV) (a minute or two, once) ..."
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable '.[dev-torch]'
	@touch $@
