#!/bin/sh
# Compiles the test programs in this folder against a built library, runs them, and counts the
# results that they print.
#
#     ctest/run.sh LIBRARY_FOLDER OUTPUT_FOLDER [PROGRAM...]
#
# from the root of the repository; without names, all programs. Environment:
#
# CC, CFLAGS   as for make
# RUNTIME      an archive linked whole into every program, which provides symbols to the library
#              (the runtime of a sanitizer)
# UNDER        a command that runs the programs, such as valgrind and its arguments
set -u

library=$1 out=$2
shift 2
if [ $# = 0 ]; then
  # demo prints a table, not test results.
  set -- $(ls ctest/*.c | sed 's|ctest/\(.*\)\.c|\1|' | grep -v '^demo$')
fi

abi=$(sed -n 's/^#define APL_FFI_ABI_VERSION //p' include/apl_ffi.h)
mkdir -p "$out" || exit 2
# Programs look for the soname in their own folder.
ln -sf "$(realpath "$library")/libapl_ffi.so" "$out/libapl_ffi.so.$abi" || exit 2

log=$out/log
: > "$log"
for name; do
  # Compiled and linked separately: a sanitizer's flag at linking would add the C compiler's runtime.
  # shellcheck disable=SC2086 # flags are words
  ${CC:-cc} ${CFLAGS:--O2} -std=c99 -Wall -Wextra -Wpedantic -Werror -Iinclude -c "ctest/$name.c" -o "$out/$name.o" \
    || exit 2
  # --as-needed: loadunload, which loads the library itself, must not be linked with it.
  ${CC:-cc} "$out/$name.o" ${RUNTIME:+-Wl,--whole-archive "$RUNTIME" -Wl,--no-whole-archive -rdynamic} -o "$out/$name" \
    -Wl,--as-needed "-L$library" -lapl_ffi -lm -pthread -ldl -lrt -lgcc_s -Wl,-rpath,'$ORIGIN' || exit 2
done
for name; do
  echo "$name:"
  # shellcheck disable=SC2086 # a command and its arguments
  { ${UNDER:-} "$out/$name" 2>&1; echo $? > "$out/status"; } | tee "$out/printed"
  # A program that crashes, or that a sanitizer ends, may not have printed a failure.
  if [ "$(cat "$out/status")" != 0 ] && ! grep -q '^not ok - ' "$out/printed"; then
    echo "not ok - $name exits with $(cat "$out/status")" | tee -a "$out/printed"
  fi
  cat "$out/printed" >> "$log"
done

skipped=$(grep -c '^ok - .* # skipped: ' "$log")
passed=$(($(grep -c '^ok - ' "$log") - skipped))
failed=$(grep -c '^not ok - ' "$log")
echo "$passed passed, $failed failed$([ "$skipped" = 0 ] || echo ", $skipped skipped")"
[ "$failed" = 0 ] && [ "$passed" != 0 ]
