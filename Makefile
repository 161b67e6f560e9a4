# One command for each thing a developer does. `make help` lists them.
#
# The environment lives in .venv. Stamp files in it say what is installed already, so that a second run starts at once;
# a change of pyproject.toml or of the pinned versions installs again.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first interpreter that the pinned versions support and that can make an environment.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo "$$python" && break; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONSTRAINTS := .ci/constraints.txt
SET_UP_FILES := pyproject.toml $(CONSTRAINTS)
PYTEST_WORKERS ?= auto
PYTEST_OPTIONS ?=

VIEW := .venv-view
VIEW_CONSTRAINTS := .ci/constraints-view.txt

# 3D Slicer's own Python, for the tests of its module; pyenv's may not be on the path. Empty if there is none, or if .venv has it.
PYTHON312 ?= $(shell $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] == (3, 12))' 2>/dev/null && \
	for python in python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python); do \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null && echo "$$python" && break; done)
VENV312 := .venv-312

.PHONY: help setup view test test-312 lint types demo bench clean

help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

setup: $(VENV)/.stamp-dev ## Make .venv with everything a developer needs

view: $(VIEW)/.stamp ## Make .venv-view, in which `mambaseg view` runs

# Files in their own order: sorted by their number of tests, as is the default, a file with few long tests would come last, alone.
test: lint types ## Set up, then run every check: style, types, tests (what CI runs)
	@$(MAKE) --no-print-directory view || echo "The viewer's packages cannot be installed here: its tests are skipped."
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --maxprocesses 8 --dist loadscope --no-loadscope-reorder $(PYTEST_OPTIONS)
	@if [ -n "$(PYTHON312)" ]; then $(MAKE) --no-print-directory test-312; \
		else echo "No Python 3.12 beside the one of .venv: the module's tests ran in that one only."; fi

# PyTorch is only needed by the worker processes, which run in .venv: there may be no small build of it for this Python here.
test-312: $(VENV312)/.stamp $(VENV)/.stamp-dev ## Set up .venv-312, then test the Slicer module in Slicer's own Python
	$(VENV312)/bin/python -m pytest Testing/slicer -n $(PYTEST_WORKERS) --maxprocesses 8 --dist loadfile -m "not slow" \
		--worker-python $(CURDIR)/$(BIN)/python $(PYTEST_OPTIONS)

lint: $(VENV)/.stamp-dev ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev ## Types
	$(BIN)/mypy

demo: $(VENV)/.stamp-demo ## Set up, then segment the hippocampus in a real T1 MR on the CPU
	$(BIN)/python Testing/demo/hippocampus.py --output demo_output

bench: $(VENV)/.stamp-dev ## Measure speed and memory; figures are printed
	@for file in Testing/benchmarks/bench_*.py; do \
		[ -e "$$file" ] || { echo "Testing/benchmarks holds no benchmark yet."; continue; }; \
		echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean: ## Remove the environment and everything that was built
	rm -rf $(VENV) $(VIEW) $(VENV312) build dist demo_output *.egg-info Training/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find MambaSegLib MambaSegView Training Testing -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@[ -n "$(PYTHON)" ] || { echo >&2 "No Python 3.11, 3.12 or 3.13 with the venv module was found." \
		"Install one (Debian, Ubuntu: apt-get install python3-venv) or name it: make PYTHON=/path/to/python3 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# PyTorch goes first and by its exact version: a package that asks for "any torch" would fetch a CUDA build of several GB.
$(VENV)/.stamp-torch: $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' $(CONSTRAINTS))"
	@touch $@

# The demo needs no developer tools; the developer set-up includes the demo's.
$(VENV)/.stamp-demo: $(SET_UP_FILES) $(VENV)/.stamp-torch
	$(PIP) -c $(CONSTRAINTS) -e '.[demo]'
	@touch $@

# An environment of its own: trame-slicer needs an older slicer-core than the tests of the module.
$(VIEW)/.stamp: pyproject.toml $(VIEW_CONSTRAINTS) | $(VENV)/bin/python
	$(VENV)/bin/python -m venv $(VIEW)
	$(VIEW)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' $(VIEW_CONSTRAINTS))"
	$(VIEW)/bin/python -m pip install --quiet --disable-pip-version-check -c $(VIEW_CONSTRAINTS) -e '.[torch,view]'
	@touch $@

# SimpleITK 2.5.5 is Slicer 5.12's own; numpy and scipy are pinned to Slicer's everywhere.
$(VENV312)/.stamp: $(SET_UP_FILES)
	@[ -n "$(PYTHON312)" ] || { echo >&2 "No Python 3.12 was found: make test-312 PYTHON312=/path/to/python3.12"; exit 1; }
	$(PYTHON312) -m venv $(VENV312)
	grep -v '^SimpleITK==' $(CONSTRAINTS) >$(VENV312)/constraints.txt
	$(VENV312)/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV312)/constraints.txt \
		'SimpleITK==2.5.5' -e '.[slicertest]'
	@touch $@

$(VENV)/.stamp-dev: $(SET_UP_FILES) $(VENV)/.stamp-torch
	$(PIP) -c $(CONSTRAINTS) -e '.[dev]'
	@# nnU-Net's own networks, which ours are compared with: these need none of the packages this one asks for.
	$(PIP) -c $(CONSTRAINTS) --no-deps dynamic-network-architectures
	@touch $(VENV)/.stamp-demo $@
