# Everything a fresh machine needs, given git, make and Python 3.11 or later.
#   make run     train the hospital federation
#   make test    run the tests, those of the federation on the oldest claimed Flower too
#   make check   formatting, lint, strict types, the rooms' import direction

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
# Ray, and so Flower's simulation, lags behind Python's newest release: the older names come first.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

RUN_READY := $(VENV)/.ready-to-run
DEV_READY := $(VENV)/.ready-to-develop
OLDEST_FLWR := 1.38
OLDEST := .cache/flwr-$(OLDEST_FLWR)

export FLWR_TELEMETRY_ENABLED ?= 0
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: run test check format clean

run: $(RUN_READY)
	@$(BIN)/fedmt sim

test: $(DEV_READY) $(OLDEST)/.ready
	$(BIN)/python -m pytest -q
	@echo "Now the federation on flwr $(OLDEST_FLWR), the oldest claimed:"
	@PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -c \
		'from importlib.metadata import version as v; assert v("flwr").startswith("$(OLDEST_FLWR)."), v("flwr")'
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -m pytest -q tests/federation

check: $(DEV_READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_rooms.py

format: $(DEV_READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info *.fab
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or later with ensurepip is needed" \
		"(on Debian: apt-get install python3-venv), or name one: make PYTHON=…" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version); torch is large, this takes some minutes once."
	@$(PYTHON) -m venv $(VENV)

$(RUN_READY): pyproject.toml | $(BIN)/python
	@$(PIP) install -e '.[simulation]'
	@touch $@

$(DEV_READY): pyproject.toml | $(BIN)/python
	@$(PIP) install -e '.[dev]'
	@touch $@ $(RUN_READY)

$(OLDEST)/.ready: pyproject.toml | $(DEV_READY)
	@rm -rf $(OLDEST)
	@# Of Flower $(OLDEST_FLWR)'s requirements only cryptography's range excludes what the newest needs.
	@$(PIP) install --no-deps --target $(OLDEST) 'flwr==$(OLDEST_FLWR).*' 'cryptography>=46.0.7,<47'
	@touch $@
