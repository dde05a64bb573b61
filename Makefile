# Everything a developer does, each target with its own set-up. `make check` is what CI runs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup serve test test-slow lint check clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: .venv/ready  ## virtual environment in .venv with everything in it

serve: setup  ## serve the bundled demo model on http://127.0.0.1:8000
	$(BIN)/unmask serve

test: setup  ## the tests, under five minutes
	$(BIN)/python -m pytest -q

test-slow: setup  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow || test $$? -eq 5  # 5: there are none

lint: setup  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: lint test test-slow  ## what CI runs

clean:  ## remove what set-up and tests made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build
