# The two commands most people need: make book, make test. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

PROFILE ?= quick
DEVICE ?= cpu
REPO_URL ?=
BRANCH ?= main
JOBS ?= 2
PYTHON ?= python3
VENV ?= .venv

# Absolute: a VENV given on the command line may be, and recipes change directory.
BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed-$(shell cat requirements.txt pyproject.toml | cksum | cut -d' ' -f1)
CHAPTERS := $(basename $(notdir $(sort $(wildcard book/[0-9]*.md))))
LEDGER := 09_ledger
RUN := $(PY) tools/notebook.py --profile $(PROFILE) --device $(DEVICE) --ledger $(LEDGER)
SPHINX := $(BIN)/jupyter-book build -W -n --keep-going --all -q --path-output .
INTO ?= book

# One thread for each of the JOBS notebooks: two processes of one thread beat one of two.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PYTHONUNBUFFERED = 1
# This checkout's library, whatever the environment was installed from.
export PYTHONPATH := $(CURDIR)

.PHONY: help venv book html linkcheck notebooks notebook execute check test lint data paper bench url clean

help:
	@echo 'make book        install into .venv, execute every notebook, build the pages, print where they are'
	@echo 'make test        lint, the test suite, and every committed notebook re-executed and compared (nbval)'
	@echo 'make html        the pages from the committed outputs, nothing executed (seconds)'
	@echo 'make notebooks   refresh the committed outputs; one chapter: make notebook NAME=03_gradient_descent'
	@echo 'make data        download the full MNIST and CIFAR-10 into data/ (the default needs no download)'
	@echo 'make paper       the experiments at the size of the paper (a GPU: DEVICE=cuda)'
	@echo 'make bench       side-by-side timings     make lint    ruff     make clean   remove _build'
	@echo 'make url REPO_URL=https://...             write the address of the repository into the pages for Colab'
	@echo ''
	@echo 'PROFILE=quick|paper  DEVICE=cpu|cuda  REPO_URL=https://github.com/you/repo  BRANCH=main  JOBS=2'

# --- environment

venv: $(STAMP)

# pip's notices about package indexes that do not exist on a machine are dropped; its errors are not.
$(STAMP): | pyproject.toml requirements.txt
	@echo "installing into $(VENV) (a few minutes the first time: PyTorch is large)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"Python 3.10 or newer, please (PYTHON=python3.12): this is {sys.version}")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q -r requirements.txt 2> >(grep -v "is ignored: it is neither a file nor a directory" >&2)
	@$(PY) -m pip install -q --no-deps -e . 2> >(grep -v "is ignored: it is neither a file nor a directory" >&2)
	@rm -f $(VENV)/.installed-* && touch $@

# --- the book

book: venv
	@$(PY) tools/stage.py _build/source --repo-url "$(REPO_URL)" --branch $(BRANCH)
	@$(MAKE) execute INTO=_build/source/book
	@$(SPHINX) _build/source --config _build/source/_config.yml > _build/sphinx.log || { cat _build/sphinx.log; exit 1; }
	@$(PY) tools/stage.py --prune _build/html
	@echo "open file://$(CURDIR)/_build/html/index.html"

html: venv
	@$(PY) tools/stage.py _build/committed --committed --repo-url "$(REPO_URL)" --branch $(BRANCH)
	@$(SPHINX) _build/committed --config _build/committed/_config.yml > _build/sphinx.log || { cat _build/sphinx.log; exit 1; }
	@$(PY) tools/stage.py --prune _build/html
	@echo "open file://$(CURDIR)/_build/html/index.html"

# Addresses in the pages, asked for one by one: needs the network.
linkcheck: venv
	@$(PY) tools/stage.py _build/committed --committed --repo-url "$(REPO_URL)" --branch $(BRANCH)
	@$(BIN)/jupyter-book build _build/committed --builder linkcheck --config _build/committed/_config.yml --path-output _build/links

notebooks: venv
	@$(MAKE) execute INTO=book

notebook: venv
	@test -n "$(NAME)" || { echo 'which one? make notebook NAME=03_gradient_descent' >&2; exit 2; }
	@$(RUN) $(NAME)

# Bring every notebook of INTO up to date: JOBS side by side, longest first, the ledger after all the others.
execute: venv
	@names=$$($(RUN) --plan --jobs $(JOBS) --into $(INTO)); \
	if [ -n "$$names" ]; then $(MAKE) --keep-going -j$(JOBS) INTO=$(INTO) $$(printf 'run-%s ' $$names); fi

CHAPTER_RUNS := $(CHAPTERS:%=run-%)
.PHONY: $(CHAPTER_RUNS)
$(CHAPTER_RUNS): run-%:
	@$(RUN) $* --into $(INTO)
ifneq ($(filter $(LEDGER),$(CHAPTERS)),)
run-$(LEDGER): $(filter-out run-$(LEDGER),$(filter run-%,$(MAKECMDGOALS)))
endif

# --- checks

check: venv
	@$(RUN) --check

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

test: lint
	@$(PY) -m pytest book tests --nbval -n $(JOBS) --dist loadfile --nbval-cell-timeout=1200 -q --durations=5

# --- data, experiments, timings

data: venv
	@$(PY) -m ncutils data mnist cifar10

paper: venv
	@$(PY) -m ncutils paper --device $(DEVICE)

bench: venv
	@$(PY) benchmarks/run.py

# --- the rest

url:
	@test -n "$(REPO_URL)" || { echo 'which one? make url REPO_URL=https://github.com/you/repo' >&2; exit 2; }
	@$(PY) tools/set_url.py "$(REPO_URL)" --branch $(BRANCH)

clean:
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
