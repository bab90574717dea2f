//! Converts the vocabulary in the metadata of a GGUF file to a `tokenizer.json`.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokenizers::Tokenizer as Engine;

use super::{Special, hf};
use crate::error::{Error, Result};
use crate::formats::gguf::{self, Gguf};

/// Kinds of tokens, as in `tokenizer.ggml.token_type`.
mod kind {
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
}

/// How texts are split into words for byte-pair encoding, by the names in `tokenizer.ggml.pre`, as
/// implemented by llama.cpp.
struct Split {
    names: &'static [&'static str],
    /// Applied in order, each to the pieces that the previous ones left.
    regexes: &'static [&'static str],
    /// Whether a word that is a token is encoded as that token, whatever the merges.
    whole_words: bool,
    /// Whether texts begin with the beginning-of-sequence token if the file does not say.
    begins: bool,
}

/// The regular expression of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// That of Llama 3, with digits in threes.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// That of Qwen 2, with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// That of Mistral's Tekken, with single digits and splits between lower and upper case.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const SPLITS: [Split; 6] = [
    Split {
        names: &["llama-bpe", "llama3", "llama-v3"],
        regexes: &[LLAMA3],
        whole_words: true,
        begins: true,
    },
    Split {
        names: &["dbrx", "smaug-bpe"],
        regexes: &[LLAMA3],
        whole_words: false,
        begins: false,
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        regexes: &[QWEN2],
        whole_words: false,
        begins: false,
    },
    Split {
        names: &["tekken"],
        regexes: &[TEKKEN],
        whole_words: true,
        begins: true,
    },
    Split {
        names: &["gpt-2", "gpt2", "phi-2", "mpt"],
        regexes: &[GPT2],
        whole_words: false,
        begins: false,
    },
    // Also used if the file has no name.
    Split {
        names: &["default"],
        regexes: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        whole_words: false,
        begins: false,
    },
];

impl Split {
    fn named(name: Option<&str>) -> Result<&'static Split> {
        let name = name.unwrap_or("default");
        let found = SPLITS.iter().find(|split| split.names.contains(&name));
        found.ok_or_else(|| {
            let known: Vec<&str> = SPLITS.iter().flat_map(|s| s.names).copied().collect();
            Error::unsupported(format!(
                "tokenizer.ggml.pre is {name:?}; known are {}",
                known.join(", ")
            ))
        })
    }
}

/// The most bytes of a token that is merged from others. SentencePiece itself makes none of more
/// than 16 characters by default. Every way of splitting a token in two is tried, at a cost
/// proportional to its bytes.
const MOST_BYTES: usize = 512;

/// The vocabulary as stored in the file.
struct Tokens<'a> {
    texts: Vec<&'a str>,
    kinds: Vec<i64>,
}

/// Reads the metadata.
pub(super) fn read(file: &Gguf) -> Result<(Engine, Special)> {
    let model = text(file, "model")?.ok_or_else(|| {
        Error::unsupported("the file has no tokenizer (tokenizer.ggml.model is missing)")
    })?;
    let list =
        array(file, "tokens")?.ok_or_else(|| Error::format("tokenizer.ggml.tokens is missing"))?;
    let texts = file
        .texts(list)
        .map_err(|e| e.within("tokenizer.ggml.tokens"))?;
    let kinds = match array(file, "token_type")? {
        Some(kinds) => file.numbers(kinds)?.into_iter().map(|k| k as i64).collect(),
        None => vec![1; texts.len()],
    };
    if kinds.len() != texts.len() {
        return Err(Error::format(format!(
            "tokenizer.ggml.token_type has {} elements, expected {} as there are tokens",
            kinds.len(),
            texts.len()
        )));
    }
    let tokens = Tokens { texts, kinds };
    let (json, begins) = match model {
        "llama" => (sentence_piece(file, &tokens)?, true),
        "gpt2" => {
            let split = Split::named(text(file, "pre")?)?;
            (byte_pair(file, &tokens, split)?, split.begins)
        }
        other => {
            return Err(Error::unsupported(format!(
                "tokenizer.ggml.model is {other:?}; llama (SentencePiece) and gpt2 (byte-pair) are known"
            )));
        }
    };
    let engine = hf::parse(json.to_string().as_bytes())?;
    let mut special = Special {
        template: match file.metadata("tokenizer.chat_template") {
            Some(gguf::Value::Text(template)) => Some(template.clone()),
            _ => None,
        },
        ..Special::default()
    };
    special.bos = id(file, "bos_token_id")?;
    special.begins = match file.metadata(&key("add_bos_token")) {
        Some(&gguf::Value::Bool(wanted)) => wanted,
        _ => begins,
    };
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        if let Some(id) = id(file, key)?
            && !special.ends.contains(&id)
        {
            special.ends.push(id);
        }
    }
    Ok((engine, special))
}

