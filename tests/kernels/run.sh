#!/bin/sh
# The kernels on a processor: as they are, under AddressSanitizer and UBSan, and under ThreadSanitizer.
# Usage: tests/kernels/run.sh BUILD-FOLDER
set -eu
cd "$(dirname "$0")/../.."
out=${1:-target/kernels}
mkdir -p "$out"
CXX=${CXX:-g++}
common="-std=c++17 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -DGPU_SHIM -rdynamic"

shim() { # NAME FLAGS…
    name=$1
    shift
    $CXX $common "$@" -c kernels/shim/shim.cpp -o "$out/shim_$name.o"
}

build() { # NAME FLAGS…
    name=$1
    shift
    $CXX $common "$@" -x c++ tests/kernels/kernels.cpp tests/kernels/transformer.cpp kernels/all.cu tests/kernels/planted.cu \
        -x none "$out/shim_$name.o" -o "$out/$name" -ldl -lpthread
}

# The kernels alone, as a library: what stands behind a driver that is none.
$CXX $common -O2 -fPIC -shared -x c++ kernels/all.cu kernels/shim/shim.cpp -o "$out/libkernels_host.so"

plain() {
    shim plain -O2
    build plain -O2
    "$out/plain"
}

addresses() {
    shim asan -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
    build asan -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
    ASAN_OPTIONS=detect_stack_use_after_return=0:detect_leaks=0 "$out/asan" one
}

threads() {
    if [ "$(uname -m)" != x86_64 ]; then
        echo "SKIPPED: fibers that ThreadSanitizer sees are there for x86-64 only"
        return
    fi
    shim tsan -O1 -DSHIM_RACES
    build tsan -O1 -DSHIM_RACES -fsanitize=thread
    # Older ThreadSanitizers want addresses that are not randomised; where that may not be asked for, it is tried as it is.
    fixed="setarch $(uname -m) -R"
    $fixed true 2> /dev/null || fixed=
    export TSAN_OPTIONS=halt_on_error=1
    for race in planted_race planted_between; do
        if $fixed "$out/tsan" $race > "$out/$race.log" 2>&1 || ! grep -q "data race" "$out/$race.log"; then
            echo "a race that was planted was not found: $race"
            cat "$out/$race.log"
            return 1
        fi
    done
    $fixed "$out/tsan"
}

plain > "$out/plain.log" 2>&1 &
plain=$!
addresses > "$out/addresses.log" 2>&1 &
addresses=$!
threads > "$out/threads.log" 2>&1 &
threads=$!

failed=
finish() { # PID NAME TITLE
    wait "$1" || failed="$failed $2"
    echo "$3"
    cat "$out/$2.log"
}
finish "$plain" plain "plain"
finish "$addresses" addresses "AddressSanitizer and UBSan"
finish "$threads" threads "ThreadSanitizer"
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
