#!/usr/bin/env python3
"""Makes the files under tests/data that tests/formats.rs reads, with writers and dequantisers
that are not ours: NumPy, the gguf and safetensors packages, and GGML itself.

    pip install numpy ml_dtypes gguf safetensors llama-cpp-python
    tools/make_golden_files.py [--libggml PATH/libggml-base.so]

The values are random with a fixed seed. GGML is asked for Q1_0 and Q2_0, which the gguf package
cannot dequantise; without --libggml it is looked for in llama-cpp-python's package.
"""

import argparse
import ctypes
import importlib.util
import json
from enum import IntEnum
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import safetensors.numpy
from gguf import GGMLQuantizationType as T

ROWS, COLS = 2, 256
DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


class Newer(IntEnum):
    """A type that the gguf package does not know yet."""

    Q2_0 = 42


# Where the float16 fields of a block are; the other bytes may be anything.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ4_NL: [0], T.TQ1_0: [52], T.TQ2_0: [64], T.Q1_0: [0], Newer.Q2_0: [0],
    T.IQ4_XS: [0],
}


def random_blocks(rng, kind):
    """(ROWS, bytes a row) of blocks whose bytes are random but for their float16 fields."""
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS * COLS // weights, size), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = rng.normal(0, 0.1, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8)
    return blocks.reshape(ROWS, -1)


def dequantised_by_ggml(lib, kind, blocks):
    row = getattr(lib, f"dequantize_row_{kind.name.lower()}")
    row.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    row.restype = None
    lib.ggml_blck_size.restype = ctypes.c_int64
    lib.ggml_type_size.restype = ctypes.c_size_t
    assert (lib.ggml_blck_size(int(kind)), lib.ggml_type_size(int(kind))) == gguf.GGML_QUANT_SIZES[kind]
    out = np.empty((ROWS, COLS), np.float32)
    row(blocks.ctypes.data, out.ctypes.data, ROWS * COLS)
    return out


def make_gguf(rng, lib):
    """One tensor of every type that is read, and metadata of every type of value."""
    gguf.GGML_QUANT_SIZES[Newer.Q2_0] = (64, 18)
    path = DATA / "blocks.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_uint64("test.u64", 2**63)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float32("test.f32", 0.5)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "⍳10")
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.strings", ["a", "⍴", ""])
    expected = {}
    floats = rng.normal(0, 1, (ROWS, COLS)).astype(np.float32)
    writer.add_tensor("F32", floats)
    expected["F32"] = floats
    writer.add_tensor("F16", floats.astype(np.float16))
    expected["F16"] = floats.astype(np.float16).astype(np.float32)
    bfloats = gguf.quants.quantize(floats, T.BF16)
    writer.add_tensor("BF16", bfloats, raw_dtype=T.BF16)
    expected["BF16"] = gguf.quants.dequantize(bfloats, T.BF16)
    for kind in HALVES:
        blocks = random_blocks(rng, kind)
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        by_ggml = kind in (T.Q1_0, Newer.Q2_0)
        expected[kind.name] = (
            dequantised_by_ggml(lib, kind, blocks) if by_ggml else gguf.quants.dequantize(blocks, kind)
        )
    writer.add_tensor("vector", floats[0, :32])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for values in expected.values():
        assert np.isfinite(values).all() and values.dtype == np.float32
    # Deflated, so that the reader's own inflating is tested too.
    np.savez_compressed(DATA / "blocks.npz", **expected)
    weights = {k: {"shape": [ROWS, COLS], "fp32": k} for k in expected}
    write_json("blocks.json", {"format_version": 2, "model": {"source_npz": "blocks.npz"}, "weights": weights})


