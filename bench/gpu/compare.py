#!/usr/bin/env python3
"""Times products of the library on a CUDA device beside those of others on the same device, in one run.

    bench/gpu/compare.py [--library PATH] [--rows 8192] [--cols 8192] [--vectors 1,16,64,4096] [--bits 1,2,4,8] [--json FILE]

Ours, with int8 and float32 activations (and signs), are end to end through the C ABI: vectors of the host go in, sums come back, as
`apl_matmul` has it. The peers (peers.py: cuBLAS in float16, PyTorch's int8 and int4, gemlite, humming, llama.cpp's types) are timed on
the device alone, which is in their favour; cuBLAS end to end too, with page-locked vectors. Of every figure the median over --repeats calls is shown, in microseconds. Weights are
rotated through more memory than the L2 cache holds. A peer that is not installed, or refuses, is left out with a line.

This script was written where there is no GPU. It has never been run on one: read its figures with that in mind, and say with them which
device, driver and date they are of. `--try-peers` runs what a processor can run of the peers, to see that they are called rightly.
"""

import argparse
import ctypes
import json
import pathlib
import random
import sys
import time

from peers import PEERS, copies, median

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


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

    def weights(self, rows, cols, bits, activations):
        """Handles of random codes in groups of 32, enough of them to outgrow the cache."""
        codes_len, scales_len = rows * cols * bits // 8, rows * cols // 32
        scales = (ctypes.c_float * scales_len)(*([0.01] * scales_len))
        handles = []
        for _ in range(copies(codes_len + scales_len * 2)):
            handle = ctypes.c_int32()
            self.check(self.lib.apl_weights_from_codes(
                random.randbytes(codes_len), ctypes.c_int64(codes_len), bits, 1, scales, ctypes.c_int64(scales_len), None,
                ctypes.c_int64(0), ctypes.c_int64(rows), ctypes.c_int64(cols), 32, json.dumps({"activations": activations}).encode(),
                ctypes.byref(handle)))
            handles.append(handle.value)
        return handles

    def time(self, rows, cols, bits, activations, n, repeats):
        handles = self.weights(rows, cols, bits, activations)
        x = (ctypes.c_float * (n * cols))(*[random.gauss(0, 1) for _ in range(n * cols)])
        y = (ctypes.c_float * (n * rows))()

        def once(i):
            self.check(self.lib.apl_matmul(handles[i % len(handles)], x, ctypes.c_int64(n * cols), y,
                                           ctypes.c_int64(n * rows), ctypes.c_int64(n)))

        result = median(once, repeats)
        for handle in handles:
            self.check(self.lib.apl_weights_free(handle))
        return result


def time_peer(make, device, a, what):
    """{vectors: microseconds}, with those of cuBLAS end to end as "end to end" beside; why, where it is left out."""
    try:
        peer = make(device, a.rows, a.cols, what)
        times = {n: peer.time(n, a.repeats) for n in a.vectors}
        if hasattr(peer, "end_to_end") and device != "cpu":
            times["end to end"] = {n: peer.end_to_end(n, a.repeats) for n in a.vectors}
        return times, None
    # Whatever a peer raises leaves that peer out, and no other.
    except Exception as why:
        return None, f"{type(why).__name__}: {why}".splitlines()[0][:160]


def show(name, times, vectors):
    print(f"{name:32}" + "".join(f"{times[n]:12.1f}" for n in vectors), flush=True)


def main():
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default=ROOT / "target" / "release" / "libapl_ffi.so")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--cols", type=int, default=8192)
    parser.add_argument("--vectors", type=numbers, default=[1, 16, 64, 4096])
    parser.add_argument("--bits", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--try-peers", action="store_true", help="what a processor can run of the peers, without the library")
    a = parser.parse_args()
    if a.cols % 32:
        parser.error("--cols is a multiple of 32")

    results = {"date": time.strftime("%Y-%m-%d"), "rows": a.rows, "cols": a.cols, "microseconds": {}}
    ours = None if a.try_peers else Ours(a.library)
    results["device"] = ours.info()["cuda"] if ours else "none: a processor"
    print(results["device"], results["date"])
    print(f"{a.rows} x {a.cols}, groups of 32; microseconds of a product with so many vectors")
    print(f"{'':32}" + "".join(f"{n:12}" for n in a.vectors))
    for bits in a.bits if ours else []:
        for activations in ("int8", "f32") + (("sign",) if bits == 1 else ()):
            name = f"ours {bits} bits {activations}, end to end"
            times = {n: ours.time(a.rows, a.cols, bits, activations, n, a.repeats) for n in a.vectors}
            results["microseconds"][name] = times
            show(name, times, a.vectors)
    for name, make, what in PEERS:
        times, why = time_peer(make, "cpu" if a.try_peers else "cuda", a, what)
        if why:
            print(f"{name:32}left out: {why}", flush=True)
            continue
        whole = times.pop("end to end", None)
        for name, times in [(name, times)] + ([(name + ", end to end", whole)] if whole else []):
            results["microseconds"][name] = times
            show(name, times, a.vectors)
    if a.json:
        a.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
