#!/usr/bin/env python3
"""Writes text sampled from a llama2.c checkpoint (version 0) and its tokenizer: stories apart by a line of <|endoftext|>.

    pip install torch
    tools/sample_stories.py stories260K.bin tok512.bin sampled.txt --megabytes 4

tools/train_demo.py pretrains on such text. Of the samples of TinyStories models it is the licence of the model that
counts: that of https://huggingface.co/karpathy/tinyllamas is MIT. Each story has its own temperature, 0.7 to 1.
"""

import argparse
import struct
import time

import numpy as np
import torch
import torch.nn.functional as F

BOS = 1


def read_checkpoint(path):
    """The header, and the weights in the order of llama2.c's export.py."""
    with open(path, "rb") as file:
        dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("7i", file.read(28))
        values = torch.from_numpy(np.fromfile(file, np.float32))
    assert vocabulary > 0, "an output matrix of its own is not read here"
    head = dim // heads
    at = 0

    def take(*shape):
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return values[at - size : at].view(*shape)

    weights = {
        "embedding": take(vocabulary, dim), "attention_norm": take(layers, dim), "q": take(layers, dim, dim),
        "k": take(layers, kv_heads * head, dim), "v": take(layers, kv_heads * head, dim), "o": take(layers, dim, dim),
        "ffn_norm": take(layers, dim), "gate": take(layers, hidden, dim), "down": take(layers, dim, hidden),
        "up": take(layers, hidden, dim), "norm": take(dim),
    }
    return layers, heads, kv_heads, head, context, weights


def read_tokens(path, count):
    """The bytes of each token."""
    tokens = []
    with open(path, "rb") as file:
        file.read(4)
        for _ in range(count):
            _, length = struct.unpack("fi", file.read(8))
            piece = file.read(length)
            byte = piece.startswith(b"<0x") and len(piece) == 6
            tokens.append(bytes([int(piece[3:5], 16)]) if byte else piece)
    return tokens


def norm(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-5)


def turn(x, cos, sin):
    """Neighbouring pairs of (stories, heads, head)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


@torch.inference_mode()
def sample(model, stories, random):
    """The ids of each story that ends within the context."""
    layers, heads, kv_heads, head, context, w = model
    # (layers, keys and values, stories, kv_heads, head, positions)
    cache = torch.zeros(layers, 2, stories, kv_heads, head, context)
    frequencies = 10000.0 ** (-torch.arange(0, head, 2) / head)
    temperature = 0.7 + 0.3 * torch.rand(stories, 1, generator=random)
    ids = torch.full((stories, 1), BOS)
    done = []
    for position in range(context):
        count = len(ids)
        angles = position * frequencies
        cos, sin = angles.cos(), angles.sin()
        x = w["embedding"][ids[:, -1]]
        for i in range(layers):
            a = norm(x, w["attention_norm"][i])
            q = turn((a @ w["q"][i].T).view(count, heads, head), cos, sin)
            cache[i, 0, :, :, :, position] = turn((a @ w["k"][i].T).view(count, kv_heads, head), cos, sin)
            cache[i, 1, :, :, :, position] = (a @ w["v"][i].T).view(count, kv_heads, head)
            keys, values = cache[i, :, :, :, :, : position + 1].flatten(1, 2)
            # Query heads of one key head stand together.
            scores = torch.bmm(q.reshape(count * kv_heads, heads // kv_heads, head), keys) / head**0.5
            seen = torch.bmm(scores.softmax(-1), values.transpose(1, 2))
            x = x + seen.view(count, -1) @ w["o"][i].T
            b = norm(x, w["ffn_norm"][i])
            x = x + (F.silu(b @ w["gate"][i].T) * (b @ w["up"][i].T)) @ w["down"][i].T
        odds = (norm(x, w["norm"]) @ w["embedding"].T / temperature).softmax(-1)
        odds[:, 0] = 0
        chosen = torch.multinomial(odds, 1, generator=random)
        over = (chosen == BOS).squeeze(1)
        done += [row[1:].tolist() for row in ids[over]]
        ids = torch.cat((ids, chosen), 1)
        goes_on = ids[:, -1] != BOS
        if over.any():
            ids, temperature, cache = ids[goes_on], temperature[goes_on], cache[:, :, goes_on]
        if len(ids) == 0:
            break
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("tokenizer")
    parser.add_argument("out")
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--stories", type=int, default=256, help="sampled side by side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = read_checkpoint(options.checkpoint)
    tokens = read_tokens(options.tokenizer, len(model[-1]["embedding"]))
    random = torch.Generator().manual_seed(options.seed)
    size, start = 0, time.time()
    with open(options.out, "w", encoding="utf-8") as out:
        while size < options.megabytes * 1e6:
            for ids in sample(model, options.stories, random):
                story = b"".join(tokens[i] for i in ids).decode("utf-8", "replace").strip()
                size += out.write(story + "\n<|endoftext|>\n")
            print(f"{size / 1e6:.1f} MB, {size / 1e3 / (time.time() - start):.0f} kB/s", flush=True)


if __name__ == "__main__":
    main()
