"""What PyTorch, in float32, makes of the scenarios of `apl-ffi validate`.

    python tools/make_validation_baselines.py                 writes tests/data/validation/baselines.safetensors
    python tools/make_validation_baselines.py --out FILE      writes elsewhere
    python tools/make_validation_baselines.py --check         computes again, and compares with the committed file

Needs `torch` and `numpy`. Weights and inputs are those of src/validate/: splitmix64, made normal by Box and Muller.
The model is models/stories, float16 widened to float32. The file is safetensors with float32 matrices; its metadata has the
version of PyTorch, the SHA-256 of the model that was read, and that of its own data, by which damage is found.
"""

import argparse
import hashlib
import json
import math
import pathlib
import struct
import sys

import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "tests/data/validation/baselines.safetensors"
MODEL = ROOT / "models/stories"

VECTORS = 16
TOKENS, HIDDEN, HEADS, KV_HEADS, INTERMEDIATE = 32, 128, 4, 2, 256

# "<s>Once upon a time there was a small boat that lived in a harbour by the sea."
IDS = [1, 403, 407, 261, 378, 383, 286, 261, 262, 423, 388, 268, 414, 294, 351, 397, 396, 322, 261, 270, 295, 430, 277, 420, 268, 422, 265, 262, 411, 412, 426]

# By what two float32 computations of the same may differ, relative to the norm.
TOLERANCE = 1e-5


class Numbers:
    """The generator of src/validate/numbers.rs."""

    def __init__(self, seed):
        self.state = seed

    def uniform(self):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        return ((z ^ z >> 31) >> 11) / (1 << 53)

    def normal(self):
        r = math.sqrt(-2 * math.log(1 - self.uniform()))
        return r * math.cos(2 * math.pi * self.uniform())

    def normals(self, rows, cols, scale=1.0):
        values = [scale * self.normal() for _ in range(rows * cols)]
        return torch.tensor(values, dtype=torch.float64).to(torch.float32).reshape(rows, cols)


def dense_weights(kind, rows, cols):
    numbers = Numbers(1)

    def weight(i):
        if kind == "outlier_columns" and i % cols % 64 == 0:
            return 10 * numbers.normal()
        if kind == "heavy_tails":
            spread = sum(numbers.normal() ** 2 for _ in range(4))
            return numbers.normal() / math.sqrt(spread / 4)
        return numbers.normal()

    values = [weight(i) for i in range(rows * cols)]
    return torch.tensor(values, dtype=torch.float64).to(torch.float32).reshape(rows, cols)


def dense(out):
    for key, rows, cols in [
        ("dense_32x64", 32, 64),
        ("dense_256x512", 256, 512),
        ("outlier_columns", 256, 512),
        ("heavy_tails", 256, 512),
    ]:
        w, x = dense_weights(key, rows, cols), Numbers(2).normals(VECTORS, cols)
        out[key] = x @ w.T
        out[key + ".sign"] = torch.where(x >= 0, 1.0, -1.0) @ w.T


