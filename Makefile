# Everything a developer does, each target with its own set-up. `make check` is what CI runs.
PYTHON ?= python3
BIN := .venv/bin
# Kustomization and settings are no resources of Kubernetes.
MANIFESTS := $(filter-out %/kustomization.yaml %/settings.yaml, $(wildcard docker/k8s/*.yaml)) docker/k8s/gateway/picker.yaml

# An index beside pip's own for torch; that of the CPU builds spares gigabytes of CUDA.
TORCH_INDEX ?=
CPU_INDEX := $(shell sed -n 's/^ *TORCH_INDEX: *//p' docker/compose.cpu.yaml)
GPU ?= $(shell command -v nvidia-smi)
# Python compiles what it imports; pip would compile thousands of modules that nobody does.
PIP_INSTALL = install --no-compile --disable-pip-version-check $(TORCH_INDEX:%=--extra-index-url %) -c constraints.txt
INSTALL = $(BIN)/python -m pip $(PIP_INSTALL)

.PHONY: help setup serve test test-slow test-golden test-browser images test-wheel test-newest test-containers test-gpu lint lint-deploy tools check clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/runtime: pyproject.toml constraints.txt
	@echo "Installing what a server needs into .venv: minutes the first time, most of them for torch."
ifeq ($(GPU)$(TORCH_INDEX),)
	@echo "There seems to be no GPU here. On Linux torch brings CUDA along, which is gigabytes; for the small one"
	@echo "stop this and run:  make $(MAKECMDGOALS) TORCH_INDEX=$(CPU_INDEX)"
endif
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	@touch $@

.venv/ready: .venv/runtime
	@echo "Installing what tests and linters need into .venv."
	$(INSTALL) --quiet -e '.[dev]'
	@touch $@

setup: .venv/ready  ## virtual environment in .venv with everything in it

serve: .venv/runtime  ## serve the bundled demo model on http://127.0.0.1:8000
	@echo "Starting the server; Ctrl-C ends it."
	@$(BIN)/unmask serve

FILE ?=
# A process for each core, if it is more than a file.
SPREAD := $(if $(FILE),,--numprocesses auto --maxprocesses 4 --dist worksteal)

SLOW ?=
# At one go: collecting the tests takes half a minute, and towards the end a core waits for the other.
MARKED = $(if $(SLOW),-m 'not containers and not browser and not gpu')

test: setup $(if $(SLOW),tools)  ## the tests, five to six minutes on two cores; FILE="tests/test_tiny.py" runs these alone, SLOW=yes also those of test-slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(MARKED) $(SPREAD) $(FILE)

tools:  ## Prometheus, nginx, clients in JavaScript and a linter for compose files in .tools, for what follows
	PYTHON=$(PYTHON) .ci/tools

test-slow: setup tools  ## what is thorough or waits: all golden rows, crowds, compilers, clusters, real Prometheus, nginx and Node.js
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow --numprocesses auto --maxprocesses 2 --dist worksteal

test-golden: setup  ## all rows of all published samplers one by one, in a batch, and by plain loops: ten minutes; the tests take a part alone
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.golden $(wildcard tests/data/*-tiny*)

test-browser: setup  ## the page in Debian's Chromium; pictures of it go to .tools/page
	.ci/browser
	OMP_NUM_THREADS=1 .ci/own-network $(BIN)/python -m pytest -q -m browser --numprocesses auto --maxprocesses 2 --dist worksteal tests/browser

images:  ## what `test-containers` runs, which builds it too
	PYTHON=$(PYTHON) .ci/containers true

test-containers: setup  ## the images, the compose stack and a pod, really run; left out where that cannot be
	PYTHON=$(BIN)/python .ci/containers $(BIN)/python -m pytest -q -m containers tests/docker

test-wheel: setup  ## the wheel, where no developers' tools are: whether it answers
	rm -rf .tools/wheel && $(PYTHON) -m venv .tools/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir .tools/wheel/dist .
	.tools/wheel/bin/python -m pip $(PIP_INSTALL) --quiet .tools/wheel/dist/*.whl
	.ci/answers .tools/wheel/bin/unmask

# The newest Python that runs here; a command of this name may be there and run nothing.
NEWEST ?= $(shell for python in python3.14 python3.13 python3.12; do \
	$$python -c "" 2>/dev/null && echo $$python && break; done)
FAST := tests/test_tiny.py tests/test_architecture.py tests/engine/test_golden.py tests/engine/scheduling \
	tests/engine/cache tests/engine/unmask tests/server/settings tests/server/test_completions.py tests/server/test_chat.py \
	tests/test_end_to_end.py

test-newest:  ## a fast part of the tests on the newest Python at hand, or on NEWEST=python3.13; left out where there is none
ifeq ($(NEWEST),)
	@echo "No Python from 3.12 on is at hand: left out."
else
	$(NEWEST) -m venv .tools/newest
	.tools/newest/bin/python -m pip $(PIP_INSTALL) --quiet -e '.[test]'
	OMP_NUM_THREADS=1 .tools/newest/bin/python -m pytest -q -p no:cacheprovider --numprocesses auto --maxprocesses 4 $(FAST)
endif

test-gpu:  ## the tests that need a GPU, by PYTHON's own torch, transformers, safetensors and pytest; installs nothing
	$(PYTHON) -m pytest -q -c tests/gpu/pytest.ini -m gpu tests/gpu

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

check: SLOW = yes
check: lint lint-deploy test-wheel test test-newest test-browser test-containers  ## what CI runs

clean:  ## remove what set-up and tests made
	-@umount --recursive .tools/containers/storage/overlay 2>/dev/null
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build
