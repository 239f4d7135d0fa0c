# Everything a developer runs. Needs Python 3.11 or newer (the pinned versions do), git and make; the rest goes into .venv.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
# Where the CPU build of torch is found on Linux when no wheel of it is at hand (pip's cache, PIP_FIND_LINKS).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)
ifeq ($(shell uname -s),Linux)
TORCH := $(TORCH)+cpu
endif
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PINNED := --constraint constraints.txt
# One thread for each process: the tests run side by side and the networks are small.
export OMP_NUM_THREADS := 1

.PHONY: help setup demo test lint samples clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo      prune sample_models/lenet_digits.onnx; model and report go to build/demo'
	@echo 'make test      the linter and the test suite'
	@echo 'make lint      the linter alone'
	@echo 'make samples   train and export the networks in sample_models/ anew'
	@echo 'make setup     only what the others need, in $(VENV)'
	@echo 'make clean     remove build/, caches and $(VENV)'

setup: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo 'Python has no venv module: on Debian, apt install python3-venv' >&2; exit 1; }

# torch comes first and alone, so that no later step can choose the CUDA build; setuptools, which torch needs too, comes
# before the project, whose build then takes place in this environment and fetches nothing that is not pinned.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Setting up $(VENV); the first time takes a minute or more.'
	$(PIP_INSTALL) --no-deps '$(TORCH)' 2> /dev/null || $(PIP_INSTALL) --no-deps '$(TORCH)' --index-url $(TORCH_INDEX)
	$(PIP_INSTALL) $(PINNED) setuptools
	$(PIP_INSTALL) $(PINNED) --no-build-isolation --editable '.[test]'
	touch $@

$(VENV)/.installed-samples: $(VENV)/.installed
	$(PIP_INSTALL) $(PINNED) --no-build-isolation --editable '.[samples]'
	touch $@

demo: setup
	@mkdir -p build/demo
	$(BIN)/onnx-obd sample_models/lenet_digits.onnx --data sample_models/lenet_digits_calib --sparsity 0.8 \
	  --output build/demo/lenet_digits.onnx --html build/demo/report.html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

test: lint
	$(BIN)/python -m pytest -q -n $(JOBS)

samples: $(VENV)/.installed-samples
	$(BIN)/python -m sample_models.train

clean:
	rm -rf build dist .pytest_cache .ruff_cache *.egg-info $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
