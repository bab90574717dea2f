"""apl_ffi, through its C ABI."""

import ctypes
import itertools
import json
import os
import time

import numpy as np

from . import copies, matrix, relative_error, vectors

def variants(bits):
    return ["int8", "f32"] + (["sign"] if bits == 1 else [])


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


class Contender:
    def __init__(self, variant, bits, rows, cols, group, rotate):
        self.lib = ctypes.CDLL(os.environ["APL_FFI_LIBRARY"])
        self.variant, self.bits, self.rows, self.cols, self.group = variant, bits, rows, cols, group
        self.rotate = rotate
        self.w = matrix(rows, cols)
        self.threads = None
        self.handles = []

    def check(self, status):
        if status < 0:
            text = ctypes.create_string_buffer(512)
            self.lib.apl_ffi_last_error(text, 512)
            raise RuntimeError(text.value.decode())

    def add_handle(self):
        """One more copy, quantised by the library itself: it then keeps float16 scales, as its users' matrices have."""
        options = {"bits": self.bits, "group": self.group, "activations": self.variant}
        handle = ctypes.c_int32()
        self.check(
            self.lib.apl_weights_from_f32(
                pointer(self.w), ctypes.c_int64(self.w.size), ctypes.c_int64(self.rows), ctypes.c_int64(self.cols),
                json.dumps(options).encode(), ctypes.byref(handle),
            )
        )  # fmt: skip
        self.handles.append(handle.value)

    def info(self):
        text = ctypes.create_string_buffer(4096)
        self.check(self.lib.apl_weights_info(self.handles[0], text, len(text)))
        return json.loads(text.value)

    def configure(self, n, threads, place):
        if threads != self.threads:
            self.check(self.lib.apl_ffi_cleanup())
            self.check(self.lib.apl_ffi_init(json.dumps({"backend": "cpu", "threads": threads}).encode()))
            self.threads, self.handles = threads, []
            self.add_handle()
        size = self.info()["bytes"]
        count = copies(size, self.rotate, place, n)
        while len(self.handles) < count:
            self.add_handle()
        x, y = vectors(n, self.cols), np.empty((n, self.rows), np.float32)
        self.buffers = (x, y)
        tail = (pointer(x), ctypes.c_int64(x.size), pointer(y), ctypes.c_int64(y.size), ctypes.c_int64(n))
        self.calls = itertools.cycle([(ctypes.c_int32(h), *tail) for h in self.handles[:count]])
        self.check(self.lib.apl_matmul(*next(self.calls)))
        x_used = np.where(x >= 0, 1, -1).astype(np.float32) if self.variant == "sign" else x
        return {"bytes": size, "error": relative_error(y, self.w, x_used), "copies": count}

    def turn(self, seconds):
        times, end = [], time.perf_counter() + seconds
        multiply, calls = self.lib.apl_matmul, self.calls
        while not times or time.perf_counter() < end:
            call = next(calls)
            start = time.perf_counter()
            status = multiply(*call)
            times.append(time.perf_counter() - start)
            self.check(status)
        return times
