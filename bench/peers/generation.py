"""Tokens a second of this library and of llama.cpp with the same GGUF files, turn by turn.

    make build && pip install -r bench/peers/requirements.txt
    python bench/peers/generation.py [MODEL.gguf ...] [--threads 1 2] [--prompt 512] [--tokens 64] [--rounds 3] [--json FILE]

Without a MODEL, models of TinyLlama-1.1B's shape with random weights are made under target/peers (2.2 GB of float16, and
each type from it by llama.cpp's own quantiser; 6 GB in all). Types that this library takes over exactly (Q8_0, Q4_0, TQ2_0 and
Q1_0) are run by both; Q4_K_M and Q2_K by llama.cpp alone, which is faster with them than with the simple types of
as many bits. llama.cpp runs with and without flash attention, and the faster counts. Where it dies with its weights rearranged for the
processor (built by gcc 12 it did on a processor with AMX), it runs without, which is told.
"""

import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "target/release/apl-ffi"
FOLDER = ROOT / "target/peers"

# Bits, the type, and whether this library runs the file as it is.
TYPES = [
    (8, "Q8_0", True),
    (4, "Q4_0", True),
    (4, "Q4_K_M", False),
    (2, "TQ2_0", True),
    (2, "Q2_K", False),
    (1, "Q1_0", True),
]

# ggml's number of the type, which the Python package does not name.
GGML_TYPE_TQ2_0 = 35

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 22, 32, 4, 32000


def make_float16(path):
    """A GGUF file of TinyLlama's shape whose weights are random."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    # The smallest vocabulary that both sides take: control tokens, bytes, and words that nobody writes.
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    kinds = [2, 3, 3] + [6] * 256
    tokens += [f"\u2581w{i}" for i in range(VOCABULARY - len(tokens))]
    kinds += [1] * (VOCABULARY - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    normal = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(np.float16)

    def matrix(name, rows, cols):
        writer.add_tensor(name, np.resize(normal[len(name) * 997 % 1000 :], (rows, cols)))

    def norm(name):
        writer.add_tensor(name, np.ones(HIDDEN, np.float32))

    kv = HIDDEN // HEADS * KV_HEADS
    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    for i in range(LAYERS):
        norm(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", HIDDEN, HIDDEN)
        matrix(f"blk.{i}.attn_k.weight", kv, HIDDEN)
        matrix(f"blk.{i}.attn_v.weight", kv, HIDDEN)
        matrix(f"blk.{i}.attn_output.weight", HIDDEN, HIDDEN)
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", INTERMEDIATE, HIDDEN)
        matrix(f"blk.{i}.ffn_up.weight", INTERMEDIATE, HIDDEN)
        matrix(f"blk.{i}.ffn_down.weight", HIDDEN, INTERMEDIATE)
    norm("output_norm.weight")
    matrix("output.weight", VOCABULARY, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_models():
    """The files of all types; those that are there already are kept."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    FOLDER.mkdir(parents=True, exist_ok=True)
    float16 = FOLDER / "random-F16.gguf"
    if not float16.exists():
        print(f"making {float16.name}", file=sys.stderr)
        make_float16(FOLDER / "part.gguf")
        (FOLDER / "part.gguf").rename(float16)
    made = []
    for bits, name, exact in TYPES:
        path = FOLDER / f"random-{name}.gguf"
        if not path.exists():
            print(f"making {path.name}", file=sys.stderr)
            options = llama_cpp.llama_model_quantize_default_params()
            options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
            # Every matrix in the type, as the comparison wants it; of the mixed types their mixture.
            options.pure = exact
            if exact:
                kind = getattr(llama_cpp, f"GGML_TYPE_{name}", GGML_TYPE_TQ2_0)
                options.output_tensor_type = kind
                options.token_embedding_type = kind
            part = FOLDER / "part.gguf"
            status = llama_cpp.llama_model_quantize(
                str(float16).encode(), str(part).encode(), ctypes.byref(options)
            )
            if status != 0:
                sys.exit(f"llama.cpp cannot make {name}: status {status}")
            part.rename(path)
        made.append((bits, name, exact, path))
    return made


