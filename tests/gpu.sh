#!/bin/sh
# The CUDA backend through everything that tests weight handles: CUDA is demanded, so that nothing passes by running on the CPU.
# Usage, from the top of the repository: tests/gpu.sh LIBRARY-FOLDER [DRIVER-FOLDER]
#
# With DRIVER-FOLDER: on the driver that is none, which is there. Small shapes: it takes milliseconds for a kernel.
# Without: on the GPU of this machine, once with the precompiled kernels, once with those that the driver compiles; skipped if there
# is none.
set -eu
library=$1 driver=${2:-} slow=
CARGO=${CARGO:-cargo}
export APL_FFI_BACKEND=cuda

suite() {
    $CARGO test --release --lib cuda::
    $CARGO test --release --test cuda --test abi_lifecycle --test abi_weights --test abi_calls --test formats
    # For these programs alone, or what cargo built for other flags would be built anew.
    CFLAGS="${CFLAGS:--O2}${slow:+ -DSLOW_DEVICE}" ctest/run.sh "$library" "target/ctest-gpu" errors lifecycle oneshot quantise threads weights
}

if [ -n "$driver" ]; then
    # For the programs alone: cargo would build anew what it builds with another LD_LIBRARY_PATH.
    UNDER="env LD_LIBRARY_PATH=$(realpath "$driver")"
    target=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export UNDER "CARGO_TARGET_${target}_RUNNER=$UNDER"
    slow=1
    suite
    exit
fi

# Only a machine without a driver or a device is passed over.
if ! said=$("$library/apl-ffi" info 2>&1); then
    case $said in
        *'no CUDA driver'* | *'no CUDA device'*)
            echo "SKIPPED - $said"
            exit
            ;;
    esac
    echo "$said" >&2
    exit 1
fi
echo "$said"
echo "kernels that were compiled before"
CUDA_DISABLE_PTX_JIT=1 suite
echo "kernels that the driver compiles"
CUDA_FORCE_PTX_JIT=1 suite
if command -v compute-sanitizer > /dev/null; then
    UNDER="compute-sanitizer --error-exitcode 9 --leak-check full" ctest/run.sh "$library" target/ctest-sanitizer weights
else
    echo "SKIPPED - compute-sanitizer is not on PATH"
fi
