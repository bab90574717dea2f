"""The same products as benches/na_latency.rs, called by Python's ctypes. For each line that it reads it makes a round of calls in
each form, and answers with the median nanoseconds with each handle.

usage: ctypes_latency.py LIBRARY ROWS COLS BITS CALLS
"""

import array
import ctypes
import json
import statistics
import sys
import time

library = ctypes.CDLL(sys.argv[1])
rows, cols, bits, calls = map(int, sys.argv[2:])
matmul = library.apl_matmul_f64
matmul.argtypes = [ctypes.c_int32, ctypes.POINTER(ctypes.c_double), ctypes.c_int64, ctypes.POINTER(ctypes.c_double),
                   ctypes.c_int64, ctypes.c_int64]
assert library.apl_ffi_init(b'{"threads":1}') == 0
w = (ctypes.c_double * (rows * cols))(*((i * 37 % 101 - 50) / 64 for i in range(rows * cols)))


def made(activations):
    handle = ctypes.c_int32()
    options = json.dumps({"bits": bits, "activations": activations}).encode()
    status = library.apl_weights_from_f64(w, ctypes.c_int64(rows * cols), ctypes.c_int64(rows), ctypes.c_int64(cols), options,
                                          ctypes.byref(handle))
    assert status == 0, status
    return handle


# The last is none, and refused at once: what is left is marshalling.
handles = [made("f32"), made("int8"), ctypes.c_int32(0)]
del w
numbers = [(i * 53 % 97 - 48) / 32 for i in range(cols)]
packed = array.array("d", numbers)
In, Out = ctypes.c_double * cols, ctypes.c_double * rows


def lists(h):
    """A list goes in and a list comes out."""
    y = Out()
    matmul(h, In(*numbers), cols, y, rows, 1)
    return list(y)


def arrays(h):
    """An array of doubles is copied in, and one is made of what comes out."""
    y = Out()
    matmul(h, In.from_buffer_copy(packed), cols, y, rows, 1)
    return array.array("d", bytes(y))


def views(h):
    """Nothing is copied: the library reads and writes Python's own memory."""
    y = array.array("d", bytes(8 * rows))
    matmul(h, In.from_buffer(packed), cols, Out.from_buffer(y), rows, 1)
    return y


for handle in handles[:2]:
    assert matmul(handle, In(*numbers), cols, Out(), rows, 1) == 0
    assert any(lists(handle)) and lists(handle) == list(arrays(handle)) == list(views(handle))


def median(form, handle):
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        form(handle)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times)


for line in sys.stdin:
    print(json.dumps({form.__name__: [median(form, h) for h in handles] for form in (lists, arrays, views)}), flush=True)
