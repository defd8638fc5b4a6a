# Every target sets up what it needs: a machine with Python 3.11 or 3.12 and make is enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup demo test slow faults fuzz mutations gpu check static docs format clean

help:            ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/  /' | column -t -s'  ' -l2

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(READY)

setup: $(READY)  ## virtual environment with everything the tests need

demo: $(READY)   ## the whole road on bundled pictures; ends with runs/demo/report.html
	$(BIN)/ifsq demo

test: $(READY)   ## the test suite, on both cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not gpu and not slow'

slow: $(READY)   ## runs killed at random moments, two hosts (as root), all that compiles in three orders; an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

faults: $(READY) ## every fault tried again: kills, full disks, damaged files; half an hour, as root
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

fuzz: $(READY)   ## damaged files by the million for every parser; hours, goes on where it was cut short
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --state fuzz.json --out fuzz.md

mutations: $(READY)  ## central lines written wrong, one after another: each is caught by the test that is named; minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutations

gpu: $(READY)    ## tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

static: $(READY) ## format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: static test  ## all that a change must pass

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $(VENV)/.docs

docs: $(VENV)/.docs  ## the site, build/site/index.html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/site

format: $(READY) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:           ## remove the environment and the caches, never a run
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
