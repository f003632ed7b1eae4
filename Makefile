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
LOCKED ?=
TORCH ?=

# Absolute, because recipes change directory; quoted wherever it is used, because a path may hold a space.
BIN := $(if $(filter /%,$(firstword $(VENV))),$(VENV),$(CURDIR)/$(VENV))/bin
PY := "$(BIN)/python"
STAMP := "$(BIN)/../.installed-$(shell cat pyproject.toml requirements*.lock | cksum | cut -d' ' -f1)-$(LOCKED)$(TORCH)"
CHAPTERS := $(basename $(notdir $(sort $(wildcard book/[0-9]*.md))))
LEDGER := 09_ledger
RUN := $(PY) tools/notebook.py --profile '$(PROFILE)' --device '$(DEVICE)' --ledger '$(LEDGER)'
STAGE := $(PY) tools/stage.py
BOOK := "$(BIN)/jupyter-book"
SPHINX := $(BOOK) build -W -n --keep-going --all -q --path-output .
INTO ?= book

# One thread for each of the JOBS notebooks: two processes of one thread beat one of two.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PYTHONUNBUFFERED = 1
# This checkout's library, whatever the environment was installed from.
export PYTHONPATH := $(CURDIR)
# Read by the shell, not pasted into a command: an address or a branch may hold any character.
export REPO_URL BRANCH NAME

.PHONY: help venv book html pdf linkcheck notebooks notebook execute check test processors attacks lint lock data paper bench url clean

help:
	@echo 'make book        install into .venv, execute every notebook, build the pages, print where they are'
	@echo 'make test        lint, the test suite, and every committed notebook re-executed and compared (nbval)'
	@echo 'make html        the pages from the committed outputs, nothing executed (seconds)'
	@echo 'make pdf         the same as one PDF, proofs unfolded (where a Chromium and poppler-utils are)'
	@echo 'make notebooks   refresh the committed outputs; one chapter: make notebook NAME=03_gradient_descent'
	@echo 'make check       say where a chapter and its notebook have come apart'
	@echo 'make processors  a few chapters as an AVX2 and an SSE processor compute them, compared with the committed'
	@echo 'make attacks     plant changes, flip bits, pass strange arguments, send signals: the reports of chapter 13'
	@echo 'make data        download the full MNIST and CIFAR-10 into data/ (the default needs no download)'
	@echo 'make paper       the experiments at the size of the paper (a GPU: DEVICE=cuda)'
	@echo 'make bench       side-by-side timings     make lint    ruff and mypy     make clean   remove _build'
	@echo 'make venv        the environment alone    make lock    write requirements*.lock anew (needs uv)'
	@echo 'make linkcheck   ask for every address in the pages (needs the network)'
	@echo 'make url REPO_URL=https://...             write the address of the repository into the pages for Colab'
	@echo ''
	@echo 'PROFILE=quick|paper  DEVICE=cpu|cuda  REPO_URL=https://github.com/you/repo  BRANCH=main  JOBS=2'
	@echo 'LOCKED=1   the exact versions of requirements*.lock      TORCH=cpu   PyTorch without the CUDA libraries'

# What writes into the tree or the environment waits for another make that does (tools/alone.py).
BUILDS := venv book html pdf linkcheck notebooks notebook execute
$(BUILDS):
	@$(PYTHON) tools/alone.py $(MAKE) do-$@
.PHONY: $(BUILDS:%=do-%)

# --- environment

# pip's notices about package indexes that do not exist on a machine are dropped; its errors are not.
PIP := $(PY) -m pip install -q
QUIETLY := 2> >(grep -v "is ignored: it is neither a file nor a directory" >&2)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

do-venv:
	@if test -e $(STAMP); then exit 0; fi; \
	echo "installing into $(VENV) (a few minutes the first time: PyTorch is large)"; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"Python 3.10 or newer, please (PYTHON=python3.12): this is {sys.version}")'; \
	test -x $(PY) || $(PYTHON) -m venv "$(VENV)"; \
	if test "$(TORCH)" = cpu; then \
	    $(PIP) --index-url "$(TORCH_INDEX)" $(if $(LOCKED),$$(grep -oE '^(torch|torchvision)==[0-9.]+' requirements-torch.lock),torch torchvision) $(QUIETLY); \
	fi; \
	if test -n "$(LOCKED)"; then \
	    $(PIP) --require-hashes --no-deps -r requirements.lock $(QUIETLY); \
	    test "$(TORCH)" = cpu || $(PIP) --require-hashes --no-deps -r requirements-torch.lock $(QUIETLY); \
	    $(PIP) --no-deps -e . $(QUIETLY); \
	else \
	    $(PIP) -r requirements.txt $(QUIETLY); \
	fi; \
	rm -f "$(BIN)"/../.installed-*; touch $(STAMP)

