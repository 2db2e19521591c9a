# make demo     pictures from prompts with the shipped pipeline
# make test     everything that must hold: import floors, style, types, tests
# Both set up .venv themselves and need Python 3.11, 3.12 or 3.13, make, git and pip only.
#
# PYTHON=python3.13   another Python; an environment that was made with an older or newer one is made anew
# VENV=.venv-3.13     another folder for the environment, so that both stay
# TORCH_INDEX=URL     one more index for pip, when the environment is made: that of PyTorch's builds for the processor

SHELL  := /bin/bash
PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13 3,$(shell command -v python$(version))))
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= generations

PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Where PYTHON is named: its version, and that of the environment there is. Unnamed, what is there is used.
ifneq ($(origin PYTHON),file)
NAMED := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
MADE  := $(shell test -e $(VENV)/.made && sed -n 's/^version = \([0-9]*\.[0-9]*\).*/\1/p' $(VENV)/pyvenv.cfg)
OTHER := $(filter-out $(NAMED),$(MADE))
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-hostile lint fix peers dist clean distclean another-python

help:  ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /make \1: /p' $(MAKEFILE_LIST)

demo: $(VENV)/.compiled  ## make pictures from prompts with the shipped pipeline
	$(BIN)/dalle2 generate "a red circle above a blue square" "a small yellow star to the left of a large green triangle" \
		--n 2 --seed 1 --grid --out $(OUT)
	@echo "The pictures lie in $(abspath $(OUT)). Your own words: $(BIN)/dalle2 generate \"a green star on a black background\""

test: $(VENV)/.dev lint  ## check floors, style and types, and run the tests
	$(BIN)/python -m pytest

# DALLE2_TRIES=n makes n inputs of each kind in place of the table's numbers, DALLE2_SEED=n other ones.
test-hostile: $(VENV)/.dev  ## run the long forms of the tests with hostile files, signals and faults (hours)
	$(BIN)/python -m pytest -m hostile -s tests/hostile

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

another-python:
	@echo "$(VENV) was made with Python $(OTHER), and $(PYTHON) is $(NAMED): it is made anew"

# Some systems ship venv without pip; theirs can then install into the new environment from outside.
$(VENV)/.made: $(if $(OTHER),another-python)
	$(PYTHON) -m venv $(if $(OTHER),--clear) $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	touch $@

$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Setting up $(VENV); torch is the large part, a minute or two."
	$(PIP) --no-compile --editable .
	touch $@

# Where Python may not write bytecode, as in many containers, each process would compile torch anew, for two seconds.
# What is written for another Python can't be compiled, and isn't wanted.
$(VENV)/.compiled: $(VENV)/.core
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib dalle_2 || true
	touch $@

$(VENV)/.dev: $(VENV)/.core | $(VENV)/.compiled
	$(PIP) --no-compile --editable ".[dev]"
	touch $@

.venv-peers/.ready: benchmarks/setup_peers.sh benchmarks/peers.txt benchmarks/constraints-peers.txt pyproject.toml
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) sh benchmarks/setup_peers.sh
	touch $@
