#!/usr/bin/env python3
"""Makes tests/data/models: a tiny model with random weights for every family of models, and what Hugging Face
`transformers` computes with it.

    pip install torch transformers safetensors tokenizers gguf      (made with 2.15, 5.23, 0.8, 0.23, 0.19)
    tools/make_tiny_models.py [--llama-cpp]

A model is a folder in the Hugging Face layout (config.json, model.safetensors, tokenizer.json) with two files more:

    reference.json        the token ids of a prompt, longer than any sliding window, and what the logits depend on
    reference_logits.f32  (positions, vocabulary), float32, little-endian: the weights as stored, widened to float32,
                          all of the prompt in one pass, eager attention

Some have a NAME.gguf beside the folder, with names, permutations and norms as llama.cpp's converter writes them; their
logits are those of the folder. With --llama-cpp, llama.cpp (llama-cpp-python) runs these too and the difference is shown.

That a reference notices mistakes is checked here: each model lists what a reader may get wrong (a window not looked at, a
bias dropped, a scaling ignored), and each of these must move a logit by more than 0.02.

The same versions on the same machine give the same bytes.
"""

import argparse
import copy
import json
import math
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "models"
POSITIONS = 24
NOTICED = 0.02

SPECIAL = ["<unk>", "<s>", "</s>"]
ALPHABET = list("abcdefghijklmnopqrstuvwxyz0123456789ABDHILSTW.,'!?\"") + ["Ċ", "Ġ"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d"), ("Ġ", "and"), ("i", "n"), ("Ġ", "a")]
VOCABULARY = SPECIAL + ALPHABET + ["".join(pair) for pair in MERGES]

# Every config.json is written in one of the two layouts that are about: `rope_theta` and `rope_scaling` (transformers 4),
# or `rope_parameters` (transformers 5).
COMMON = {"vocab_size": len(VOCABULARY), "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128}


def no_scaling(config):
    if "rope_scaling" in config:
        config["rope_scaling"] = None
    else:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}


def edit(**changes):
    return lambda config: config.update(changes)


def edit_rope(**changes):
    return lambda config: config.get("rope_scaling", config.get("rope_parameters")).update(changes)


# name: (type of the weights, config, mistakes in the config that the logits must show, tensors whose loss they must show)
MODELS = {
    "mistral": (
        torch.float16,
        {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 20, "intermediate_size": 29,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu",
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 7, "tie_word_embeddings": False,
            "torch_dtype": "float16",
        },
        {"no window": edit(sliding_window=None), "a window too narrow": edit(sliding_window=6),
         "a window too wide": edit(sliding_window=8), "rope_theta": edit(rope_theta=20000.0)},
        [],
    ),
    "gemma": (
        torch.bfloat16,
        {
            "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_size": 18, "intermediate_size": 27,
            "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
            "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
        },
        {"silu": edit(hidden_act="silu", hidden_activation="silu")},
        [],
    ),
    "gemma2": (
        torch.float16,
        {
            "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 20, "intermediate_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "query_pre_attn_scalar": 64, "sliding_window": 6, "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 9.0, "torch_dtype": "float16",
        },
        {"no cap on scores": edit(attn_logit_softcapping=None), "no cap on logits": edit(final_logit_softcapping=None),
         "query scale": edit(query_pre_attn_scalar=16), "a window too wide": edit(sliding_window=7),
         "windows everywhere": edit(layer_types=["sliding_attention"] * 3),
         "windows on the wrong layers": edit(layer_types=["full_attention", "sliding_attention", "full_attention"])},
        [],
    ),
    "qwen2": (
        torch.float16,
        {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 24, "intermediate_size": 31,
            "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_act": "silu",
            "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 5, "use_sliding_window": False,
            "max_window_layers": 1, "tie_word_embeddings": False, "torch_dtype": "float16",
        },
        # The window is there and not used, as in all of Qwen 2.5.
        {"the window": edit(use_sliding_window=True), "rope_theta": edit(rope_theta=10000.0)},
        ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
    ),
    "qwen3": (
        torch.bfloat16,
        {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 20, "intermediate_size": 26,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
            "attention_bias": False, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
            "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
            "layer_types": ["full_attention"] * 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "dtype": "bfloat16",
        },
        {"rope_theta": edit(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})},
        ["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
    ),
    "llama3": (
        torch.bfloat16,
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 18, "intermediate_size": 27,
            "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12,
            "attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
            "tie_word_embeddings": True, "torch_dtype": "bfloat16",
            "eos_token_id": [2, 0],
        },
        {"no scaling": no_scaling, "factor": edit_rope(factor=4.0), "low_freq_factor": edit_rope(low_freq_factor=2.0),
         "high_freq_factor": edit_rope(high_freq_factor=2.0)},
        [],
    ),
    "llama-yarn": (
        torch.bfloat16,
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 18, "intermediate_size": 26,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
            "attention_bias": True, "mlp_bias": True, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 4.0, "beta_slow": 1.0,
                                "original_max_position_embeddings": 64},
            "max_position_embeddings": 256, "tie_word_embeddings": False, "dtype": "bfloat16",
        },
        {"no scaling": no_scaling, "beta_fast": edit_rope(beta_fast=32.0), "beta_slow": edit_rope(beta_slow=2.0),
         "attention factor": edit_rope(attention_factor=1.0)},
        ["self_attn.q_proj.bias", "self_attn.o_proj.bias", "mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias"],
    ),
    "llama-linear": (
        torch.float16,
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 24, "intermediate_size": 29,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "hidden_act": "silu",
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0},
            "tie_word_embeddings": False, "torch_dtype": "float16",
        },
        {"no scaling": no_scaling, "rope_theta": edit(rope_theta=20000.0)},
        [],
    ),
    # The base depends on the length of the whole prompt, so these logits hold for a pass over all of it at once.
    "llama-dynamic": (
        torch.float32,
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 20, "intermediate_size": 33,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_act": "silu",
            "rms_norm_eps": 1e-5, "rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 16, "tie_word_embeddings": True, "torch_dtype": "float32",
        },
        {"no scaling": no_scaling, "factor": edit_rope(factor=4.0)},
        [],
    ),
}

