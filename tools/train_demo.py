#!/usr/bin/env python3
"""Trains the demonstration model, models/stories: a Llama of 0.8 million weights that tells short stories.

    pip install torch transformers tokenizers safetensors           (made with 2.15, 5.23, 0.23, 0.8)
    tools/sample_stories.py stories260K.bin tok512.bin sampled.txt
    given="tinystories.txt --sampled sampled.txt --teacher stories260K.bin tok512.bin --threads 2"
    tools/train_demo.py $given --out steady --steps 2250 --cooldown 0 --early 0.15
    tools/train_demo.py $given --out models/stories --begin steady --steps 1600 --cooldown 1 --rate 6e-3 --early 0.3 --late 0.7

The corpus is text of TinyStories (R. Eldan and Y. Li, https://huggingface.co/datasets/roneneldan/TinyStories,
CDLA-Sharing-1.0), about a megabyte of it, a line break between stories. That is too little to learn English from, so
there is a teacher, stories260K (https://huggingface.co/karpathy/tinyllamas, MIT), a third as large and trained on all of
TinyStories: its tokenizer is taken over, and the student learns what it thinks of every next token, in text sampled from
it and in the corpus. The first command trains mostly on the samples, in windows of 256; the second goes on from the average
of its weights and ends mostly on the corpus, in windows of 512, while the learning rate falls to nothing. Both take an hour
on two cores.

The last tenth of the corpus is held out, and the weights kept (an average over the last steps) are judged by their bits a
byte on it. The same versions on the same machine with as many threads give the same weights.
"""

import argparse
import copy
import json
import math
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from sample_stories import read_checkpoint, read_tokens
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

BOS, EOS = 1, 2
CONTEXT = 512
# What UTF-8 read as Windows-1252 left in the corpus.
REPAIRS = {"â€œ": '"', "â€™": "'", "â€": '"', "“": '"', "”": '"', "’": "'"}


def stories_of(text):
    """Stories stand one after the other with one line break between; two are a paragraph's end."""
    for wrong, right in REPAIRS.items():
        text = text.replace(wrong, right)
    stories = []
    for piece in re.split(r"(?<!\n)\n(?!\n)", text):
        piece = piece.strip()
        if len(piece) < 150 and stories:  # not a story: the last one broke a line
            stories[-1] += "\n" + piece
        else:
            stories.append(piece)
    return [story for story in stories if story]


def split(stories, part):
    """The stories of the first `1 - part` of the text, and the others."""
    most = (1 - part) * sum(map(len, stories))
    size, count = 0, 0
    while size < most:
        size += len(stories[count])
        count += 1
    return stories[:count], stories[count:]


def sentencepiece_tokenizer(path, count):
    """The tokenizer of llama2.c as a tokenizer.json in the manner of Llama: byte-pair encoding, what has no token as bytes."""
    pieces = [piece.decode("utf-8", "replace").replace(" ", "▁") for piece in read_tokens(path, count)]
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    pieces[3:259] = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    assert len(ids) == count
    # Tokens stand in the order of their scores, so that pairs merge in the order of what they make.
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces[259:]
        for at in range(1, len(piece))
        if piece[:at] in ids and piece[at:] in ids
    ]
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.add_special_tokens(pieces[:3])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return made


