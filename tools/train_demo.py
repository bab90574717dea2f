#!/usr/bin/env python3
"""Trains the demonstration model: a small Llama that tells short stories.

    pip install torch tokenizers safetensors numpy
    tools/train_demo.py sample --teacher stories260K.bin --tokenizer tok512.bin --stories 13000 --out sampled.txt
    tools/train_demo.py train --corpus tinystories.txt --sampled sampled.txt --out models/stories

The corpus is an excerpt of TinyStories (Eldan and Li 2023, CDLA-Sharing-1.0). An excerpt of a megabyte is little for
eight hundred thousand parameters, so the model first learns from stories that a smaller model wrote, one that was trained
on all of TinyStories (A. Karpathy's stories260K of llama2.c, MIT), and then from the excerpt, whose last tenth is held out
and decides when to stop. Runs on a CPU; with the same versions and threads it makes the same weights.
"""

import argparse
import json
import math
import re
import struct
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

BOS, EOS = 0, 1
SIZE = dict(vocab=1024, hidden=128, intermediate=320, layers=4, heads=4, kv_heads=2, context=512)
THETA, EPS = 10000.0, 1e-5


def rms(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


# --- The teacher: a llama2.c checkpoint, sampled many stories at a time ---------------------------------------------


class Teacher:
    """A llama2.c checkpoint (version 0, shared classifier) with a key/value cache."""

    def __init__(self, path):
        raw = Path(path).read_bytes()
        dim, ffn, layers, heads, kv_heads, vocab, context = struct.unpack("7i", raw[:28])
        assert vocab > 0, "a checkpoint with a classifier of its own"
        self.layers, self.heads, self.kv_heads, self.context = layers, heads, kv_heads, context
        self.width = dim // heads
        data, at = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy()), 0

        def take(*shape):
            nonlocal at
            at += math.prod(shape)
            return data[at - math.prod(shape) : at].view(*shape)

        kv = self.width * kv_heads
        self.embedding = take(vocab, dim)
        self.norm1, self.wq, self.wk = take(layers, dim), take(layers, dim, dim), take(layers, kv, dim)
        self.wv, self.wo, self.norm2 = take(layers, kv, dim), take(layers, dim, dim), take(layers, dim)
        self.w1, self.w2, self.w3 = take(layers, ffn, dim), take(layers, dim, ffn), take(layers, ffn, dim)
        self.norm = take(dim)
        steps = torch.arange(context)[:, None] * THETA ** (-torch.arange(0, self.width, 2) / self.width)
        self.cos, self.sin = steps.cos(), steps.sin()

    def turn(self, x, position):
        """Rotary embedding of neighbours; x is (stories, heads, width)."""
        a, b = x[..., 0::2], x[..., 1::2]
        c, s = self.cos[position], self.sin[position]
        return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)

    def logits(self, ids, position, cache):
        """ids (stories) at one position -> (stories, vocabulary); cache: (layers, 2, stories, kv_heads, context, width)."""
        n, x = len(ids), self.embedding[ids]
        for i in range(self.layers):
            a = rms(x, self.norm1[i])
            q = self.turn((a @ self.wq[i].T).view(n, self.heads, self.width), position)
            k = self.turn((a @ self.wk[i].T).view(n, self.kv_heads, self.width), position)
            cache[i, 0, :, :, position] = k
            cache[i, 1, :, :, position] = (a @ self.wv[i].T).view(n, self.kv_heads, self.width)
            q = q.view(n, self.kv_heads, -1, self.width)
            scores = (q @ cache[i, 0, :, :, : position + 1].transpose(-1, -2)) / math.sqrt(self.width)
            mixed = scores.softmax(-1) @ cache[i, 1, :, :, : position + 1]
            x = x + mixed.reshape(n, -1) @ self.wo[i].T
            b = rms(x, self.norm2[i])
            x = x + (F.silu(b @ self.w1[i].T) * (b @ self.w3[i].T)) @ self.w2[i].T
        return rms(x, self.norm) @ self.embedding.T


def pieces(path):
    """The pieces of a llama2.c tokenizer as bytes."""
    raw, out, at = Path(path).read_bytes(), [], 4
    while at < len(raw):
        _, length = struct.unpack_from("<fi", raw, at)
        piece = raw[at + 8 : at + 8 + length]
        at += 8 + length
        if len(piece) == 6 and piece.startswith(b"<0x"):
            piece = bytes([int(piece[3:5], 16)])
        out.append(piece)
    return out