def rotary(x, theta):
    """x (heads, n, head_dim): elements i and i + head_dim/2 turn together."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def layer(x, w, at, heads, kv_heads, eps, theta):
    """A layer of Llama on x (n, hidden): what attention gives before its output matrix, and what the layer puts out."""
    n, hidden = x.shape
    split = lambda y, count: y.reshape(n, count, -1).transpose(0, 1)
    h = rms_norm(x, (hidden,), w[at + "input_layernorm.weight"], eps)
    q = rotary(split(h @ w[at + "self_attn.q_proj.weight"].T, heads), theta)
    k = rotary(split(h @ w[at + "self_attn.k_proj.weight"].T, kv_heads), theta)
    v = split(h @ w[at + "self_attn.v_proj.weight"].T, kv_heads)
    k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
    mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(n, -1)
    x = x + mixed @ w[at + "self_attn.o_proj.weight"].T
    h = rms_norm(x, (hidden,), w[at + "post_attention_layernorm.weight"], eps)
    gate = silu(h @ w[at + "mlp.gate_proj.weight"].T) * (h @ w[at + "mlp.up_proj.weight"].T)
    return mixed, x + gate @ w[at + "mlp.down_proj.weight"].T


def one_layer(out):
    numbers = Numbers(3)
    at, kv = "model.layers.0.", HIDDEN * KV_HEADS // HEADS
    w = {at + f"{norm}.weight": torch.ones(HIDDEN) for norm in ("input_layernorm", "post_attention_layernorm")}
    embedding = numbers.normals(HIDDEN, HIDDEN)
    for part, rows, cols in [
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", kv, HIDDEN),
        ("self_attn.v_proj", kv, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
        ("mlp.up_proj", INTERMEDIATE, HIDDEN),
        ("mlp.down_proj", HIDDEN, INTERMEDIATE),
    ]:
        w[at + part + ".weight"] = numbers.normals(rows, cols, 1 / math.sqrt(cols))
    mixed, x = layer(embedding[:TOKENS], w, at, HEADS, KV_HEADS, 1e-5, 10000.0)
    out["layer.attention"] = mixed
    out["layer.output"] = rms_norm(x, (HIDDEN,), None, 1e-5)


def stories():
    """The weights of the float model by name, and the SHA-256 of their file."""
    data = (MODEL / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    weights = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        assert tensor["dtype"] == "F16", name
        begin, end = tensor["data_offsets"]
        raw = bytearray(data[8 + length + begin : 8 + length + end])
        weights[name] = torch.frombuffer(raw, dtype=torch.float16).to(torch.float32).reshape(tensor["shape"])
    return weights, hashlib.sha256(data).hexdigest()


def model(out):
    config = json.loads((MODEL / "config.json").read_text())
    w, digest = stories()
    hidden, eps, layers = config["hidden_size"], config["rms_norm_eps"], config["num_hidden_layers"]
    heads, kv_heads, theta = config["num_attention_heads"], config["num_key_value_heads"], config["rope_parameters"]["rope_theta"]
    x = w["model.embed_tokens.weight"][IDS]
    for i in range(layers):
        _, x = layer(x, w, f"model.layers.{i}.", heads, kv_heads, eps, theta)
        following = f"model.layers.{i + 1}.input_layernorm.weight" if i + 1 < layers else "model.norm.weight"
        out[f"model.layer.{i}"] = h = rms_norm(x, (hidden,), w[following], eps)
    out["model.logits"] = h @ w["model.embed_tokens.weight"].T
    out["model.ids"] = torch.tensor([IDS], dtype=torch.float32)
    return digest


def written(tensors, digest):
    """The bytes of the file."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.to(torch.float32).contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header["__metadata__"] = {
        "torch": torch.__version__,
        "model_sha256": digest,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def read(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    return {
        name: torch.frombuffer(bytearray(data[8 + length :][slice(*t["data_offsets"])]), dtype=torch.float32).reshape(t["shape"])
        for name, t in header.items()
    }


def compare(live, committed):
    """A line each, and whether all agree."""
    if live.keys() != committed.keys():
        sys.exit(f"the committed file has other tensors: {sorted(live.keys() ^ committed.keys())}")
    good = True
    for name, tensor in live.items():
        error = float((tensor - committed[name]).norm() / tensor.norm())
        good &= error <= TOLERANCE
        print(f"{name:24} {str(tuple(tensor.shape)):>12}  {error:8.1e}  {'agrees' if error <= TOLERANCE else 'DIFFERS'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="where to write; without --check the committed file by default")
    parser.add_argument("--check", action="store_true", help="compare with the committed file; exit status 1 if they differ")
    arguments = parser.parse_args()
    tensors = {}
    with torch.no_grad():
        dense(tensors)
        one_layer(tensors)
        digest = model(tensors)
    out = arguments.out or (None if arguments.check else COMMITTED)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(written(tensors, digest))
        print(f"written: {out}")
    if arguments.check:
        print(f"PyTorch {torch.__version__} now, beside the committed file: relative error, at most {TOLERANCE:g}")
        if not compare(tensors, read(COMMITTED)):
            sys.exit(1)


main()
