PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
WORKERS ?= 2

PARITY_TESTS = $(shell grep -l 'parity_table import' tests/test_*.py)

.PHONY: quickstart test test-slow parity check format bench docs clean

quickstart: $(VENV)/.installed
	$(BIN)/tutelage quickstart

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n $(WORKERS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow

parity: $(VENV)/.installed-dev
	rm -f .cache/parity.jsonl; mkdir -p .cache
	PARITY=.cache/parity.jsonl $(BIN)/python -m pytest -q -n $(WORKERS) -m "slow or not slow" $(PARITY_TESTS)
	$(BIN)/python tests/parity_table.py .cache/parity.jsonl

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site quickstart

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("tutelage needs Python 3.11 or newer, $(PYTHON) is %d.%d; set PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e '.[dev]'
	@touch $@ $(VENV)/.installed
