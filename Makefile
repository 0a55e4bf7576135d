# Each target works on a fresh clone: it installs what it needs first.
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
TESTS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check
EXTRAS := vision,text,text-demo,demo,data,reports,dashboard,export,native,bench,test,docs,dev
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

# Packages are installed without bytecode; what is imported is compiled once, regardless of the environment.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check fmt docs wheel bench soak screenshots notebooks pythons setup browser clean
help:
	@echo "make demo    set up and run the main job on embedded data"
	@echo "make test    set up and run all tests (TESTS=tests/reports: some of them)"
	@echo "make check   linters, types and the fast tests"
	@echo "make pythons   the tests that need no torch, on every Python that is installed (FULL=1: the layer's tests too)"
	@echo "make docs    build the site into docs/_build/html; warnings are errors"
	@echo "make wheel   build the wheel and the source archive into dist/, and check them"
	@echo "make bench   measure against baselines (2 minutes; FULL=1 for all sizes) and write the docs' tables"
	@echo "make soak    kills, damaged files, bad calls, large data, counted (two hours; QUICK=1: under two minutes)"
	@echo "make screenshots   make every screenshot of docs/images again"
	@echo "make notebooks   run the notebooks of examples/ and save their outputs"

# Set-up: .venv/demo and .venv/test record what is installed, in either order; the second includes the first.
OLD := make: expected Python 3.11 or newer, got
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(OLD) " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml | .venv/bin/python
	@echo "Installing what the demo needs into .venv (torch first; a few minutes the first time)"
	@$(PIP) $(TORCH)
	@$(PIP) -e '.[demo]'
	@touch $@

.venv/test: pyproject.toml | .venv/bin/python
	@echo "Installing everything into .venv (torch first; a few minutes the first time)"
	@$(PIP) $(TORCH)
	@$(PIP) -e '.[$(EXTRAS)]'
	@touch $@ .venv/demo

browser: | .venv/bin/python
	@$(BIN)/python tests/browser_setup.py get

# Without a browser, and without a way to get one, nothing large is installed; else both are installed in parallel.
setup: .venv/bin/python
	@$(BIN)/python tests/browser_setup.py check
	@$(MAKE) --no-print-directory -j2 browser .venv/test

demo: .venv/demo
	@$(BIN)/mumoe demo

test: setup
	@$(PYTEST) $(TESTS)

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(PYTEST) -m 'not slow' $(TESTS)

pythons:
	@$(PYTHON) tests/pythons.py $(if $(FULL),--full)

fmt: .venv/test
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: .venv/test
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: .venv/bin/python
	@$(PIP) 'build>=1.2' 'twine>=6.1'
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/python -m twine check --strict dist/*

bench: .venv/test
	@$(BIN)/python -m benchmarks.run $(if $(FULL),--full)

soak: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m soak $(if $(QUICK),--quick)

screenshots: setup docs
	@OMP_NUM_THREADS=1 $(BIN)/python -m docs.screenshots

notebooks: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m docs.notebooks

clean:
	rm -rf .venv .pythons .mypy_cache .ruff_cache .pytest_cache build dist
