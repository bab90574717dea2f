"""ONNX Runtime's MatMulNBits with int8 activations (accuracy level 4).

A model holds one node for each copy of the matrix; all of them read the same activations. Each copy but the first has its rows
in another order, up to as many copies as rows: of equal ones ONNX Runtime keeps a single packed matrix, which then is in a cache (at 4 bits, 4096 x 4096, a product
took 0.40 ms with a hundred equal copies, 0.35 with one, 0.76 to 1.4 with a hundred different ones, Zen 4).
"""

import time

import numpy as np
import onnx
import onnxruntime as ort

from . import copies, matrix, relative_error, vectors

DOMAIN = "com.microsoft"


def variants(bits):
    return ["MatMulNBits"] if bits in (4, 8) else []


def quantise(w, bits, block):
    """Symmetric, absmax: codes (rows, blocks, block * bits / 8) with the first code lowest, scales (rows * blocks)."""
    rows, cols = w.shape
    w = w.reshape(rows, cols // block, block)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    # The element of largest magnitude is put on the end of the range that has one level more.
    largest = np.take_along_axis(w, np.abs(w).argmax(axis=2)[..., None], axis=2)
    scales = largest / low
    codes = (np.clip(np.rint(w / scales), low, high) - low).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return codes, scales.astype(np.float32).reshape(-1)


class Contender:
    def __init__(self, variant, bits, rows, cols, group, rotate):
        if group == 0 or cols % group:
            raise NotImplementedError("MatMulNBits wants groups that divide the columns")
        self.w = matrix(rows, cols)
        self.bits, self.group, self.rotate = bits, group, rotate
        self.codes, self.scales = quantise(self.w, bits, group)
        self.built = (None, None)

    def session(self, count, threads):
        """A session over `count` copies; count 0 is one tiny product, to time a call that does nothing."""
        codes, scales = self.codes, self.scales
        if count == 0:
            codes, scales = codes[:16, :1], scales[:16]
        rows, cols = codes.shape[0], codes.shape[1] * self.group
        nodes, initializers, outputs = [], [], []
        for i in range(max(count, 1)):
            turned = np.roll(scales.reshape(rows, -1), i, axis=0).reshape(-1)
            initializers.append(onnx.numpy_helper.from_array(np.roll(codes, i, axis=0), f"b{i}"))
            initializers.append(onnx.numpy_helper.from_array(turned, f"s{i}"))
            nodes.append(
                onnx.helper.make_node(
                    "MatMulNBits", ["x", f"b{i}", f"s{i}"], [f"y{i}"], domain=DOMAIN,
                    K=cols, N=rows, bits=self.bits, block_size=self.group, accuracy_level=4,
                )
            )  # fmt: skip
            outputs.append(onnx.helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, ["n", rows]))
        x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", cols])
        graph = onnx.helper.make_graph(nodes, "products", [x], outputs, initializers)
        opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(DOMAIN, 1)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def bind(self, session, x, y):
        """The first output of `session` goes to `y`, all others to `self.others`; `x` is its input."""
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        for i, output in enumerate(session.get_outputs()):
            to = self.others if i else y
            binding.bind_output(output.name, "cpu", 0, np.float32, y.shape, to.ctypes.data)
        return binding

    def configure(self, n, threads, place):
        size = self.codes.nbytes + self.scales.nbytes
        count = copies(size, self.rotate, place, n)
        if self.built != (count, threads):
            self.many = None  # releases the old copies before the new ones are made
            self.many = self.session(count, threads)
            self.empty = self.session(0, threads)
            self.built = (count, threads)
        self.count = count
        x = vectors(n, self.w.shape[1])
        y = np.empty((n, self.w.shape[0]), np.float32)
        self.others = np.empty_like(y)
        tiny_x, tiny_y = np.ascontiguousarray(x[:1, : self.group]), np.empty((1, 16), np.float32)
        self.buffers = (x, y, tiny_x, tiny_y)
        self.binding = self.bind(self.many, x, y)
        self.empty_binding = self.bind(self.empty, tiny_x, tiny_y)
        self.many.run_with_iobinding(self.binding)
        return {"bytes": size, "error": relative_error(y, self.w, x), "copies": count}

    def turn(self, seconds):
        """Times of products, less what Python and the session cost a call."""
        overhead = min(self.timed(self.empty, self.empty_binding) for _ in range(20))
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            times.append((self.timed(self.many, self.binding) - overhead) / self.count)
        return times

    @staticmethod
    def timed(session, binding):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        return time.perf_counter() - start
