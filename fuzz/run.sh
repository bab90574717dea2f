#!/bin/sh
# Runs every fuzz target for some seconds: fuzz/run.sh SECONDS, from the top of the repository. What is found lies under
# fuzz/artifacts, and ends the run.
set -eu

if ! command -v cargo-fuzz > /dev/null; then
  echo "cargo-fuzz is not here: cargo install cargo-fuzz" >&2
  exit 1
fi
# The sanitizer's option is unstable; this admits it to a stable compiler.
export RUSTC_BOOTSTRAP=1
for target in $(cargo fuzz list); do
  corpus=fuzz/corpus/$target
  mkdir -p "$corpus"
  # What the tests read is where the fuzzer begins.
  cp tests/data/*."$target" "$corpus/" 2> /dev/null || true
  leaks=1
  if [ "$target" = abi ]; then
    # What the threads of the pool allocate when they start lives as long as they do, and would count as leaked by the input that
    # started them, or at the end of the process, which does not wait for them.
    leaks=0
  fi
  # More memory than there is gives NULL, as it does without the sanitizer.
  export ASAN_OPTIONS="allocator_may_return_null=1:detect_leaks=$leaks"
  # 2 GiB: an allocation that a file's size does not account for is a finding.
  cargo fuzz run "$target" "$corpus" -- "-max_total_time=$1" -rss_limit_mb=2048 -malloc_limit_mb=1024 -timeout=10 \
    "-detect_leaks=$leaks"
  echo "ok - $target, $1 s"
done
