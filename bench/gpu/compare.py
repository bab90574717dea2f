#!/usr/bin/env python3
"""Times products of the library on a CUDA device beside PyTorch's on the same device.

    bench/gpu/compare.py [--library PATH] [--rows 8192] [--cols 8192] [--vectors 1,16,64,4096] [--bits 1,2,4,8]

Ours are end to end through the C ABI: vectors of the host go in, sums come back, as `apl_matmul` has it. PyTorch's are timed twice:
float16 with everything on the device (by events), and end to end with page-locked vectors as ours. Of every figure the median over
--repeats calls is shown, in microseconds. Weights are rotated through more memory than the second-level cache holds. PyTorch is
optional; without it only ours are shown.

This script was written where there is no GPU. It has never been run on one: read its figures with that in mind, and say with them which
device, driver and date they are of.
"""

import argparse
import ctypes
import json
import pathlib
import random
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Bytes of weights that the calls of a case go round, more than any second-level cache has; and the most matrices.
ROTATED, MOST = 256 << 20, 64


def copies(matrix_bytes):
    return min(MOST, max(1, -(-ROTATED // matrix_bytes)))


class Ours:
    """The library, with CUDA demanded."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(str(path))
        if self.lib.apl_ffi_init(b'{"backend": "cuda"}') != 0:
            sys.exit(self.text(self.lib.apl_ffi_last_error))

    @staticmethod
    def text(fill):
        buffer = ctypes.create_string_buffer(4096)
        fill(buffer, len(buffer))
        return buffer.value.decode()

    def info(self):
        return json.loads(self.text(self.lib.apl_ffi_info))

    def check(self, status):
        if status != 0:
            sys.exit(self.text(self.lib.apl_ffi_last_error))

    def weights(self, rows, cols, bits):
        """Handles of random codes in groups of 32, enough of them to outgrow the cache."""
        codes_len, scales_len = rows * cols * bits // 8, rows * cols // 32
        scales = (ctypes.c_float * scales_len)(*([0.01] * scales_len))
        handles = []
        for _ in range(copies(codes_len + scales_len * 2)):
            handle = ctypes.c_int32()
            self.check(self.lib.apl_weights_from_codes(
                random.randbytes(codes_len), ctypes.c_int64(codes_len), bits, 1, scales, ctypes.c_int64(scales_len), None,
                ctypes.c_int64(0), ctypes.c_int64(rows), ctypes.c_int64(cols), 32, b'{"activations": "int8"}',
                ctypes.byref(handle)))
            handles.append(handle.value)
        return handles

    def time(self, rows, cols, bits, n, repeats):
        handles = self.weights(rows, cols, bits)
        x = (ctypes.c_float * (n * cols))(*[random.gauss(0, 1) for _ in range(n * cols)])
        y = (ctypes.c_float * (n * rows))()

        def once(i):
            self.check(self.lib.apl_matmul(handles[i % len(handles)], x, ctypes.c_int64(n * cols), y,
                                           ctypes.c_int64(n * rows), ctypes.c_int64(n)))

        result = median(once, repeats)
        for handle in handles:
            self.check(self.lib.apl_weights_free(handle))
        return result


def median(once, repeats):
    """Microseconds of a call, after a few that are not counted."""
    times = []
    for i in range(repeats + 5):
        start = time.perf_counter()
        once(i)
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times[5:])


def torch_times(torch, rows, cols, n, repeats):
    """(on the device, end to end) for float16, in microseconds."""
    count = copies(rows * cols * 2)
    weights = [torch.randn(rows, cols, dtype=torch.float16, device="cuda") for _ in range(count)]
    host = torch.randn(n, cols, dtype=torch.float16).pin_memory()
    back = torch.empty(n, rows, dtype=torch.float16).pin_memory()
    x = host.cuda()

    on_device = []
    for i in range(repeats + 5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        torch.matmul(x, weights[i % count].T)
        end.record()
        end.synchronize()
        on_device.append(start.elapsed_time(end) * 1e3)

    def end_to_end(i):
        back.copy_(torch.matmul(host.cuda(non_blocking=True), weights[i % count].T), non_blocking=True)
        torch.cuda.synchronize()

    return statistics.median(on_device[5:]), median(end_to_end, repeats)


def main():
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default=ROOT / "target" / "release" / "libapl_ffi.so")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--cols", type=int, default=8192)
    parser.add_argument("--vectors", type=numbers, default=[1, 16, 64, 4096])
    parser.add_argument("--bits", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=50)
    a = parser.parse_args()
    if a.cols % 32:
        parser.error("--cols is a multiple of 32")

    ours = Ours(a.library)
    print(ours.info()["cuda"], time.strftime("%Y-%m-%d"))
    try:
        import torch
    except ImportError:
        torch = None
        print("PyTorch is not installed: ours alone")
    print(f"{a.rows} x {a.cols}, int8 activations, groups of 32; microseconds")
    for n in a.vectors:
        line = [f"{n:5} vectors"]
        if torch:
            device, whole = torch_times(torch, a.rows, a.cols, n, a.repeats)
            line.append(f"torch float16 {device:9.1f} on the device, {whole:9.1f} end to end")
        line += [f"{bits} bits {ours.time(a.rows, a.cols, bits, n, a.repeats):9.1f}" for bits in a.bits]
        print("   ".join(line), flush=True)


if __name__ == "__main__":
    main()
