# make demo   train a small KOSMOS-1 on this machine and see what it reads; demo-speech: one that hears as well
# make test   the fast tests; test-slow the others; test-all both; test-transformers4 those of exports in transformers 4,
#             test-beam those of Apache Beam
# make bench  compare with transformers' Kosmos-2 in PyTorch
# make lint   ruff, and import-linter for the arrows between packages
#
# Each makes .venv first, if need be. Another interpreter: make PYTHON=python3.12 demo
#
# The tests compare with PyTorch. On Linux, pip takes PyTorch's CUDA build (3 GB more) unless PIP_EXTRA_INDEX_URL or
# PIP_FIND_LINKS shows it the CPU build.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install
# The tests and the demo are for CPUs, and the compilers for TPUs and GPUs look for none then.
export JAX_PLATFORMS ?= cpu
# Two files of tests at a time: most of the time goes into compiling, which takes one core.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
SHELL := /bin/bash
# glibc asks Linux for large pages: on CPU, XLA and PyTorch ask for much memory in every step, and clear less of it.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: .venv demo demo-speech test test-slow test-all test-transformers4 test-beam bench lint
.DELETE_ON_ERROR:

.venv: $(VENV)/has-demo $(VENV)/has-test

demo: $(VENV)/has-demo
	$(BIN)/kosmos train --config configs/demo.py --workdir out/demo
	$(BIN)/python -m kosmos_jax.evaluation.demo out/demo

demo-speech: $(VENV)/has-speech
	$(BIN)/kosmos train --config configs/demo_speech.py --workdir out/demo-speech
	$(BIN)/python -m kosmos_jax.evaluation.demo out/demo-speech

test: $(VENV)/has-test
	$(PYTEST)

# Status 5: no test has the mark.
test-slow: $(VENV)/compilers/is-complete
	PYTHONPATH=$(VENV)/compilers $(PYTEST) -m "slow and not gpu and not tpu" || [ $$? = 5 ]

test-all: test test-slow

# What an export holds is for transformers 4.57 too, and what that writes is imported.
test-transformers4: $(VENV)/transformers-4/is-complete
	PYTHONPATH=$(VENV)/transformers-4 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest \
	    tests/interop/test_remote_{api,code}.py \
	    tests/interop/test_export.py::test_pytorch_gives_our_numbers_and_import_our_bits \
	    tests/interop/test_import.py::test_configs_in_the_forms_that_transformers_has_written_are_read \
	    tests/interop/test_import.py::test_what_pytorch_changed_and_saved_comes_back

# Apache Beam wants an older protobuf than SentencePiece: beside it, in a folder of its own.
test-beam: $(VENV)/beam/is-complete
	PYTHONPATH=$(VENV)/beam $(BIN)/python -m pytest tests/data_pipeline/prepare/test_beam.py

$(VENV)/beam/is-complete: $(VENV)/has-test
	rm -rf $(@D)
	$(PIP) --target $(@D) 'apache-beam>=2.77,<3'
	@touch $@

bench: $(VENV)/has-test
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/input_pipeline.py

lint: $(VENV)/has-test
	$(BIN)/ruff check .
	$(BIN)/lint-imports

# What is installed, as empty files: they are made anew when setup.py changes.
$(VENV)/has-demo: setup.py $(BIN)/pip-works
	$(PIP) -e '.[demo]'
	@touch $@

# torchscale, the released decoder, asks for old releases of packages that its decoder does not use: hence --no-deps.
$(VENV)/has-test: setup.py $(BIN)/pip-works
	$(PIP) -e '.[demo,test]'
	$(PIP) --no-deps torchscale==0.3.0
	@touch $@ $(VENV)/has-demo $(VENV)/has-speech

$(VENV)/has-speech: setup.py $(BIN)/pip-works
	$(PIP) -e '.[demo,speech]'
	@touch $@ $(VENV)/has-demo

# What the planner compiles with, kosmos_jax[plan], in a folder of its own: JAX complains where it finds these packages
# and not their hardware.
$(VENV)/compilers/is-complete: $(VENV)/has-test
	rm -rf $(@D) && mkdir $(@D)
	packages=$$($(BIN)/python tests/planning/compilers.py); \
	[ -z "$$packages" ] || $(PIP) --no-deps --target $(@D) $$packages
	@touch $@

# Beside transformers 5, in a folder of its own that PYTHONPATH puts first.
$(VENV)/transformers-4/is-complete: $(VENV)/has-test
	rm -rf $(@D)
	$(PIP) --no-deps --target $(@D) transformers==4.57.6 'tokenizers>=0.22,<0.23' 'huggingface-hub>=0.34,<1'
	@touch $@

# Debian's python3 has no ensurepip unless python3-venv is installed; then a pip or virtualenv from elsewhere will do.
$(BIN)/pip-works:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	    echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) says: $$($(PYTHON) --version 2>&1 | tail -n 1)" >&2; \
	    echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	    exit 1; }
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; then :; \
	elif $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1; then :; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1 \
	    && $(PYTHON) -m venv --clear --without-pip $(VENV) \
	    && $(PYTHON) -m pip --python $(BIN)/python install pip; then :; \
	elif command -v virtualenv >/dev/null && virtualenv --clear --python "$$(command -v $(PYTHON))" $(VENV); then :; \
	else \
	    echo "$(PYTHON) cannot make a virtual environment: it comes without ensurepip and without pip. Install it:" >&2; \
	    echo "    sudo apt-get install python3-venv" >&2; \
	    exit 1; \
	fi
	@touch $@
