# Each verb works alone on a fresh clone: it sets up .venv first.
PYTHON ?= python3
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := .venv/bin
EXTRAS := vision,text,demo,data,reports,dashboard,export,native,bench,test,docs,dev

# Packages are installed without bytecode; what is imported is compiled once, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check fmt docs bench screenshots clean
help:
	@echo "make demo    set up and run the main job on embedded data"
	@echo "make test    set up and run all tests"
	@echo "make check   linters, types and the fast tests"
	@echo "make docs    build the site into docs/_build/html; warnings are errors"
	@echo "make bench   measure against baselines (2 minutes; FULL=1 for all sizes) and write the docs' tables"
	@echo "make screenshots   make every screenshot of docs/images anew (needs chromium)"

.venv/ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (torch first; a few minutes the first time)"
	@$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check $(TORCH)
	@$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

demo: .venv/ready
	@$(BIN)/mumoe demo

test: .venv/ready
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: .venv/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m 'not slow'

fmt: .venv/ready
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: .venv/ready
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: .venv/ready
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench,native]'
	@$(BIN)/python -m benchmarks.run $(if $(FULL),--full)

screenshots: .venv/ready
	@OMP_NUM_THREADS=1 $(BIN)/python -m docs.screenshots

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist
