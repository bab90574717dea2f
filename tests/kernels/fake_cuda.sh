#!/bin/sh
# Builds the driver that is none, with the kernels in it, unless it is there and as new as they are.
# Usage: tests/kernels/fake_cuda.sh FOLDER; FOLDER/libcuda.so.1 is then what LD_LIBRARY_PATH may lead to.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-target/fake-cuda}
mkdir -p "$out"
if [ -e "$out/libcuda.so.1" ] && [ -z "$(find kernels tests/kernels -type f -newer "$out/libcuda.so.1")" ]; then
    exit
fi
# Its own calls and its thread-local variable without detours: every thread of a kernel takes them at every warp operation.
${CXX:-g++} -std=c++17 -g -O2 -fPIC -shared -Wall -Wextra -Werror -Wno-unknown-pragmas -DGPU_SHIM \
    -ftls-model=initial-exec -fno-plt -Wl,-Bsymbolic -Wl,-soname,libcuda.so.1 -x c++ tests/kernels/fake_cuda.cpp kernels/all.cu kernels/shim/shim.cpp \
    -o "$out/new" -ldl -lpthread
mv "$out/new" "$out/libcuda.so.1"
