# Each of these can be overridden, e.g. `make test VENV=.venv-old TORCH=torch==2.11.0`.
VENV ?= .venv
PYTHON ?= python3
# The package takes any torch from 2.11 on. The checkout names one version, so that its tests run today as they did
# when it was written, and installs it first, so that no dependency brings another build of it.
TORCH ?= torch==2.13.0

RUN := $(VENV)/bin/python
# Sets iterate in one order, so that property tests draw the same examples in every run.
export PYTHONHASHSEED := 0
# A worker for each core, and each with one thread.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count(), 8))')
TESTS := OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(RUN) -m pip install -q
STAMP := $(VENV)/.installed

ADAPTERS := adapters/langchain adapters/llamaindex adapters/dspy

.PHONY: demo setup test test-openai2 test-march lint check docs

demo: setup
	$(RUN) examples/demo.py

setup: $(STAMP)

# Redone when the dependencies change; otherwise it costs nothing.
$(STAMP): pyproject.toml $(ADAPTERS:=/pyproject.toml)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -c 'import torch' 2>/dev/null || $(PIP) '$(TORCH)'
	$(PIP) --editable '.[dev,metrics,server,openai,vision]' $(foreach adapter,$(ADAPTERS),--editable '$(adapter)[test]')
	touch $@

test: setup
	$(TESTS) $(ARGS)

# The same tests under the oldest major version of the SDK that the package takes. It lies in a folder of its own, before
# the other on the path.
OPENAI2 := $(VENV)/openai2

test-openai2: setup
	test -d $(OPENAI2)/openai || $(PIP) --target $(OPENAI2) 'openai>=2,<3'
	PYTHONPATH=$(OPENAI2) $(RUN) -c 'import openai; assert openai.__version__.startswith("2."), openai.__version__'
	PYTHONPATH=$(OPENAI2) $(TESTS) tests/openai_api tests/chat/test_remote.py $(ARGS)

# The tests of the CPU kernels, compiled for lesser processors than this one.
MARCHES := x86-64 haswell skylake-avx512 cooperlake
KERNELS := $(addprefix tests/engine/test_,$(addsuffix .py,native_kernels stack linear elementwise draw fuse quantize))

test-march: setup
	for march in $(MARCHES); do $(TESTS) --march $$march $(KERNELS) $(ARGS) || exit 1; done

lint: setup
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	for adapter in $(ADAPTERS); do (cd $$adapter && $(abspath $(RUN)) -m mypy) || exit 1; done

check: lint test test-openai2 test-march

docs: setup
	$(RUN) -m mkdocs build --strict
