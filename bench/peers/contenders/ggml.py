"""llama.cpp's ggml, by its C API: the product of its graphs on its CPU backend, as a model runs it.

A variant is a type of weights and where ggml keeps them: "plain", or one of the buffer types that rearrange weights for
the processor ("CPU_REPACK", "AMX"). A variant that this ggml does not have, or refuses for the type, is left out.
"""

import ctypes
import importlib.util
import itertools
import os
import time
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32
from ctypes import c_void_p

import numpy as np

from . import copies, matrix, relative_error, vectors

# Numbers of enum ggml_type, which are part of the GGUF file format.
TYPES = {8: {"Q8_0": 8}, 4: {"Q4_0": 2, "Q4_K": 12}, 2: {"Q2_K": 10, "TQ2_0": 35, "Q2_0": 42}, 1: {"Q1_0": 41}}
F32 = 0
WEIGHTS = 1  # GGML_BACKEND_BUFFER_USAGE_WEIGHTS

# Products in one graph where they are short, so that starting a graph does not count as multiplying.
NODES = 16


class InitParams(Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class ThreadpoolParams(Structure):
    _fields_ = [
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    ]


# name: (result, arguments)
PROTOTYPES = {
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_type_name": (c_char_p, [c_int]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, POINTER(c_float)]),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_reg": (c_void_p, []),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_buft_alloc_buffer": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_buffer_get_base": (c_void_p, [c_void_p]),
    "ggml_backend_buffer_get_size": (c_size_t, [c_void_p]),
    "ggml_backend_buffer_set_usage": (None, [c_void_p, c_int]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_alloc": (c_int, [c_void_p, c_void_p, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_cpu_set_threadpool": (None, [c_void_p, c_void_p]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_threadpool_params_default": (ThreadpoolParams, [c_int]),
    "ggml_threadpool_new": (c_void_p, [POINTER(ThreadpoolParams)]),
    "ggml_threadpool_free": (None, [c_void_p]),
}


class Library:
    """The functions of the libraries that llama-cpp-python brings."""

    def __init__(self):
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None:
            raise ImportError("llama-cpp-python is not installed")
        folder = os.path.join(spec.submodule_search_locations[0], "lib")
        parts = [
            ctypes.CDLL(os.path.join(folder, f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
            for name in ("ggml-base", "ggml-cpu", "ggml")
        ]
        for name, (result, arguments) in PROTOTYPES.items():
            function = next(getattr(p, name) for p in parts if hasattr(p, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)
        self.backend = self.backend_cpu_init()
        self.device = self.backend_reg_dev_get(self.backend_cpu_reg(), 0)

    def buffer_types(self):
        """Name to buffer type, "plain" first."""
        found = {"plain": self.backend_cpu_buffer_type()}
        address = self.backend_reg_get_proc_address(self.backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts")
        if address:
            extra = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device)
            for buft in itertools.takewhile(bool, (extra[i] for i in itertools.count())):
                found[self.backend_buft_name(buft).decode()] = buft
        return found

    def context(self, tensors, graphs=0):
        """A context with room for the descriptions of so many tensors and graphs."""
        size = tensors * self.tensor_overhead() + graphs * self.graph_overhead_custom(NODES + 1, False)
        return self.init(InitParams(size, None, True))


def variants(bits):
    lib = Library()
    return [f"{name} {buft}" for name in TYPES[bits] for buft in lib.buffer_types()]


class Contender:
    def __init__(self, variant, bits, rows, cols, group, rotate):
        name, buft = variant.split()
        self.lib = Library()
        self.type = TYPES[bits][name]
        if self.lib.type_name(self.type) is None or self.lib.type_name(self.type).decode().upper() != name.upper():
            raise NotImplementedError(f"this ggml has no {name}")
        self.buft = self.lib.buffer_types()[buft]
        self.w, self.rotate = matrix(rows, cols), rotate
        self.size = self.lib.row_size(self.type, cols) * rows
        self.codes = np.empty(self.size, np.uint8)
        self.lib.quantize_chunk(self.type, self.w.ctypes.data, self.codes.ctypes.data, 0, rows, cols, None)
        self.pool, self.threads = None, None
        self.held, self.weights = [], []  # (context, buffer) of what is alive; tensors
        self.work = []

    def grow(self, count):
        """Makes copies of the weights until there are `count`."""
        more = count - len(self.weights)
        if more <= 0:
            return
        rows, cols = self.w.shape
        context = self.lib.context(more)
        made = [self.lib.new_tensor_2d(context, self.type, cols, rows) for _ in range(more)]
        buffer = self.lib.backend_alloc_ctx_tensors_from_buft(context, self.buft)
        self.lib.backend_buffer_set_usage(buffer, WEIGHTS)
        if not self.weights and not self.supported(made[0]):
            raise NotImplementedError("this ggml does not multiply this type from this buffer")
        for tensor in made:
            self.lib.backend_tensor_set(tensor, self.codes.ctypes.data, 0, self.size)
        self.weights += made

    def supported(self, weights):
        context = self.lib.context(2)
        x = self.lib.new_tensor_2d(context, F32, self.w.shape[1], 1)
        answer = self.lib.backend_dev_supports_op(self.lib.device, self.lib.mul_mat(context, weights, x))
        self.lib.free(context)
        return answer

    def release_work(self):
        """Frees the graphs and buffers of the last configuration."""
        for release, thing in self.work:
            release(thing)
        self.work = []

    def configure(self, n, threads, place):
        lib, (rows, cols) = self.lib, self.w.shape
        self.release_work()
        count = copies(self.size, self.rotate, place, n)
        self.grow(count)
        if threads != self.threads:
            params = lib.threadpool_params_default(threads)
            pool = lib.threadpool_new(byref(params))
            lib.backend_cpu_set_threadpool(lib.backend, pool)
            lib.backend_cpu_set_n_threads(lib.backend, threads)
            if self.pool:
                lib.threadpool_free(self.pool)
            self.pool, self.threads = pool, threads

        self.nodes = max(1, NODES // n)
        turns = itertools.islice(itertools.cycle(self.weights[:count]), -(-count // self.nodes) * self.nodes)
        turns = list(turns)
        context = lib.context(len(turns) + 1, len(turns) // self.nodes)
        buffers = [lib.backend_buft_alloc_buffer(lib.backend_cpu_buffer_type(), 4 * n * k + 4096) for k in (cols, rows)]
        base_x, base_y = map(lib.backend_buffer_get_base, buffers)
        x = lib.new_tensor_2d(context, F32, cols, n)
        lib.backend_tensor_alloc(buffers[0], x, base_x)
        values = vectors(n, cols)
        lib.backend_tensor_set(x, values.ctypes.data, 0, values.nbytes)
        graphs = []
        for start in range(0, len(turns), self.nodes):
            graph = lib.new_graph_custom(context, NODES + 1, False)
            for w in turns[start : start + self.nodes]:
                y = lib.mul_mat(context, w, x)
                lib.backend_tensor_alloc(buffers[1], y, base_y)  # one output after the other into the same place
                lib.build_forward_expand(graph, y)
            graphs.append(graph)
        self.graphs = itertools.cycle(graphs)
        self.work = [(lib.free, context)] + [(lib.backend_buffer_free, b) for b in buffers]
        self.compute(graphs[0])
        y = np.ctypeslib.as_array(ctypes.cast(base_y, POINTER(c_float)), (n, rows))
        return {"bytes": self.size, "error": relative_error(y, self.w, values), "copies": count}

    def compute(self, graph):
        status = self.lib.backend_graph_compute(self.lib.backend, graph)
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status}")

    def turn(self, seconds):
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            graph = next(self.graphs)
            start = time.perf_counter()
            self.compute(graph)
            times.append((time.perf_counter() - start) / self.nodes)
        return times