/// SentencePiece's byte-pair encoding: of all adjacent pairs, the one whose concatenation has the
/// highest score is merged first.
fn sentence_piece(file: &Gguf, tokens: &Tokens<'_>) -> Result<Value> {
    let scores = match array(file, "scores")? {
        Some(scores) => file.numbers(scores)?,
        None => return Err(Error::format("tokenizer.ggml.scores is missing")),
    };
    if scores.len() != tokens.texts.len() || scores.iter().any(|s| s.is_nan()) {
        return Err(Error::format(format!(
            "tokenizer.ggml.scores has {} elements, expected {} numbers as there are tokens",
            scores.len(),
            tokens.texts.len()
        )));
    }
    let ids = tokens.ids()?;
    // A pair may be merged if its concatenation is a token. This is expressed by one merge for each
    // way of splitting a token in two; the splits of a token get adjacent ranks, because in
    // SentencePiece they have the same score.
    let mut merges: Vec<(f64, usize, &str, &str)> = Vec::new();
    for (id, text) in tokens.texts.iter().enumerate() {
        if text.len() > MOST_BYTES && tokens.is_added(id) {
            // It is found in a text before any merging.
            continue;
        }
        if text.len() > MOST_BYTES {
            return Err(Error::format(format!(
                "token {id} has {} bytes, at most {MOST_BYTES} were expected",
                text.len()
            )));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                merges.push((scores[id], id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let merges: Vec<Value> = merges.iter().map(|&(_, _, l, r)| json!([l, r])).collect();
    let prefix =
        file.metadata("tokenizer.ggml.add_space_prefix") != Some(&gguf::Value::Bool(false));
    let underscore = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let space = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let mut normalizers = vec![underscore];
    let mut decoders = vec![
        space,
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = tokens.kinds.iter().position(|&k| k == kind::UNKNOWN);
    Ok(json!({
        "version": "1.0",
        "added_tokens": tokens.added(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": ids, "merges": merges, "byte_fallback": true, "fuse_unk": true,
            "unk_token": unknown.map(|id| tokens.texts[id]),
        },
    }))
}

/// Byte-pair encoding over bytes, as introduced by GPT-2: ranked merges, and words split by regular
/// expressions.
fn byte_pair(file: &Gguf, tokens: &Tokens<'_>, split: &Split) -> Result<Value> {
    let merges = match array(file, "merges")? {
        Some(merges) => file
            .texts(merges)
            .map_err(|e| e.within("tokenizer.ggml.merges"))?,
        None => return Err(Error::format("tokenizer.ggml.merges is missing")),
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let mut cuts: Vec<Value> = split
        .regexes
        .iter()
        .map(|regex| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}))
        .collect();
    cuts.push(byte_level.clone());
    Ok(json!({
        "version": "1.0",
        "added_tokens": tokens.added(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "decoder": byte_level,
        "model": {
            "type": "BPE", "vocab": tokens.ids()?, "merges": merges, "ignore_merges": split.whole_words,
        },
    }))
}

impl<'a> Tokens<'a> {
    /// The id of each text.
    fn ids(&self) -> Result<HashMap<&'a str, usize>> {
        let mut ids = HashMap::with_capacity(self.texts.len());
        for (id, &text) in self.texts.iter().enumerate() {
            if let Some(other) = ids.insert(text, id) {
                return Err(Error::format(format!(
                    "tokens {other} and {id} are both {text:?}"
                )));
            }
        }
        Ok(ids)
    }

    /// Tokens that are matched in a text before anything else: special ones and user-defined ones.
    fn added(&self) -> Vec<Value> {
        let added = (0..self.kinds.len()).filter(|&id| self.is_added(id));
        added
            .map(|id| {
                json!({
                    "id": id, "content": self.texts[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": self.kinds[id] != kind::USER_DEFINED,
                })
            })
            .collect()
    }

    fn is_added(&self, id: usize) -> bool {
        matches!(
            self.kinds[id],
            kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED
        )
    }
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn text<'a>(file: &'a Gguf, name: &str) -> Result<Option<&'a str>> {
    match file.metadata(&key(name)) {
        None => Ok(None),
        Some(gguf::Value::Text(text)) => Ok(Some(text)),
        Some(other) => Err(Error::format(format!(
            "{} is {other}, expected text",
            key(name)
        ))),
    }
}

fn array<'a>(file: &'a Gguf, name: &str) -> Result<Option<&'a gguf::Array>> {
    match file.metadata(&key(name)) {
        None => Ok(None),
        Some(gguf::Value::Array(array)) => Ok(Some(array)),
        Some(other) => Err(Error::format(format!(
            "{} is {other}, expected an array",
            key(name)
        ))),
    }
}

fn id(file: &Gguf, name: &str) -> Result<Option<u32>> {
    match file.metadata(&key(name)) {
        None => Ok(None),
        Some(&gguf::Value::Unsigned(id)) if u32::try_from(id).is_ok() => Ok(Some(id as u32)),
        Some(other) => Err(Error::format(format!(
            "{} is {other}, expected the number of a token",
            key(name)
        ))),
    }
}

#[cfg(test)]
mod tests;