# --- the book

do-book: do-venv
	@$(STAGE) _build/source --repo-url "$$REPO_URL" --branch "$$BRANCH"
	@$(MAKE) do-execute INTO=_build/source/book
	@$(SPHINX) _build/source --config _build/source/_config.yml > _build/sphinx.log || { cat _build/sphinx.log; exit 1; }
	@$(STAGE) --prune _build/html
	@$(PY) -c 'import pathlib; print("open", pathlib.Path("_build/html/index.html").resolve().as_uri())'

do-html: do-venv
	@$(STAGE) _build/committed --committed --repo-url "$$REPO_URL" --branch "$$BRANCH"
	@$(SPHINX) _build/committed --config _build/committed/_config.yml > _build/sphinx.log || { cat _build/sphinx.log; exit 1; }
	@$(STAGE) --prune _build/html
	@$(PY) -c 'import pathlib; print("open", pathlib.Path("_build/html/index.html").resolve().as_uri())'

# Addresses in the pages, asked for one by one: needs the network.
do-linkcheck: do-venv
	@$(STAGE) _build/committed --committed --repo-url "$$REPO_URL" --branch "$$BRANCH"
	@$(BOOK) build _build/committed --builder linkcheck --config _build/committed/_config.yml --path-output _build/links

# The whole book on paper, proofs unfolded: needs Chromium and poppler-utils, and says so where they are missing.
do-pdf: do-html
	@$(PY) tools/print_book.py _build/html _build/book.pdf

do-notebooks: do-venv
	@$(MAKE) do-execute INTO=book

do-notebook: do-venv
	@test -n "$$NAME" || { echo 'which one? make notebook NAME=03_gradient_descent' >&2; exit 2; }
	@$(RUN) "$$NAME"

# Bring every notebook of INTO up to date: JOBS side by side, longest first, the ledger after all the others.
do-execute: do-venv
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
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

# Notebooks, tests, and the examples in the library's docstrings.
test: lint
	@$(PY) -m pytest book tests ncutils --nbval --doctest-modules -n $(JOBS) --dist loadfile --nbval-cell-timeout=1200 -q --durations=5

# Instruction sets this machine is made to play; the commit's hash picks the chapters, so that all have their turn.
processors: venv
	@$(PY) tools/processors.py --on avx2 sse --rotate 10

# Hours; the reports of chapter 13, which then wants `make notebook NAME=13_trust`.
attacks: venv
	@$(PIP) -e '.[attacks]' $(QUIETLY)
	@for attack in flips fuzz signals; do $(PY) tools/trust.py $$attack > /dev/null || exit; done
	@$(PY) tools/mutants.py 260 10800

# --- data, experiments, timings

data: venv
	@$(PY) -m ncutils data mnist cifar10

paper: venv
	@$(PY) -m ncutils paper --device '$(DEVICE)'

bench: venv
	@$(PY) benchmarks/run.py

# --- the rest

# Two files, because machines without CUDA take PyTorch from another index (TORCH=cpu), where its hashes differ.
CUDA := torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+
lock: venv
	@command -v uv > /dev/null || { echo 'make lock needs uv: pip install uv' >&2; exit 2; }
	@mkdir -p _build
	@uv pip compile pyproject.toml --extra book --extra data --extra test --universal --python-version 3.11.5 \
	    --generate-hashes --no-annotate --no-header --quiet --upgrade --output-file _build/all.lock
	@awk -v head='# Exact versions for CPython 3.11.5 and newer, without PyTorch; written by `make lock`.' \
	    'BEGIN {print head} /^[a-z]/ {skip = /^($(CUDA))==/} !skip' _build/all.lock > requirements.lock
	@awk -v head='# PyTorch and, on Linux, its CUDA libraries; written by `make lock`. Without CUDA: TORCH=cpu.' \
	    'BEGIN {print head; skip = 1} /^[a-z]/ {skip = !/^($(CUDA))==/} !skip' _build/all.lock > requirements-torch.lock

url:
	@test -n "$$REPO_URL" || { echo 'which one? make url REPO_URL=https://github.com/you/repo' >&2; exit 2; }
	@$(PY) tools/set_url.py "$$REPO_URL" --branch "$$BRANCH"

clean:
	rm -rf _build build .pytest_cache .ruff_cache .mypy_cache .hypothesis
