# make demo     pictures from prompts with the shipped pipeline
# make test     everything that must hold: import floors, style, types, tests
# Both set up .venv themselves and need Python 3.11, make, git and pip only.

SHELL  := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= generations

PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint fix peers dist clean distclean

help:  ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /make \1: /p' $(MAKEFILE_LIST)

demo: $(VENV)/.core  ## make pictures from prompts with the shipped pipeline
	$(BIN)/dalle2 generate "a red circle above a blue square" "a small yellow star to the left of a large green triangle" \
		--n 2 --seed 1 --grid --out $(OUT)
	@echo "The pictures lie in $(abspath $(OUT)). Your own words: $(BIN)/dalle2 generate \"a green star on a black background\""

test: $(VENV)/.dev lint  ## check floors, style and types, and run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## check floors, style and types
	$(BIN)/lint-imports
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/.dev  ## format, and repair what ruff can repair
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

peers: .venv-peers/.ready  ## set up an environment with other projects' code, for benchmarks that compare with it
	@echo "Ready: .venv-peers. BENCHMARKS.md names the commands that use it."

dist: $(VENV)/.dev  ## build wheel and sdist into dist/
	$(PIP) build
	$(BIN)/python -m build --outdir dist .

clean:  ## remove builds and caches
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environments too
	rm -rf $(VENV) .venv-peers

# Some systems ship venv without pip; theirs can then install into the new environment from outside.
$(VENV)/.made:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	touch $@

$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Setting up $(VENV); torch is the large part, a minute or two."
	$(PIP) --no-compile --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --no-compile --editable ".[dev]"
	touch $@

.venv-peers/.ready: benchmarks/setup_peers.sh benchmarks/peers.txt benchmarks/constraints-peers.txt pyproject.toml
	PYTHON=$(PYTHON) sh benchmarks/setup_peers.sh
	touch $@