def make_safetensors(rng):
    values = rng.normal(0, 1, (3, 5)).astype(np.float32)
    tensors = {
        "f32": values,
        "f16": values.astype(np.float16),
        "bf16": values.astype(ml_dtypes.bfloat16),
        "norm": values[0],
        "ids": np.arange(6, dtype=np.int64).reshape(2, 3),
    }
    safetensors.numpy.save_file(tensors, DATA / "small.safetensors", metadata={"format": "np"})
    values.tofile(DATA / "small.f32")
    index = {"metadata": {}, "weight_map": {"f32": "small.safetensors", "gone": "small.safetensors", "away": "none.safetensors"}}
    write_json("small.safetensors.index.json", index)


def make_early_manifest(rng):
    """Weights as earlier writers of the format left them: codes one a byte in the npz, and weights in
    files of their own. What they stand for is in early.f32, one after another."""
    rows, cols = 3, 11
    folder = DATA / "early"
    folder.mkdir(exist_ok=True)
    scales = rng.uniform(0.1, 1, rows).astype(np.float32)
    zero_points = rng.integers(0, 16, rows).astype(np.uint8)
    codes = rng.integers(0, 16, (rows, cols)).astype(np.uint8)
    signs = rng.integers(0, 2, (rows, cols)).astype(np.uint8)
    floats = rng.normal(0, 1, (rows, cols)).astype(np.float32)
    levels = codes.astype(np.float32) - zero_points[:, None].astype(np.float32)
    binary = (2 * signs.astype(np.float32) - 1) * scales[:, None]

    np.savez(
        folder / "weights.npz",
        inside_q4=codes, inside_q4_scales=scales, inside_q4_zero_point=zero_points, inside_shape=np.array([rows, cols]),
        signs_1bit=np.packbits(signs, axis=1), signs_scales=scales, signs_shape=np.array([rows, cols]),
        norm_fp32=floats[0],
    )
    np.packbits(signs, axis=1).tofile(folder / "one_1bit.bin")
    np.save(folder / "one_scales.npy", scales)
    np.savetxt(folder / "one_scales.txt", scales)
    np.save(folder / "two_q4.npy", codes)
    np.save(folder / "two_q4_scales.npy", scales.astype(np.float64))
    np.save(folder / "two_q4_zero_point.npy", zero_points.astype(np.int32))
    np.save(folder / "three_fp32.npy", floats)
    axis = {"index": 0, "name": "out_features"}
    weights = {
        "inside": {"bit_width": 4},
        "signs": {"shape": [rows, cols], "bit_width": 1},
        "norm": {"shape": [cols], "fp32": "norm_fp32"},
        "one": {"shape": [rows, cols], "packed": "one_1bit.bin", "scales": "one_scales.npy", "scale_axis": axis},
        "text": {"shape": [rows, cols], "packed": "one_1bit.bin", "scales_txt": "one_scales.txt", "scale_axis": axis},
        "two": {"shape": [rows, cols], "bit_width": 4, "packed": "one_1bit.bin", "scales": "one_scales.npy",
                "q": "two_q4.npy", "q_scales": "two_q4_scales.npy", "q_zero_point": "two_q4_zero_point.npy"},
        "three": {"shape": [rows, cols], "fp32": "three_fp32.npy"},
    }
    manifest = {"format_version": 2, "model": {"source_npz": "weights.npz"}, "weights": weights, **weights}
    write_json("early/weights.json", manifest)
    quantised = levels * scales[:, None]
    expected = [quantised, binary, binary, binary, quantised, floats]
    np.concatenate([e.ravel() for e in expected]).astype(np.float32).tofile(folder / "early.f32")


def write_json(name, value):
    (DATA / name).write_text(json.dumps(value, indent=1) + "\n")


def libggml(path):
    if path is None:
        package = importlib.util.find_spec("llama_cpp")
        path = Path(package.origin).parent / "lib" / "libggml-base.so"
    return ctypes.CDLL(str(path))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--libggml", help="path of libggml-base.so")
    lib = libggml(parser.parse_args().libggml)
    rng = np.random.default_rng(2)
    make_gguf(rng, lib)
    make_safetensors(rng)
    make_early_manifest(rng)


if __name__ == "__main__":
    main()
