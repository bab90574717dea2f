CARGO ?= cargo
CC ?= cc
PYTHON ?= python3
CFLAGS ?= -O2
WARNINGS = -std=c99 -Wall -Wextra -Wpedantic -Werror

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DESTDIR ?=

# Seconds for each fuzz target.
FUZZ_SECONDS ?= 20

RELEASE = target/release
# Tests of what ships, which is compiled once for all of them.
TEST = $(CARGO) test --release
ABI = $(shell sed -n 's/^.define APL_FFI_ABI_VERSION //p' include/apl_ffi.h)
DEMO = target/ctest/demo

.PHONY: help build run test apltest apltest-libjay apltest-uiua ctest header install uninstall check-installed test-large lint asan tsan valgrind fuzz bench peers latency validate validate-torch results kernels test-kernels lint-kernels test-fake-gpu test-gpu

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 - /p' $(MAKEFILE_LIST)

build: ## the library and the command line, optimised
	$(CARGO) build --release

# For `install`, which is run by someone who may have no compiler: it takes the library that is there.
$(RELEASE)/libapl_ffi.so:
	$(CARGO) build --release

run: $(DEMO) ## the table of error, size and speed of this machine, and a story by the demonstration model
	./$(DEMO)
	@echo
	$(RELEASE)/apl-ffi run demo "Once upon a time"

# The library is found at run time by its soname, beside the program.
$(DEMO): ctest/demo.c include/apl_ffi.h build
	@mkdir -p $(@D)
	@ln -sf ../../$(RELEASE)/libapl_ffi.so $(@D)/libapl_ffi.so.$(ABI)
	$(CC) $(CFLAGS) $(WARNINGS) -Iinclude $< -o $@ -L$(RELEASE) -lapl_ffi -lm -Wl,-rpath,'$$ORIGIN'

test: ## every test of the release build: Rust, C and C++, and programs against an installed tree
	$(TEST)
	$(MAKE) --no-print-directory ctest check-installed

ctest: build ## the C programs, a line a test
	ctest/run.sh $(RELEASE) target/ctest

apltest: ## the APL side alone: its source checked, ⎕NA emulated, every function called through it
	$(TEST) --test apl

# An APL interpreter of others.
LIBJAY = target/libjay
$(LIBJAY)/ready:
	$(PYTHON) -m venv $(LIBJAY)
	$(LIBJAY)/bin/pip install -q --disable-pip-version-check libjay==0.4.99
	@touch $@

apltest-libjay: build $(LIBJAY)/ready ## the functions and the examples of the APL namespace in libjay, an APL interpreter
	$(LIBJAY)/bin/python apl/tests/interpreted.py $(RELEASE)/libapl_ffi.so $(MODELS)

# An array language of others; where it is not installed it is built, which takes minutes.
UIUA ?= $(or $(shell command -v uiua),target/uiua/bin/uiua)
MODEL ?= models/demo/stories.json
target/uiua/bin/uiua:
	$(CARGO) install uiua --version 0.19.1 --debug --no-default-features --features binary,ffi --root target/uiua \
	  --target-dir target/uiua-build

apltest-uiua: build $(UIUA) ## the library from Uiua; MODEL is what it talks with
	APL_FFI_LIBRARY='$(abspath $(RELEASE))/libapl_ffi.so' MODEL='$(abspath $(MODEL))' $(UIUA) run interop/uiua/quantised.ua

kernels: ## the images of the CUDA kernels, by compilers from PyPI
	$(PYTHON) tools/kernels.py images

test-kernels: ## the CUDA kernels without a GPU: as fibers, under AddressSanitizer and UBSan, under ThreadSanitizer
	$(PYTHON) tools/kernels.py check
	tests/kernels/run.sh target/kernels

test-fake-gpu: build ## the CUDA backend without a GPU: the library unmodified, on a driver that is none and runs the kernels on the processor
	tests/kernels/fake_cuda.sh target/fake-cuda
	tests/gpu.sh $(RELEASE) target/fake-cuda

test-gpu: build ## the CUDA backend on the GPU of this machine, its kernels precompiled and compiled by the driver
	tests/gpu.sh $(RELEASE)

lint-kernels: ## the CUDA kernels through a second compiler: no warnings, no spills
	$(PYTHON) tools/kernels.py lint

header: ## include/apl_ffi.h, from the sources
	APL_FFI_BLESS=1 $(TEST) --test header the_header_is

install: $(RELEASE)/libapl_ffi.so ## the library, its header, and what pkg-config and CMake ask for; PREFIX, LIBDIR, INCLUDEDIR, DESTDIR
	@PREFIX='$(PREFIX)' LIBDIR='$(LIBDIR)' INCLUDEDIR='$(INCLUDEDIR)' DESTDIR='$(DESTDIR)' RELEASE='$(RELEASE)' \
	  packaging/install.sh

uninstall: ## what `make install` with the same variables put there
	rm -f '$(DESTDIR)$(LIBDIR)'/libapl_ffi.so* '$(DESTDIR)$(LIBDIR)/pkgconfig/apl_ffi.pc' \
	  '$(DESTDIR)$(INCLUDEDIR)/apl_ffi.h'
	rm -rf '$(DESTDIR)$(LIBDIR)/cmake/apl_ffi'

check-installed: build ## C and C++ programs against an installed tree
	packaging/check-installed.sh

test-large: ## the test that writes and hashes 4.4 GB
	$(TEST) --test formats -- --ignored

lint: ## formatting, clippy, and that the files which documents name exist
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(PYTHON) tools/check_paths.py

asan: ## the Rust and C tests under AddressSanitizer, with assertions
	tools/sanitize.sh address

tsan: ## the tests with threads under ThreadSanitizer
	tools/sanitize.sh thread

# Valgrind knows no AVX-512. It runs one thread at a time, so the programs about threads are left to tsan.
valgrind: export APL_FFI_ISA = avx2
valgrind: export APL_FFI_SANITIZED = valgrind
valgrind: build ## the C programs under valgrind's memcheck
	UNDER='valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite' \
	  ctest/run.sh $(RELEASE) target/valgrind lifecycle oneshot quantise weights errors

fuzz: ## every fuzz target for FUZZ_SECONDS
	fuzz/run.sh $(FUZZ_SECONDS)

bench: build ## products against the ceilings of the machine; BENCH='--help' lists the filters
	$(CARGO) bench --bench matmul -- $(BENCH)

peers: build ## products against other libraries; PEERS='--help', and bench/peers/requirements.txt first
	$(PYTHON) bench/peers/compare.py $(PEERS)

latency: ## what a call costs from C, through ⎕NA and from ctypes; the table goes to target/bench/latency.json
	@mkdir -p target/bench
	$(CARGO) bench --bench na_latency -- --json '$(abspath target/bench/latency.json)'

validate: build ## every width beside PyTorch and theory; the report goes to target/validation
	$(RELEASE)/apl-ffi validate --out target/validation

validate-torch: build ## the same with PyTorch's side computed now, which must agree with what is committed
	$(PYTHON) tools/make_validation_baselines.py --check --out target/validation/live.safetensors
	$(RELEASE)/apl-ffi validate --baselines target/validation/live.safetensors --out target/validation

results: ## the tables of committed results (bench/results) into the documents
	$(PYTHON) tools/render_results.py