# The type that a GGUF's matrices have; those of one dimension are float32 there.
GGUF = {"llama3": "BF16", "llama-linear": "F16", "gemma": "BF16", "gemma2": "F16", "qwen2": "F16", "qwen3": "BF16"}


def tokenizer():
    """Byte-pair encoding of a few characters: what it does not know is <unk>."""
    tokens = {token: i for i, token in enumerate(VOCABULARY)}
    made = Tokenizer(models.BPE(tokens, MERGES, unk_token="<unk>"))
    made.add_special_tokens(SPECIAL)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    text = "the hat and a tin, in the inn"
    assert made.decode(made.encode(text).ids) == text
    return json.dumps(json.loads(made.to_str()), ensure_ascii=False, separators=(",", ":"))


def random_weights(config, dtype, seed):
    """Weights in which every detail is heard: scores spread over several units, norms and biases far from 1 and 0."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    offset = 1.0 if config.model_type.startswith("gemma") else 0.0
    weights = {}
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        noise = torch.randn(tensor.shape, generator=random)
        if name.endswith("bias"):
            made = 0.4 * noise
        elif tensor.dim() == 1:
            made = 1.0 - offset + 0.3 * noise
        elif "embed_tokens" in name:
            # Tied, it also makes logits of a few units.
            made = (0.4 if config.tie_word_embeddings else 1.0) * noise
        else:
            made = noise * (2.0 if "q_proj" in name or "k_proj" in name else 1.3) / math.sqrt(tensor.shape[1])
        weights[name] = made.to(dtype)
    return weights


def logits(config, weights, ids):
    """(positions, vocabulary), float32."""
    with_config = AutoConfig.for_model(**copy.deepcopy(config))
    model = AutoModelForCausalLM.from_config(with_config, dtype=torch.float32, attn_implementation="eager").eval()
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def check_that_mistakes_show(name, config, weights, ids, reference, mistakes, tensors):
    """What a mistake of each kind moves a logit by."""
    moved = {}
    for what, change in mistakes.items():
        wrong = copy.deepcopy(config)
        change(wrong)
        moved[what] = logits(wrong, weights, ids)
    for suffix in tensors:
        lost = {k: v * 0 + (1 if "norm" in k else 0) if k.endswith(suffix) else v for k, v in weights.items()}
        moved[f"lost {suffix}"] = logits(config, lost, ids)
    # Keys turned in neighbouring pairs rather than halves.
    head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    swapped = {
        k: permuted(v.float().numpy(), v.shape[0] // head) if "q_proj" in k or "k_proj" in k else v.float()
        for k, v in weights.items()
    }
    moved["rotary pairing"] = logits(config, {k: torch.as_tensor(v) for k, v in swapped.items()}, ids)
    for what, wrong in moved.items():
        by = (wrong - reference).abs().max().item()
        print(f"    {what}: {by:.3f}")
        assert by > NOTICED, f"{name}: nobody would notice: {what}"


def permuted(rows, heads):
    """Rows of queries and keys as the converters of Llama order them: halves of a head, interleaved."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_name(name):
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, kind = name.rsplit(".", 1)
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    layer, part = stem.removeprefix("model.layers.").split(".", 1)
    return layer, part, parts.get(part), kind


