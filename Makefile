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
# The tests run on the release build, which is compiled once for all of them.
TEST = $(CARGO) test --release
ABI = $(shell sed -n 's/^.define APL_FFI_ABI_VERSION //p' include/apl_ffi.h)
DEMO = target/ctest/demo

.PHONY: help build run test apltest apltest-libjay apltest-uiua ctest header install uninstall \
  check-installed test-large lint asan tsan valgrind fuzz bench peers latency validate \
  validate-torch results kernels test-kernels lint-kernels test-fake-gpu test-gpu

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the library and the command line, optimised
	$(CARGO) build --release

# For `install`, which may run as a user without a compiler: an existing library is not rebuilt.
$(RELEASE)/libapl_ffi.so:
	$(CARGO) build --release

run: $(DEMO) ## print error, size and speed on this machine, and tell a story with the demonstration model
	./$(DEMO)
	@echo
	$(RELEASE)/apl-ffi run demo "Once upon a time"

# At run time, the program finds the library beside itself, by its soname.
$(DEMO): ctest/demo.c include/apl_ffi.h build
	@mkdir -p $(@D)
	@ln -sf ../../$(RELEASE)/libapl_ffi.so $(@D)/libapl_ffi.so.$(ABI)
	$(CC) $(CFLAGS) $(WARNINGS) -Iinclude $< -o $@ -L$(RELEASE) -lapl_ffi -lm -Wl,-rpath,'$$ORIGIN'

test: ## run every test of the release build: Rust, C, C++, and programs against an installed tree
	$(TEST)
	$(MAKE) --no-print-directory ctest check-installed

ctest: build ## run the C programs
	ctest/run.sh $(RELEASE) target/ctest

apltest: ## test the APL side: check its source, call every function through an emulated ⎕NA
	$(TEST) --test apl

# Another APL interpreter, from PyPI.
LIBJAY = target/libjay
$(LIBJAY)/ready:
	$(PYTHON) -m venv $(LIBJAY)
	$(LIBJAY)/bin/pip install -q --disable-pip-version-check libjay==0.4.99
	@touch $@

apltest-libjay: build $(LIBJAY)/ready ## run the functions and examples of the APL namespace in libjay, an APL interpreter
	$(LIBJAY)/bin/python apl/tests/interpreted.py $(RELEASE)/libapl_ffi.so $(MODELS)

# Another array language. If it is not installed, it is built, which takes minutes.
UIUA ?= $(or $(shell command -v uiua),target/uiua/bin/uiua)
MODEL ?= models/demo/stories.json
target/uiua/bin/uiua:
	$(CARGO) install uiua --version 0.19.1 --debug --no-default-features --features binary,ffi --root target/uiua \
	  --target-dir target/uiua-build

apltest-uiua: build $(UIUA) ## call the library from Uiua; MODEL is the model to talk to
	APL_FFI_LIBRARY='$(abspath $(RELEASE))/libapl_ffi.so' MODEL='$(abspath $(MODEL))' $(UIUA) run interop/uiua/quantised.ua

kernels: ## rebuild the embedded images of the CUDA kernels, with compilers from PyPI
	$(PYTHON) tools/kernels.py images

test-kernels: ## test the CUDA kernels on the CPU: as fibers, under ASan and UBSan, under TSan
	$(PYTHON) tools/kernels.py check
	tests/kernels/run.sh target/kernels

test-fake-gpu: build ## test the CUDA backend with an emulated driver, which runs the kernels on the CPU
	tests/kernels/fake_cuda.sh target/fake-cuda
	tests/gpu.sh $(RELEASE) target/fake-cuda

test-gpu: build ## test the CUDA backend on a GPU, with kernels precompiled and compiled by the driver
	tests/gpu.sh $(RELEASE)

lint-kernels: ## compile the CUDA kernels with a second compiler: no warnings, no spills
	$(PYTHON) tools/kernels.py lint

header: ## generate include/apl_ffi.h from the sources
	APL_FFI_BLESS=1 $(TEST) --test header the_header_is

install: $(RELEASE)/libapl_ffi.so ## install library, header, pkg-config and CMake files, and the CLI with its model; PREFIX, LIBDIR, INCLUDEDIR, DESTDIR
	@PREFIX='$(PREFIX)' LIBDIR='$(LIBDIR)' INCLUDEDIR='$(INCLUDEDIR)' DESTDIR='$(DESTDIR)' RELEASE='$(RELEASE)' \
	  packaging/install.sh

uninstall: ## remove what `make install` with the same variables installed
	rm -f '$(DESTDIR)$(LIBDIR)'/libapl_ffi.so* '$(DESTDIR)$(LIBDIR)/pkgconfig/apl_ffi.pc' \
	  '$(DESTDIR)$(INCLUDEDIR)/apl_ffi.h' '$(DESTDIR)$(PREFIX)/bin/apl-ffi'
	rm -rf '$(DESTDIR)$(LIBDIR)/cmake/apl_ffi' '$(DESTDIR)$(PREFIX)/share/apl_ffi/models/demo'
	-@rmdir '$(DESTDIR)$(PREFIX)/share/apl_ffi/models' '$(DESTDIR)$(PREFIX)/share/apl_ffi' 2> /dev/null || true

check-installed: build ## compile and run C and C++ programs against an installed tree
	packaging/check-installed.sh

test-large: ## run the test that writes and hashes 4.4 GB
	$(TEST) --test formats -- --ignored

lint: ## check formatting, run clippy, compile the fuzz targets, and check that files named in documents exist
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) check --quiet --manifest-path fuzz/Cargo.toml --target-dir target
	$(PYTHON) tools/check_paths.py

asan: ## run the Rust and C tests under AddressSanitizer, with assertions
	tools/sanitize.sh address

tsan: ## run the tests that use threads under ThreadSanitizer
	tools/sanitize.sh thread

# Valgrind does not support AVX-512. It runs one thread at a time, so programs about threads are
# left to tsan.
valgrind: export APL_FFI_ISA = avx2
valgrind: export APL_FFI_SANITIZED = valgrind
valgrind: build ## run the C programs under valgrind memcheck
	UNDER='valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite' \
	  ctest/run.sh $(RELEASE) target/valgrind lifecycle oneshot quantise weights errors

fuzz: ## run every fuzz target for FUZZ_SECONDS
	fuzz/run.sh $(FUZZ_SECONDS)

bench: build ## measure products against the limits of the machine; BENCH='--help' lists the filters
	$(CARGO) bench --bench matmul -- $(BENCH)

peers: build ## compare products with other libraries; PEERS='--help'; see bench/peers/requirements.txt
	$(PYTHON) bench/peers/compare.py $(PEERS)

latency: ## measure a call from C, through ⎕NA and from ctypes; writes target/bench/latency.json
	@mkdir -p target/bench
	$(CARGO) bench --bench na_latency -- --json '$(abspath target/bench/latency.json)'

validate: build ## compare every width with PyTorch and theory; writes a report to target/validation
	$(RELEASE)/apl-ffi validate --out target/validation

validate-torch: build ## the same, with PyTorch's results computed now and compared with the committed ones
	$(PYTHON) tools/make_validation_baselines.py --check --out target/validation/live.safetensors
	$(RELEASE)/apl-ffi validate --baselines target/validation/live.safetensors --out target/validation

results: ## render the committed results (bench/results) into the documents
	$(PYTHON) tools/render_results.py
