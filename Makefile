# make demo     pictures from prompts with the shipped pipeline
# make test     everything that must hold: import floors, style, types, tests
# Both set up .venv themselves and need Python 3.11, make, git and pip only.

SHELL  := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= generations

PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# On a Linux machine without an NVIDIA driver, torch's CPU build: a tenth of the download. Empty: the usual build.
CPU_TORCH   := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),$(if $(shell command -v nvidia-smi),,$(CPU_TORCH)))

.DEFAULT_GOAL := help
.PHONY: help demo test lint fix peers bench dist clean distclean

help:  ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1  /p' $(MAKEFILE_LIST) | column -t -l 3

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

peers: $(VENV)-peers/.ready  ## compare with other projects' code, in an environment of its own
	$(VENV)-peers/bin/python -m pytest -m peers

bench: $(VENV)/.dev  ## take the figures of BENCHMARKS.md
	@test -d benchmarks || { echo "There is no benchmarks/ yet."; exit 1; }
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

dist: $(VENV)/.dev  ## build wheel and sdist into dist/
	$(PIP) build
	$(BIN)/python -m build --outdir dist .

clean:  ## remove builds and caches
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environments too
	rm -rf $(VENV) $(VENV)-peers

# Some systems ship venv without pip; theirs can then install into the new environment from outside.
$(VENV)/.made:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	touch $@

# torch comes first and alone, so that its own index is asked for it and for nothing else. An index out of reach
# is passed over, and the usual one serves.
$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Setting up $(VENV); torch is the large part, a minute or two."
	$(PIP) --no-compile --no-deps torch $(if $(TORCH_INDEX),--retries 0 --extra-index-url $(TORCH_INDEX) 2>/dev/null)
	$(PIP) --no-compile --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --no-compile --editable ".[dev]"
	touch $@

# Peers need what we don't: a setuptools that still has pkg_resources.
$(VENV)-peers/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(VENV)-peers/bin/python -m pip install --quiet "setuptools<80" "dalle2-pytorch==1.15.6"
	touch $@