def read_teacher(path):
    """The checkpoint as a model of transformers."""
    layers, heads, kv_heads, head, context, w = read_checkpoint(path)
    vocabulary, dim = w["embedding"].shape
    teacher = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=dim, intermediate_size=w["gate"].shape[1], num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context, rms_norm_eps=1e-5,
        tie_word_embeddings=True, use_cache=False,
    ))

    def halves(rows, heads):
        """Rows of heads whose rotary pairs are neighbours, as transformers wants them."""
        return rows.view(heads, head // 2, 2, dim).transpose(1, 2).reshape(heads * head, dim)

    with torch.no_grad():
        teacher.model.embed_tokens.weight.copy_(w["embedding"])
        teacher.model.norm.weight.copy_(w["norm"])
        for i, layer in enumerate(teacher.model.layers):
            layer.input_layernorm.weight.copy_(w["attention_norm"][i])
            layer.post_attention_layernorm.weight.copy_(w["ffn_norm"][i])
            layer.self_attn.q_proj.weight.copy_(halves(w["q"][i], heads))
            layer.self_attn.k_proj.weight.copy_(halves(w["k"][i], kv_heads))
            layer.self_attn.v_proj.weight.copy_(w["v"][i])
            layer.self_attn.o_proj.weight.copy_(w["o"][i])
            layer.mlp.gate_proj.weight.copy_(w["gate"][i])
            layer.mlp.up_proj.weight.copy_(w["up"][i])
            layer.mlp.down_proj.weight.copy_(w["down"][i])
    return teacher.eval().requires_grad_(False)


def ends_with_eos(logits):
    """The teacher's logits for the student: a story ends with BOS for the one, with EOS for the other."""
    swapped = logits.clone()
    swapped[..., BOS], swapped[..., EOS] = logits[..., EOS], logits[..., BOS]
    return swapped


class Text:
    """Stories as one row of ids, BOS before each."""

    def __init__(self, tokenizer, stories):
        ids, starts = [], []
        for encoding in tokenizer.encode_batch(stories):
            starts.append(len(ids))
            ids += encoding.ids
        self.ids = torch.tensor(ids + [BOS])
        self.starts = torch.tensor(starts)

    def windows(self, count, length, random):
        """Inputs and targets, (count, length): half of them begin where a story does, all with BOS."""
        last = len(self.ids) - length - 1
        at = torch.randint(last, (count,), generator=random)
        story = torch.randint(len(self.starts), (count,), generator=random)
        begins = torch.rand(count, generator=random) < 0.5
        at = torch.where(begins, self.starts[story].clamp(max=last), at)
        ids = self.ids[at[:, None] + torch.arange(length + 1)]
        inputs, targets = ids[:, :-1].clone(), ids[:, 1:]
        inputs[:, 0] = BOS
        return inputs, torch.where(targets == BOS, EOS, targets)


@torch.inference_mode()
def bits_a_byte(forward, tokenizer, stories):
    """What the model needs for each byte of these stories, their ends included, each from its own beginning."""
    nats, size = 0.0, sum(len(story.encode()) for story in stories)
    encoded = sorted((e.ids + [EOS] for e in tokenizer.encode_batch(stories)), key=len)
    for i in range(0, len(encoded), 16):
        rows = [row[: CONTEXT + 1] for row in encoded[i : i + 16]]
        ids = torch.full((len(rows), len(rows[-1])), -100)
        for row, target in zip(rows, ids):
            target[: len(row)] = torch.tensor(row)
        logits = forward(ids.clamp(min=0)[:, :-1])
        nats += F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
        # What does not fit the context is not read, so it does not count.
        size -= sum(len(tokenizer.decode(row[CONTEXT + 1 :]).encode()) for row in encoded[i : i + 16])
    return nats / math.log(2) / size


def optimizers(model, rate, decay):
    """Muon for the matrices of the layers, AdamW for the others."""
    layers, others = [], []
    for name, weight in model.named_parameters():
        (layers if weight.dim() == 2 and "embed" not in name else others).append(weight)
    return [
        torch.optim.Muon(layers, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.inference_mode()
def tell(model, tokenizer, prompt, temperature, random, top_k=40, most=300):
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    past, fresh = None, ids
    while ids.shape[1] < most:
        out = model(fresh, past_key_values=past, use_cache=True)
        past, logits = out.past_key_values, out.logits[0, -1].float()
        if temperature == 0:
            chosen = logits.argmax().view(1)
        else:
            best, which = logits.topk(top_k)
            chosen = which[torch.multinomial((best / temperature).softmax(-1), 1, generator=random)]
        if chosen.item() == EOS:
            break
        fresh = chosen.view(1, 1)
        ids = torch.cat((ids, fresh), 1)
    return tokenizer.decode(ids[0].tolist())


def save(folder, model, tokenizer, figures):
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.config.dtype = torch.float16
    half.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    made = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True,
        "clean_up_tokenization_spaces": False, "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.6, "top_k": 40}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (folder / "training.json").write_text(json.dumps(figures, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--sampled", type=Path, required=True, help="text to begin with, <|endoftext|> between stories")
    parser.add_argument("--teacher", type=Path, nargs=2, required=True, help="a checkpoint of llama2.c and its tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--begin", type=Path, help="a model to begin with, as this script wrote it, rather than random weights")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=4096, help="in a step")
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--early", type=float, default=0.1, help="part of the corpus in the first steps")
    parser.add_argument("--late", type=float, default=0.6, help="part of the corpus in the last steps")
    parser.add_argument("--told", type=float, default=0.5, help="weight of the corpus itself beside what the teacher says")
    parser.add_argument("--cooldown", type=float, default=0.4,
                        help="part of the steps, the last ones, in which the rate falls and windows are as long as the context")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random = torch.Generator().manual_seed(options.seed)

    train, held_out = split(stories_of(options.corpus.read_text(encoding="utf-8")), 0.1)
    sampled = [s.strip() for s in options.sampled.read_text(encoding="utf-8").split("<|endoftext|>") if s.strip()]
    teacher = read_teacher(options.teacher[0])
    vocabulary = teacher.config.vocab_size
    tokenizer = sentencepiece_tokenizer(options.teacher[1], vocabulary)
    corpus, samples = Text(tokenizer, train), Text(tokenizer, sampled)
    bytes_a_token = sum(len(s.encode()) for s in train) / len(corpus.ids)
    print(f"{len(train)} stories, {len(corpus.ids)} tokens of {bytes_a_token:.2f} bytes; {len(held_out)} held out; "
          f"{len(sampled)} sampled, {len(samples.ids)} tokens")
    taught = bits_a_byte(lambda ids: ends_with_eos(teacher(ids).logits), tokenizer, held_out)
    print(f"teacher: held out {taught:.4f} bits a byte")

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=options.hidden, intermediate_size=options.intermediate,
        num_hidden_layers=options.layers, num_attention_heads=options.heads, num_key_value_heads=options.kv_heads,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=BOS, eos_token_id=EOS,
        initializer_range=0.03, use_cache=False,
    ))
    if options.begin:
        model = LlamaForCausalLM.from_pretrained(options.begin, dtype=torch.float32)
        model.config.use_cache = False
    print(f"{model.num_parameters()} weights", flush=True)
    averaged = copy.deepcopy(model)
    steppers = optimizers(model, options.rate, options.decay)
    started, best = time.time(), math.inf
    cooldown = int(options.steps * options.cooldown)
    for step in range(options.steps):
        left = (options.steps - step) / cooldown if cooldown else math.inf  # of the cooldown
        rate = options.rate * min(1.0, (step + 1) / 100, left)
        part = options.early if left > 1 else options.late + (options.early - options.late) * left
        length = 256 if left > 1 else CONTEXT
        count = options.tokens // length
        real = round(count * part)
        pairs = zip(corpus.windows(real, length, random), samples.windows(count - real, length, random))
        inputs, targets = (torch.cat(pair) for pair in pairs)
        with torch.no_grad():
            thought = ends_with_eos(teacher(inputs).logits).softmax(-1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs).logits
        logs = logits.float().log_softmax(-1)
        as_taught = -(thought * logs).sum(-1)
        as_told = -logs.gather(-1, targets[..., None]).squeeze(-1)
        # What the teacher made up, it can tell best itself.
        loss = torch.cat((
            options.told * as_told[:real] + (1 - options.told) * as_taught[:real], as_taught[real:]
        )).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate
            stepper.step()
            stepper.zero_grad()
        with torch.no_grad():
            keep = min(0.998, step / (step + 10))
            for old, new in zip(averaged.parameters(), model.parameters()):
                old.lerp_(new, 1 - keep)
        if (step + 1) % 250 == 0 or step + 1 == options.steps:
            bits = bits_a_byte(lambda ids: averaged(ids).logits, tokenizer, held_out)
            print(f"step {step + 1}: rate {rate:.1e}, loss {loss.item():.3f}, held out {bits:.4f} bits a byte, "
                  f"{time.time() - started:.0f} s", flush=True)
            if (bits < best and left <= 1) or (not cooldown and step + 1 == options.steps):
                best = bits
                figures = {"step": step + 1, "held_out_bits_a_byte": round(bits, 4),
                           "teacher_bits_a_byte": round(taught, 4),
                           "weights": model.num_parameters(), "options": {
                               k: v for k, v in vars(options).items() if isinstance(v, (int, float))}}
                averaged.config.use_cache = True
                save(options.out, averaged, tokenizer, figures)
        if (step + 1) % 2000 == 0:
            print(tell(averaged, tokenizer, "Once upon a time", 0.8, random), flush=True)

    told = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    print(f"as saved: {bits_a_byte(lambda ids: told(ids).logits, tokenizer, held_out):.4f} bits a byte")
    greedily = tell(told, tokenizer, "Once upon a time", 0, random, most=CONTEXT)
    (options.out / "reference_greedy.txt").write_text(greedily + "\n", encoding="utf-8")
    print(f"--- greedily\n{greedily}")
    for temperature in (0.6, 0.8):
        print(f"--- temperature {temperature}\n{tell(told, tokenizer, 'Once upon a time', temperature, random)}")


if __name__ == "__main__":
    main()
