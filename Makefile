# Everything a developer does, each target with its own set-up. `make check` is what CI runs.
PYTHON ?= python3
BIN := .venv/bin
# Kustomization and settings are no resources of Kubernetes.
MANIFESTS := $(filter-out %/kustomization.yaml %/settings.yaml, $(wildcard docker/k8s/*.yaml))

.PHONY: help setup serve test test-slow lint lint-deploy tools check clean
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

tools:  ## Prometheus, nginx and a linter for compose files in .tools, for what follows
	PYTHON=$(PYTHON) .ci/tools

test-slow: setup tools  ## the tests that take minutes, with real Prometheus and nginx
	$(BIN)/python -m pytest -q -m slow

lint: setup  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lint-deploy: setup tools  ## Dockerfile, compose files, Prometheus rules and Kubernetes manifests
	$(BIN)/hadolint Dockerfile
	PATH=$$PWD/.tools/bin:$$PATH dclint --max-warnings 0 -c docker/.dclintrc.yaml docker
	.tools/bin/promtool check config docker/prometheus/prometheus.yml
	.tools/bin/promtool test rules docker/prometheus/tests/*.test.yml
	$(BIN)/kubernetes-validate --strict $(MANIFESTS)

check: lint lint-deploy test test-slow  ## what CI runs

clean:  ## remove what set-up and tests made
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build
