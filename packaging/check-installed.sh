#!/bin/sh
# Installs into a scratch folder and compiles a C and a C++ program against that tree only: with
# pkg-config, with CMake, and with CMake after the tree has been moved. Then runs the installed
# command line, and uninstalls. `make check-installed` runs it.
set -eu

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
sources=$PWD/ctest/installed
prefix=$scratch/prefix

make --no-print-directory install PREFIX="$prefix"

with_pkg_config() {
  # shellcheck disable=SC2046 # the flags are words
  "$@" $(PKG_CONFIG_PATH="$prefix/lib/pkgconfig" pkg-config --cflags --libs apl_ffi) "-Wl,-rpath,$prefix/lib"
}
if command -v pkg-config > /dev/null; then
  with_pkg_config "${CC:-cc}" -std=c99 -Wall -Wextra -Werror "$sources/use.c" -o "$scratch/use_c"
  with_pkg_config "${CXX:-c++}" -std=c++17 -Wall -Wextra -Werror "$sources/use.cpp" -o "$scratch/use_cpp"
  "$scratch/use_c"
  "$scratch/use_cpp"
  echo "ok - installed tree through pkg-config"
else
  echo "SKIPPED - pkg-config is not here: the installed .pc file is not tested"
fi

staged=$scratch/staged
make --no-print-directory install PREFIX=/usr LIBDIR=/usr/lib/deep DESTDIR="$staged"
mv "$staged/usr" "$scratch/moved"
for program in "$prefix/bin/apl-ffi" "$scratch/moved/bin/apl-ffi"; do
  if [ -f "$program" ]; then
    (cd "$scratch" && env -u APL_FFI_MODELS "$program" run demo "One day" -n 5 -q > "$scratch/story")
    grep -q '^One day' "$scratch/story"
    echo "ok - the installed program tells a story"
  else
    echo "SKIPPED - the command line was not built"
  fi
done

apart=$scratch/apart
make --no-print-directory install PREFIX="$apart" LIBDIR="$scratch/libs" INCLUDEDIR="$apart/include/apl_ffi"
# CMake searches lib by default; a library folder of another name must be given.
builds=0
for where in "CMAKE_PREFIX_PATH=$prefix" "apl_ffi_DIR=$scratch/moved/lib/deep/cmake/apl_ffi" "apl_ffi_DIR=$scratch/libs/cmake/apl_ffi"; do
  if command -v cmake > /dev/null; then
    builds=$((builds + 1))
    build=$scratch/build-$builds
    cmake -S "$sources" -B "$build" "-D$where" > "$scratch/log" 2>&1 \
      && cmake --build "$build" >> "$scratch/log" 2>&1 || { cat "$scratch/log"; exit 1; }
    "$build/use_c"
    "$build/use_cpp"
    echo "ok - installed tree through CMake and ${where%%=*} ($builds)"
  else
    echo "SKIPPED - cmake is not here: the installed CMake package is not tested"
  fi
done

make --no-print-directory uninstall PREFIX="$prefix" > /dev/null
left=$(find "$prefix" ! -type d)
[ -z "$left" ] || { echo "not ok - uninstall leaves $left"; exit 1; }
echo "ok - uninstall leaves nothing"
