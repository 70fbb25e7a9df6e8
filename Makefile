# Each of these can be overridden, e.g. `make test VENV=.venv-old TORCH=torch==2.11.0`.
VENV ?= .venv
PYTHON ?= python3
# The package takes any torch from 2.11 on. The checkout names one version, so that its tests run today as they did
# when it was written, and installs it first, so that no dependency brings another build of it.
TORCH ?= torch==2.13.0

RUN := $(VENV)/bin/python
# Sets iterate in one order, so that property tests draw the same examples in every run.
export PYTHONHASHSEED := 0
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) -m pip install -q
STAMP := $(VENV)/.installed

.PHONY: setup test test-openai2 lint check example

setup: $(STAMP)

# Redone when the dependencies change; otherwise it costs nothing.
$(STAMP): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c 'import torch' 2>/dev/null || $(PIP) '$(TORCH)'
	$(PIP) --editable '.[dev,metrics,server,openai]'
	touch $@

test: setup
	$(RUN) -m pytest $(ARGS)

# The same tests under the SDK's former major version, which lies in a folder of its own, before the other on the path.
OPENAI2 := $(VENV)/openai2

test-openai2: setup
	test -d $(OPENAI2)/openai || $(PIP) --target $(OPENAI2) 'openai>=2,<3'
	PYTHONPATH=$(OPENAI2) $(RUN) -c 'import openai; assert openai.__version__.startswith("2."), openai.__version__'
	PYTHONPATH=$(OPENAI2) $(RUN) -m pytest tests/openai_api $(ARGS)

lint: setup
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

check: lint test test-openai2

example: setup
	$(RUN) examples/quickstart.py
