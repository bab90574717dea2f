#!/bin/sh
# Runs tests under a sanitizer: tools/sanitize.sh address|thread, from the top of the repository.
#
# Rust's compiler carries LLVM's sanitizer runtimes and links them into executables only; a shared library leaves the
# runtime's symbols to the program that loads it. So the C programs are instrumented by the C compiler and linked with
# Rust's runtime instead of the C compiler's own: one runtime, which sees the memory of both sides. Calls between
# compiler and runtime are the same for GCC and LLVM (__asan_version_mismatch_check_v8 says so at link time).
#
# The option is unstable, which RUSTC_BOOTSTRAP=1 admits to a stable compiler. The target is named so that the options
# reach neither build scripts nor procedural macros. Profile: that of `cargo test`, with assertions and checks for overflow, which
# `make test` is without.
set -eu

sanitizer=$1
target=x86_64-unknown-linux-gnu
folder=target/sanitize-$sanitizer
symbols=$(rustc --print sysroot)/lib/rustlib/$target/lib

export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$folder"
# Read by the tests that limit the address space, and by those that would take minutes.
export APL_FFI_SANITIZED="$sanitizer"
# The sanitizer's checks are most of the time of compiling; full optimisation would double it.
export CARGO_PROFILE_TEST_OPT_LEVEL=1 CARGO_PROFILE_TEST_DEBUG=line-tables-only
case $sanitizer in
  address)
    runtime=$symbols/librustc-stable_rt.asan.a
    # Its own memory errors are what this crate is looked through for: dependencies go without, as the standard library does.
    export SANITIZE="-Zsanitizer=address" RUSTC_WORKSPACE_WRAPPER="$PWD/tools/rustc-sanitized.sh"
    # Tests ask for more memory than there is, and expect NULL. Leaks count too.
    export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1:detect_stack_use_after_return=1
    export LSAN_OPTIONS="suppressions=$PWD/tests/lsan.supp:print_suppressions=0"
    # Without the command line, and all that it is made of.
    set -- --no-default-features --lib --test abi_calls --test abi_lifecycle --test abi_weights --test formats
    # Minutes of arithmetic in safe Rust, whose kernels other tests reach.
    filter="--skip the_perplexity_of_a_model_falls --skip validate::"
    programs=
    ;;
  thread)
    runtime=$symbols/librustc-stable_rt.tsan.a
    # The standard library is not rebuilt; what that hides, and why, is told where it is suppressed.
    export RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer"
    export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp halt_on_error=1 allocator_may_return_null=1"
    # Not abi_weights: the end of a std::thread::scope is in std, and is not seen. ctest/threads.c does the same with
    # POSIX threads, whose joins are.
    set -- --lib --test abi_lifecycle
    filter="runtime:: thread"
    programs="threads lifecycle loadunload"
    ;;
  *)
    echo "usage: tools/sanitize.sh address|thread" >&2
    exit 2
    ;;
esac

# shellcheck disable=SC2086 # words
cargo test --target $target "$@" -- $filter
CFLAGS="-O1 -g -fsanitize=$sanitizer -fno-omit-frame-pointer" RUNTIME="$runtime" ctest/run.sh \
  "$folder/$target/debug/deps" "$folder/ctest" $programs
