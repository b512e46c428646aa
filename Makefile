# Every target installs what it needs into .venv by itself.
#   make demo    plan, quantize, run and measure the bundled model; writes demo-out/report.html
#   make test    the test suite (4 minutes on 2 idle cores)
#   make harness lm-evaluation-harness on isobit, in this process and over HTTP (a minute; installs 760 MB)
#   make slow    its long runs of the GPU kernels in Triton's interpreter (3 minutes on 2 cores)
#   make check   ruff, mypy --strict on the pure floors, import-linter
#   make sanitize the CPU kernels under AddressSanitizer and UBSan, their threads under ThreadSanitizer, sizes beyond 32 bits, models (3 minutes on 2 cores)
#   make proof   that docs/support.md is what the GPU kernels are now; 100 of them, drawn at random, are compiled for their targets without
#                a GPU and their machine code is read again (3 minutes on 2 cores)
#   make page    the web page of `isobit serve` in a headless Chromium, which Debian calls chromium (1 minute)
#   make emulate the CPU kernels on emulated machines: 64-bit Arm, x86 without AVX2 and with parts of it (2 minutes on 2 cores)
#   make support every GPU kernel compiled for every target, its machine code read and what was found written into docs/support.md
#                (hours on 2 cores, when nothing is cached)
#   make wheel   the source distribution and the wheel in dist/, checked in an environment of its own (2 minutes on 2 cores)
#   make bench   benchmarks that need no accelerator: about 15 minutes, 25 GB of disk (docs/benchmarks.md)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL = $(PIP) install --constraint constraints.txt
PURE   := -m isobit.errors -m isobit.formats.spec -m isobit.formats.table -m isobit.formats.schemes -m isobit.formats.rules

.DEFAULT_GOAL := help
.PHONY: help demo test harness slow check sanitize proof emulate support wheel bench clean

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/ready:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isobit needs Python 3.11 or newer; set PYTHON=... to one")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

KERNELS := $(wildcard src/isobit/kernels/cpu/cpp/*.cpp src/isobit/kernels/cpu/cpp/*.h src/isobit/kernels/cpu/cpp/build.py)

# Installing compiles the CPU kernels.
$(VENV)/isobit: $(VENV)/ready pyproject.toml setup.py constraints.txt $(KERNELS)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/isobit-test: $(VENV)/isobit
	$(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/isobit-harness: $(VENV)/isobit-test
	$(INSTALL) --editable '.[test,harness]'
	@touch $@

$(VENV)/isobit-check: $(VENV)/isobit
	$(INSTALL) --editable '.[check,serve]'
	@touch $@

demo: $(VENV)/isobit
	$(BIN)/isobit demo --out demo-out

test: $(VENV)/isobit-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m 'not slow and not harness'

harness: $(VENV)/isobit-harness
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/harness -m harness

page: $(VENV)/isobit-test
	$(INSTALL) playwright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cpu/test_page.py

slow: $(VENV)/isobit-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m slow $(if $(SHARE),--share $(SHARE))

check: $(VENV)/isobit-check
	@! git grep --line-number --extended-regexp '^(<{7}|>{7}) '  # what a merge has left, in any file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sanitize: $(VENV)/isobit-test
	tests/native/sanitize.sh $(BIN)/python $(ISA)

proof: $(VENV)/isobit-test
	$(BIN)/isobit compile --target all --support docs/support.md --check --sample 100

support: $(VENV)/isobit-test
	$(BIN)/isobit compile --target all --support docs/support.md

emulate: $(VENV)/isobit
	tests/native/emulate.sh $(BIN)/python $(MACHINES)

wheel: $(VENV)/isobit-test
	$(BIN)/python dev/check_wheel.py --out dist

bench: $(VENV)/isobit-test
	$(BIN)/python benchmarks/cpu_linear.py
	$(BIN)/python benchmarks/cpu_decode.py
	$(BIN)/python benchmarks/quantize_7b.py

clean:
	rm -rf demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
