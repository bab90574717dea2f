CARGO ?= cargo
CC ?= cc
PYTHON ?= python3
CFLAGS ?= -O2
WARNINGS = -std=c99 -Wall -Wextra -Wpedantic -Werror

RELEASE = target/release
ABI = $(shell sed -n 's/^.define APL_FFI_ABI_VERSION //p' include/apl_ffi.h)
DEMO = target/ctest/demo

.PHONY: help build run bench peers

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1 - /p' $(MAKEFILE_LIST)

build: ## the library, optimised
	$(CARGO) build --release

run: $(DEMO) ## the table of error, size and speed of this machine
	./$(DEMO)

# The library is found at run time by its soname, beside the program.
$(DEMO): ctest/demo.c include/apl_ffi.h build
	@mkdir -p $(@D)
	@ln -sf ../../$(RELEASE)/libapl_ffi.so $(@D)/libapl_ffi.so.$(ABI)
	$(CC) $(CFLAGS) $(WARNINGS) -Iinclude $< -o $@ -L$(RELEASE) -lapl_ffi -lm -Wl,-rpath,'$$ORIGIN'

bench: build ## products against the ceilings of the machine; BENCH='--help' lists the filters
	$(CARGO) bench --bench matmul -- $(BENCH)

peers: build ## products against other libraries; PEERS='--help', and bench/peers/requirements.txt first
	$(PYTHON) bench/peers/compare.py $(PEERS)
