"""Products on a CUDA device by others, for compare.py: cuBLAS in float16, PyTorch's int8 and int4, gemlite, humming, llama.cpp's types.

A peer makes matrices of a width once, and multiplies them with vectors that are on the device. One that is not installed, or refuses
the shape or the device, raises, and compare.py says why it is left out. Their weights are random: only time is looked at here.

The device is a name of PyTorch's, so that what PyTorch can do on a processor too (float16, int8) can be tried without a GPU, as can
ggml with its own CPU device: `compare.py --try-peers`.
"""

import ctypes
import importlib
import itertools
import pathlib
import statistics
import sys
import time

# Bytes of weights that the calls of a case go round, more than any L2 cache has; and the most matrices.
ROTATED, MOST = 256 << 20, 64
GROUP = 32
UNCOUNTED = 5  # calls


def copies(matrix_bytes):
    return min(MOST, max(1, -(-ROTATED // matrix_bytes)))


def median(once, repeats):
    """Microseconds of a call by the host's clock."""
    times = []
    for i in range(repeats + UNCOUNTED):
        start = time.perf_counter()
        once(i)
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times[UNCOUNTED:])


class OfTorch:
    """A peer whose tensors are PyTorch's. `weights` are what `multiply(w, x)` takes, `vectors(n)` makes x."""

    def __init__(self, device):
        self.torch = importlib.import_module("torch")
        self.device = device

    def vectors(self, n):
        return self.torch.randn(n, self.cols, dtype=self.torch.float16, device=self.device)

    def time(self, n, repeats):
        x, count = self.vectors(n), len(self.weights)
        if self.device == "cpu":
            return median(lambda i: self.multiply(self.weights[i % count], x), repeats)
        times = []
        for i in range(repeats + UNCOUNTED):
            start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.multiply(self.weights[i % count], x)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        return statistics.median(times[UNCOUNTED:])


class Float16(OfTorch):
    """cuBLAS, by PyTorch."""

    def __init__(self, device, rows, cols, bits):
        super().__init__(device)
        self.cols = cols
        make = lambda: self.torch.randn(rows, cols, dtype=self.torch.float16, device=device)
        self.weights = [make() for _ in range(copies(rows * cols * 2))]

    def multiply(self, w, x):
        return self.torch.matmul(x, w.T)

    def end_to_end(self, n, repeats):
        """From page-locked vectors to page-locked sums, as `apl_matmul` has it."""
        torch, rows = self.torch, self.weights[0].shape[0]
        host = torch.randn(n, self.cols, dtype=torch.float16).pin_memory()
        back = torch.empty(n, rows, dtype=torch.float16).pin_memory()

        def once(i):
            y = self.multiply(self.weights[i % len(self.weights)], host.to(self.device, non_blocking=True))
            back.copy_(y, non_blocking=True)
            torch.cuda.synchronize()

        return median(once, repeats)


class Int8(OfTorch):
    """PyTorch's `_int_mm`: int8 times int8, int32 sums. It takes 17 vectors at the least; fewer are filled up."""

    def __init__(self, device, rows, cols, bits):
        super().__init__(device)
        self.cols = cols
        make = lambda: self.torch.randint(-127, 128, (rows, cols), dtype=self.torch.int8, device=device)
        self.weights = [make() for _ in range(copies(rows * cols))]

    def vectors(self, n):
        shape = (max(n, 32), self.cols)
        return self.torch.randint(-127, 128, shape, dtype=self.torch.int8, device=self.device)

    def multiply(self, w, x):
        return self.torch._int_mm(x, w.T)


class Int4(OfTorch):
    """PyTorch's int4 weights in groups, with bfloat16 vectors."""

    def __init__(self, device, rows, cols, bits):
        super().__init__(device)
        self.cols, torch = cols, self.torch
        self.operations = torch.ops.aten
        scales = torch.full((cols // GROUP, rows, 2), 0.01, dtype=torch.bfloat16, device=device)

        def make():
            codes = torch.randint(0, 256, (rows, cols // 2), dtype=torch.uint8, device=device)
            return self.operations._convert_weight_to_int4pack(codes, 8), scales

        self.weights = [make() for _ in range(copies(rows * cols // 2 + scales.nbytes))]

    def vectors(self, n):
        return super().vectors(n).to(self.torch.bfloat16)

    def multiply(self, w, x):
        return self.operations._weight_int4pack_mm(x, w[0], GROUP, w[1])


class Gemlite(OfTorch):
    """gemlite's Triton kernels: weights in groups, with float16 vectors."""

    def __init__(self, device, rows, cols, bits):
        gemlite = importlib.import_module("gemlite")
        super().__init__(device)
        self.cols, torch = cols, self.torch

        def make():
            layer = gemlite.GemLiteLinear(
                bits, group_size=GROUP, in_features=cols, out_features=rows, input_dtype=gemlite.DType.FP16,
                output_dtype=gemlite.DType.FP16)
            codes = torch.randint(0, 1 << bits, (rows, cols), dtype=torch.uint8, device=device)
            scales = torch.full((rows, cols // GROUP), 0.01, dtype=torch.float16, device=device)
            layer.pack(codes, scales, torch.full_like(scales, 1 << bits - 1), None)
            return layer

        self.weights = [make() for _ in range(copies(rows * cols * bits // 8))]

    def multiply(self, w, x):
        return w(x)


class Humming(OfTorch):
    """humming's kernels: weights in groups, with float16 vectors."""

    def __init__(self, device, rows, cols, bits):
        layer_of = importlib.import_module("humming.layer").HummingLayer
        dtypes = importlib.import_module("humming.dtypes")
        random_weight = importlib.import_module("humming.utils.test").generate_random_weight
        super().__init__(device)
        self.cols = cols
        codes, half = getattr(dtypes, f"uint{bits}"), dtypes.float16

        def make():
            layer = layer_of(shape_n=rows, shape_k=cols, a_dtype=half, b_dtype=codes, c_dtype=half, bs_dtype=half,
                             weight_scale_group_size=GROUP).to(device)
            _, _, weight, scale, _, _ = random_weight(n=rows, k=cols, group_size=GROUP, dtype=codes, scale_dtype=half)
            layer.load_weight(weight=weight, weight_scale=scale)
            layer.finish_load()
            return layer

        self.weights = [make() for _ in range(copies(rows * cols * bits // 8))]

    def multiply(self, w, x):
        return w(inputs=x)


class Ggml:
    """A type of llama.cpp's, by ggml: several products a graph, for a graph starts once. `device`: "cuda", or "cpu" to try it."""

    DEVICES = {"cpu": 0, "cuda": 1}  # enum ggml_backend_dev_type
    NODES = 16
    EXTRA = {
        "ggml_backend_dev_by_type": (ctypes.c_void_p, [ctypes.c_int]),
        "ggml_backend_dev_init": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
        "ggml_backend_dev_buffer_type": (ctypes.c_void_p, [ctypes.c_void_p]),
    }

    def __init__(self, device, rows, cols, name):
        folder = str(pathlib.Path(__file__).resolve().parent.parent / "peers")
        sys.path.insert(0, folder)
        self.module = importlib.import_module("contenders.ggml")
        sys.path.remove(folder)
        self.module.PROTOTYPES.update(self.EXTRA)
        lib = self.lib = self.module.Library()
        self.device = lib.backend_dev_by_type(self.DEVICES[device])
        if not self.device:
            raise NotImplementedError("this ggml was built without CUDA: CMAKE_ARGS=-DGGML_CUDA=ON pip install llama-cpp-python")
        self.backend, self.buft = lib.backend_dev_init(self.device, None), lib.backend_dev_buffer_type(self.device)
        self.rows, self.cols = rows, cols
        self.type = next(types[name] for types in self.module.TYPES.values() if name in types)
        self.weights = self.tensors(lib.context(MOST), [(self.type, cols, rows)] * self.count())
        random = importlib.import_module("numpy").random.default_rng(1)
        matrix = random.standard_normal((rows, cols), dtype="float32")
        codes = ctypes.create_string_buffer(lib.row_size(self.type, cols) * rows)
        lib.quantize_chunk(self.type, matrix.ctypes.data, codes, 0, rows, cols, None)
        for w in self.weights:
            lib.backend_tensor_set(w, codes, 0, len(codes))

    def count(self):
        return copies(self.lib.row_size(self.type, self.cols) * self.rows)

    def tensors(self, context, shapes):
        made = [self.lib.new_tensor_2d(context, *shape) for shape in shapes]
        if not self.lib.backend_alloc_ctx_tensors_from_buft(context, self.buft):
            raise NotImplementedError("no room on the device")
        return made

    def time(self, n, repeats):
        """Microseconds of a product, the start of a graph included in shares."""
        lib = self.lib
        inputs = self.tensors(lib.context(1), [(self.module.F32, self.cols, n)])
        values = importlib.import_module("numpy").random.default_rng(2).standard_normal((n, self.cols), dtype="float32")
        lib.backend_tensor_set(inputs[0], values.ctypes.data, 0, values.nbytes)
        nodes = min(self.NODES, len(self.weights))
        context = lib.context(nodes, 1)
        graph = lib.new_graph_custom(context, self.NODES + 1, False)
        for w in itertools.islice(self.weights, nodes):
            product = lib.mul_mat(context, w, inputs[0])
            if not lib.backend_dev_supports_op(self.device, product):
                raise NotImplementedError("the device does not multiply this type")
            lib.build_forward_expand(graph, product)
        if not lib.backend_alloc_ctx_tensors_from_buft(context, self.buft):
            raise NotImplementedError("no room on the device for the results")
        return median(lambda _: lib.backend_graph_compute(self.backend, graph), repeats) / nodes


# (name, what makes it, bits or the type of ggml)
PEERS = [("cuBLAS float16", Float16, 16), ("torch int8", Int8, 8), ("torch int4", Int4, 4)]
PEERS += [(f"gemlite {bits} bits", Gemlite, bits) for bits in (8, 4, 2, 1)]
PEERS += [(f"humming {bits} bits", Humming, bits) for bits in (8, 4, 2, 1)]
PEERS += [(f"ggml {name}", Ggml, name) for name in ("Q8_0", "Q4_0", "Q4_K", "Q2_K", "TQ2_0", "Q1_0")]