def write_gguf(path, config, weights, kind):
    arch = config["model_type"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", config["hidden_size"] // heads)
    gemma = arch.startswith("gemma")
    out = gguf.GGUFWriter(path, arch)
    out.add_name(path.stem)
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_key_length(head)
    out.add_value_length(head)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[kind])
    out.add_rope_dimension_count(head)
    out.add_rope_freq_base(config.get("rope_theta") or config["rope_parameters"]["rope_theta"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(scaling["factor"])
    if arch == "gemma2":
        out.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        out.add_final_logit_softcapping(config["final_logit_softcapping"])
        out.add_sliding_window(config["sliding_window"])

    if arch.startswith("qwen"):
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("qwen2")
        out.add_token_list(VOCABULARY)
        out.add_token_merges([" ".join(pair) for pair in MERGES])
    else:
        # SentencePiece has no merges: two pieces become one where that one is known, the highest score first.
        out.add_tokenizer_model("llama")
        out.add_tokenizer_pre("default")
        out.add_token_list([t.replace("Ġ", "▁").replace("Ċ", "\n") for t in VOCABULARY])
        first = len(SPECIAL) + len(ALPHABET)
        out.add_token_scores([0.0 if i < len(SPECIAL) else float(first - i) for i in range(len(VOCABULARY))])
        out.add_unk_token_id(0)
        out.add_add_space_prefix(False)
    control, unknown, normal = gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN, gguf.TokenType.NORMAL
    out.add_token_types([unknown, control, control] + [normal] * (len(VOCABULARY) - 3))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)

    if scaling.get("rope_type") == "llama3":
        frequencies = config["rope_theta"] ** (-np.arange(0, head, 2) / head)
        wavelengths = 2 * math.pi / frequencies
        context, low, high = (
            scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
        out.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(np.float32))
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        new = gguf_name(name)
        if not isinstance(new, str):
            layer, part, new, suffix = new
            if part == "post_attention_layernorm":
                new = "post_attention_norm" if arch == "gemma2" else "ffn_norm"
            new = f"blk.{layer}.{new}.{suffix}"
            if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                values = permuted(values, heads if part == "self_attn.q_proj" else kv_heads)
            if arch == "gemma2" and part == "self_attn.q_proj":
                # A GGUF has no query_pre_attn_scalar. That of these weights is 4 head_dim, so that this is exact.
                assert config["query_pre_attn_scalar"] == 4 * head
                values = values * np.float32(0.5)
        if gemma and "norm" in name:
            values = values + np.float32(1)
        as_stored = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType[kind]
        out.add_tensor(new, gguf.quants.quantize(np.ascontiguousarray(values), as_stored), raw_dtype=as_stored)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def difference_from_llama_cpp(config, weights, ids, reference):
    """On a file of float32: with others llama.cpp rounds activations to the type of the weights."""
    import llama_cpp

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, config, weights, "F32")
        f32 = llama_cpp.GGML_TYPE_F32
        llama = llama_cpp.Llama(str(path), n_ctx=256, type_k=f32, type_v=f32, logits_all=True, verbose=False, n_threads=1)
        llama.eval(ids)
        return np.abs(np.array(llama.scores[: len(ids)]) - reference.numpy()).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", action="store_true", help="run what the .gguf files hold with llama.cpp also")
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    shutil.rmtree(DATA, ignore_errors=True)
    shared_tokenizer = tokenizer()
    for seed, (name, (dtype, own, mistakes, tensors)) in enumerate(MODELS.items()):
        config = COMMON | own
        folder = DATA / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (folder / "tokenizer.json").write_text(shared_tokenizer)
        weights = random_weights(AutoConfig.for_model(**copy.deepcopy(config)), dtype, seed)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        rng = np.random.default_rng(seed)
        ids = [1] + rng.integers(3, len(VOCABULARY), POSITIONS - 1).tolist()
        reference = logits(config, load_file(folder / "model.safetensors"), ids)
        # The same, as anyone would load it.
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            assert torch.equal(loaded(torch.tensor([ids]), use_cache=False).logits[0], reference)
        reference.numpy().astype("<f4").tofile(folder / "reference_logits.f32")
        about = {"ids": ids, "shape": list(reference.shape), "argmax": reference.argmax(-1).tolist()}
        (folder / "reference.json").write_text(json.dumps(about) + "\n")
        print(f"{name}: {sum(w.numel() for w in weights.values())} weights, logits within ±{reference.abs().max():.1f}")
        check_that_mistakes_show(name, config, weights, ids, reference, mistakes, tensors)
        if name in GGUF:
            path = DATA / f"{name}.gguf"
            write_gguf(path, config, weights, GGUF[name])
            if options.llama_cpp:
                print(f"    llama.cpp differs by {difference_from_llama_cpp(config, weights, ids, reference):.1e}")


if __name__ == "__main__":
    main()