@torch.no_grad()
def sample(args):
    torch.manual_seed(args.seed)
    teacher, text = Teacher(args.teacher), pieces(args.tokenizer)
    bos, stories, start = 1, [], time.time()
    while len(stories) < args.stories:
        n = args.at_once
        cache = torch.zeros(teacher.layers, 2, n, teacher.kv_heads, teacher.context, teacher.width)
        ids, said, ended = torch.full((n,), bos), [], torch.zeros(n, dtype=torch.bool)
        for position in range(teacher.context):
            probabilities = (teacher.logits(ids, position, cache) / args.temperature).softmax(-1)
            # Nucleus sampling: the unlikely tail is where a small model loses the thread.
            ordered, order = probabilities.sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered > args.top_p] = 0
            ids = order.gather(1, torch.multinomial(ordered, 1)).squeeze(1)
            ended |= ids == bos
            said.append(torch.where(ended, bos, ids))
            if ended.all():
                break
        for story in torch.stack(said, 1).tolist():
            if story[-1] == bos:  # one that came to its end
                story = story[: story.index(bos)]
                stories.append(b"".join(text[i] for i in story).decode("utf-8", "ignore").strip())
        print(f"{len(stories)} of {args.stories} stories after {time.time() - start:.0f} s", flush=True)
    Path(args.out).write_text("\n<|endoftext|>\n".join(stories))


# --- The student ----------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def __init__(self, s, dropout):
        super().__init__()
        width = s["hidden"] // s["heads"]
        linear = lambda a, b: torch.nn.Linear(a, b, bias=False)
        self.heads, self.kv_heads, self.width, self.dropout = s["heads"], s["kv_heads"], width, dropout
        self.norm1 = torch.nn.Parameter(torch.ones(s["hidden"]))
        self.norm2 = torch.nn.Parameter(torch.ones(s["hidden"]))
        self.q, self.k = linear(s["hidden"], s["hidden"]), linear(s["hidden"], self.kv_heads * width)
        self.v, self.o = linear(s["hidden"], self.kv_heads * width), linear(s["hidden"], s["hidden"])
        self.gate, self.up = linear(s["hidden"], s["intermediate"]), linear(s["hidden"], s["intermediate"])
        self.down = linear(s["intermediate"], s["hidden"])

    def forward(self, x, cos, sin):
        n, t, _ = x.shape

        def heads(y, count):
            return y.view(n, t, count, self.width).transpose(1, 2)

        def turn(y):  # Hugging Face's pairing: i and i + width/2
            a, b = y.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        a = rms(x, self.norm1)
        q, k, v = turn(heads(self.q(a), self.heads)), turn(heads(self.k(a), self.kv_heads)), heads(self.v(a), self.kv_heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        drop = lambda y: F.dropout(y, self.dropout, self.training)
        x = x + drop(self.o(mixed.transpose(1, 2).reshape(n, t, -1)))
        b = rms(x, self.norm2)
        return x + drop(self.down(F.silu(self.gate(b)) * self.up(b)))


class Student(torch.nn.Module):
    def __init__(self, s, dropout=0.0):
        super().__init__()
        self.embedding = torch.nn.Embedding(s["vocab"], s["hidden"])
        self.layers = torch.nn.ModuleList(Layer(s, dropout) for _ in range(s["layers"]))
        self.norm = torch.nn.Parameter(torch.ones(s["hidden"]))
        width = s["hidden"] // s["heads"]
        steps = torch.arange(s["context"])[:, None] * THETA ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("cos", steps.cos(), persistent=False)
        self.register_buffer("sin", steps.sin(), persistent=False)
        for p in self.parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=0.05)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.cos[: ids.shape[1]], self.sin[: ids.shape[1]])
        return rms(x, self.norm) @ self.embedding.weight.T

    def set_dropout(self, dropout):
        for layer in self.layers:
            layer.dropout = dropout


def corpus_stories(text):
    """A line end ends a story, two of them a paragraph."""
    return [s.strip() for s in re.split(r"(?<!\n)\n(?!\n)", text) if len(s.strip()) > 100]


def sampled_stories(text):
    """The teacher ends paragraphs with one line end; here they get two."""
    return [re.sub(r"\n+", "\n\n", s.strip()) for s in text.split("<|endoftext|>") if s.strip()]


def train_tokenizer(stories, vocab):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        stories,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def stream(tokenizer, stories):
    """All stories in a row, each between <s> and </s>."""
    out = []
    for encoding in tokenizer.encode_batch(stories):
        out += [BOS, *encoding.ids, EOS]
    return torch.tensor(out)


@torch.no_grad()
def bits_per_byte(model, ids, size, length=256):
    """Windows that begin with a story's first token would flatter; these begin anywhere."""
    model.eval()
    total = 0.0
    for at in range(0, len(ids) - 1, length):
        window = ids[at : at + length + 1][None]
        total += F.cross_entropy(model(window[:, :-1])[0], window[0, 1:], reduction="sum").item()
    model.train()
    return total / math.log(2) / size