def time_ours(path, threads, prompt, tokens):
    output = subprocess.run(
        [OURS, "bench", "--model", path, "--prompt", str(prompt), "--tokens", str(tokens), "--rounds", "1", "--json",
         "--threads", str(threads)],
        capture_output=True, text=True, check=True,
    )
    report = json.loads(output.stdout)
    return report["prompt_tokens_s"], report["text_tokens_s"]


def time_llama(path, threads, prompt, tokens, flash, rearranged=True):
    """In a process of its own, so that nothing of an earlier model lives on."""
    numbers = [threads, prompt, tokens, flash, int(rearranged)]
    output = subprocess.run(
        [sys.executable, __file__, "--worker", path, *map(str, numbers)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )
    if output.returncode != 0:
        failure = f"llama.cpp failed with {path}: status {output.returncode}"
        if not rearranged:
            raise RuntimeError(failure)
        print(f"{failure}; without rearranged weights:", file=sys.stderr)
        return time_llama(path, threads, prompt, tokens, flash, rearranged=False)
    report = json.loads(output.stdout.splitlines()[-1])
    return report["prompt"], report["text"]


def worker(path, threads, prompt, tokens, flash, rearranged):
    import llama_cpp

    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.use_extra_bufts = bool(rearranged)
    model = llama_cpp.llama_model_load_from_file(path.encode(), options)
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = 1024, 512, 512
    options.n_threads = options.n_threads_batch = threads
    options.flash_attn_type = flash
    context = llama_cpp.llama_init_from_model(model, options)

    def feed(ids):
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(context)

    ids = [i * 2654435761 % 2**32 % llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)) for i in range(prompt)]
    feed(ids[:8])
    memory = llama_cpp.llama_get_memory(context)
    llama_cpp.llama_memory_clear(memory, True)
    begun = time.perf_counter()
    feed(ids)
    prompted = prompt / (time.perf_counter() - begun)
    begun = time.perf_counter()
    for i in range(tokens):
        feed([ids[i % prompt]])
    print(json.dumps({"prompt": prompted, "text": tokens / (time.perf_counter() - begun)}))


def main():
    if sys.argv[1:2] == ["--worker"]:
        path, *numbers = sys.argv[2:]
        return worker(path, *map(int, numbers))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=pathlib.Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count()])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    models = [(None, path.stem, True, path) for path in arguments.models] or make_models()
    rows = []
    print(f"{'type':>8} {'threads':>7}  {'prompt: ours':>12} {'llama.cpp':>9}  {'text: ours':>10} {'llama.cpp':>9}   (tokens a second)")
    for threads in arguments.threads:
        for bits, name, exact, path in models:
            shape = (threads, arguments.prompt, arguments.tokens)
            ours, theirs = [], []
            for _ in range(arguments.rounds):
                if exact:
                    ours.append(time_ours(path, *shape))
                both = [time_llama(path, *shape, flash) for flash in (0, 1)]
                theirs.append([max(figures) for figures in zip(*both)])
            median = lambda figures: [statistics.median(f) for f in zip(*figures)]
            row = {"type": name, "bits": bits, "threads": threads, "llama.cpp": median(theirs)}
            if exact:
                row["ours"] = median(ours)
            rows.append(row)
            mine = row.get("ours", [float("nan")] * 2)
            peer = row["llama.cpp"]
            print(f"{name:>8} {threads:>7}  {mine[0]:>12.1f} {peer[0]:>9.1f}  {mine[1]:>10.1f} {peer[1]:>9.1f}", flush=True)
    for bits in sorted({row["bits"] for row in rows if row["bits"]}, reverse=True):
        for threads in arguments.threads:
            of_bits = [row for row in rows if (row["bits"], row["threads"]) == (bits, threads)]
            # Of ours the types differ in the size of their groups: that which holds its own with the best of theirs.
            ratio = [
                max(row["ours"][i] for row in of_bits if "ours" in row) / max(row["llama.cpp"][i] for row in of_bits)
                for i in (0, 1)
            ]
            print(f"{bits} bits, {threads} threads, ours over llama.cpp's best: prompt {ratio[0]:.2f}, text {ratio[1]:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