def fit(model, ids, steps, rate, batch, length, check, every, decay=0.1):
    """AdamW, cosine schedule with warm-up; `check(model)` is called every so often and at the end."""
    heavy = [p for p in model.parameters() if p.dim() == 2]
    light = [p for p in model.parameters() if p.dim() == 1]
    groups = [dict(params=heavy, weight_decay=decay), dict(params=light, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    start, smooth = time.time(), None
    for step in range(steps):
        share = min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        at = torch.randint(0, len(ids) - length - 1, (batch,))
        window = torch.stack([ids[a : a + length + 1] for a in at])
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % every == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps} loss {smooth:.3f} {time.time() - start:.0f} s", end=" ", flush=True)
            check(model)


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    stories = corpus_stories(Path(args.corpus).read_text())
    cut = len(stories) * 9 // 10
    learnt, held = stories[:cut], stories[cut:]
    sampled = sampled_stories(Path(args.sampled).read_text())
    tokenizer = train_tokenizer(learnt, SIZE["vocab"])
    ids, held_ids, sampled_ids = (stream(tokenizer, s) for s in (learnt, held, sampled))
    size = sum(len(s.encode()) + 1 for s in held)
    print(f"{len(learnt)} stories, {len(ids)} tokens; {len(sampled)} sampled, {len(sampled_ids)} tokens; held out {size} bytes")

    model = Student(SIZE)
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    best = [math.inf, None]

    def check(model):
        bits = bits_per_byte(model, held_ids, size)
        print(f"held out {bits:.4f} bits a byte", flush=True)
        if bits < best[0]:
            best[0], best[1] = bits, {k: v.clone() for k, v in model.state_dict().items()}
            save(args.out, model, tokenizer, best[0])

    # The sampled stories, with the real ones mixed in twice, so that their vocabulary is learnt from the beginning.
    mixed = torch.cat((sampled_ids, ids, ids))
    fit(model, mixed, args.steps, 4e-3, 32, 256, check, 250)
    model.load_state_dict(best[1])
    model.set_dropout(args.dropout)
    fit(model, torch.cat((ids, ids, sampled_ids[: len(ids)])), args.real_steps, 1e-3, 32, 256, check, 100)
    print(f"best: {best[0]:.4f} bits a byte")


def save(folder, model, tokenizer, bits):
    """The Hugging Face layout, float16."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm}
    names = dict(
        q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
        gate="mlp.gate_proj", up="mlp.up_proj", down="mlp.down_proj",
    )  # fmt: skip
    for i, layer in enumerate(model.layers):
        at = f"model.layers.{i}."
        tensors[at + "input_layernorm.weight"] = layer.norm1
        tensors[at + "post_attention_layernorm.weight"] = layer.norm2
        for ours, theirs in names.items():
            tensors[f"{at}{theirs}.weight"] = getattr(layer, ours).weight
    half = {k: v.detach().half().contiguous() for k, v in tensors.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))

    def write(name, value):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")

    write(
        "config.json",
        dict(
            architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", attention_bias=False, mlp_bias=False,
            hidden_size=SIZE["hidden"], intermediate_size=SIZE["intermediate"], num_hidden_layers=SIZE["layers"],
            num_attention_heads=SIZE["heads"], num_key_value_heads=SIZE["kv_heads"], vocab_size=SIZE["vocab"],
            max_position_embeddings=SIZE["context"], rms_norm_eps=EPS, rope_theta=THETA, rope_scaling=None,
            tie_word_embeddings=True, torch_dtype="float16", bos_token_id=BOS, eos_token_id=EOS,
        ),
    )  # fmt: skip
    write("generation_config.json", dict(bos_token_id=BOS, eos_token_id=EOS))
    write(
        "tokenizer_config.json",
        dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", model_max_length=SIZE["context"]),
    )
    (folder / "held_out.txt").write_text(f"{bits:.4f} bits a byte\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    s = verbs.add_parser("sample", help="let the teacher write stories")
    s.set_defaults(do=sample)
    s.add_argument("--teacher", required=True)
    s.add_argument("--tokenizer", required=True)
    s.add_argument("--stories", type=int, default=13000)
    s.add_argument("--at-once", type=int, default=384)
    s.add_argument("--temperature", type=float, default=0.8)
    s.add_argument("--top-p", type=float, default=0.9)
    s.add_argument("--seed", type=int, default=1)
    s.add_argument("--out", required=True)
    t = verbs.add_parser("train", help="train the student")
    t.set_defaults(do=train)
    t.add_argument("--corpus", required=True)
    t.add_argument("--sampled", required=True)
    t.add_argument("--steps", type=int, default=5000)
    t.add_argument("--real-steps", type=int, default=1500)
    t.add_argument("--dropout", type=float, default=0.1)
    t.add_argument("--threads", type=int, default=2)
    t.add_argument("--seed", type=int, default=1)
    t.add_argument("--out", required=True)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
