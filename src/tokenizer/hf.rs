//! `tokenizer.json`, and the special tokens given in the files beside it.

use std::fmt::Display;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{ModelWrapper, Tokenizer as Engine};

use super::Special;
use crate::error::{Error, Result};
use crate::formats::json;
use crate::runtime::quietly;

/// Reads the tokenizer of a folder.
pub(super) fn read(folder: &Path) -> Result<(Engine, Special)> {
    let path = folder.join("tokenizer.json");
    let bytes = json::read(&path)?.ok_or_else(|| {
        Error::io(format!(
            "{} cannot be opened: there is no such file",
            path.display()
        ))
    })?;
    let engine = parse(&bytes).map_err(|e| e.within(path.display()))?;
    let tokens = object(
        &folder.join("tokenizer_config.json"),
        &["bos_token", "eos_token", "add_bos_token", "chat_template"],
    )?;
    let mut special = Special::default();
    let token = |key: &str| {
        let value = tokens.get(key)?;
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        engine.token_to_id(text)
    };
    special.bos = token("bos_token");
    special.ends.extend(token("eos_token"));
    for file in ["generation_config.json", "config.json"] {
        let config = object(&folder.join(file), &["bos_token_id", "eos_token_id"])?;
        let ids = |key: &str| -> Vec<u32> {
            let list = match config.get(key) {
                Some(Value::Array(list)) => list.as_slice(),
                Some(one) => std::slice::from_ref(one),
                None => &[],
            };
            list.iter()
                .filter_map(|v| u32::try_from(v.as_u64()?).ok())
                .collect()
        };
        // If `bos_token` is null, these files may still have an id for it. That id is meant for
        // training, and no text begins with it (Qwen 2.5). A negative or absent id means that there
        // is none.
        if !tokens.contains_key("bos_token") {
            special.bos = special.bos.or(ids("bos_token_id").first().copied());
        }
        for id in ids("eos_token_id") {
            if !special.ends.contains(&id) {
                special.ends.push(id);
            }
        }
    }
    let processor = serde_json::to_value(engine.get_post_processor()).unwrap_or_default();
    let first = first_of_every_text(&processor);
    special.bos = special.bos.or(first);
    special.begins = match tokens.get("add_bos_token") {
        Some(&Value::Bool(wanted)) => wanted,
        // Without a post-processor nothing says what texts begin with; the token is assumed to be
        // there for that.
        _ => processor.is_null() || first.is_some() && first == special.bos,
    };
    special.template = template(folder, &tokens)?;
    Ok((engine, special))
}

/// The token that the post-processor puts before texts.
fn first_of_every_text(processor: &Value) -> Option<u32> {
    let id = match processor["type"].as_str()? {
        "TemplateProcessing" => {
            let name = processor["single"][0]["SpecialToken"]["id"].as_str()?;
            &processor["special_tokens"][name]["ids"][0]
        }
        "BertProcessing" | "RobertaProcessing" => &processor["cls"][1],
        "Sequence" => {
            let parts = processor["processors"].as_array()?;
            return parts.iter().rev().find_map(first_of_every_text);
        }
        _ => return None,
    };
    u32::try_from(id.as_u64()?).ok()
}

/// A tokenizer from the text of a `tokenizer.json`.
pub(super) fn parse(bytes: &[u8]) -> Result<Engine> {
    let refused = |why: &dyn Display| Error::format(format!("it is not a tokenizer: {why}"));
    // Words and merges, which may be many, are read by the engine only. The members of arbitrary
    // form are small in every real file, and the engine would build a tree of them as well.
    let small = json::object(bytes, "the text", |key| {
        matches!(
            key,
            "normalizer"
                | "pre_tokenizer"
                | "post_processor"
                | "decoder"
                | "truncation"
                | "padding"
        )
    });
    let small = small.map_err(|e| refused(&e))?;
    if let Some(normalizer) = small.get("normalizer") {
        check_charsmaps(normalizer)?;
    }
    // The engine's checks are thorough but not complete: it panics on some contradictions.
    let parsed = quietly(|| Engine::from_bytes(bytes));
    let parsed = parsed.map_err(|_| Error::format("it contradicts itself"))?;
    let mut engine = parsed.map_err(|e| refused(&e))?;
    check_pieces(&serde_json::to_value(engine.get_pre_tokenizer()).unwrap_or_default())?;
    // Files keep the truncation and padding of their training; here texts are encoded whole.
    engine.with_padding(None);
    engine.with_truncation(None).map_err(|e| refused(&e))?;
    forget_words(&mut engine);
    Ok(engine)
}

/// Refuses a SentencePiece `precompiled_charsmap` whose table is longer than its data. It begins
/// with the number of bytes of its table, and the engine allocates a table of that size before it
/// checks that the bytes are there; if 8 GiB cannot be allocated, the process aborts.
fn check_charsmaps(normalizer: &Value) -> Result<()> {
    let parts = match normalizer {
        Value::Object(parts) => parts.values().collect(),
        Value::Array(parts) => parts.iter().collect(),
        _ => Vec::new(),
    };
    if let Some(Value::String(map)) = normalizer.get("precompiled_charsmap")
        && let Some(table) = first_number(map)
    {
        let bytes = map.len() as u64 * 3 / 4;
        if u64::from(table) + 4 > bytes {
            return Err(Error::format(format!(
                "its precompiled_charsmap has {bytes} bytes and begins with a table of {table}"
            )));
        }
    }
    parts.into_iter().try_for_each(check_charsmaps)
}

/// The first four bytes of a base64 text as a number; `None` if it is not base64, which the engine
/// will refuse.
fn first_number(base64: &str) -> Option<u32> {
    let six = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = base64.as_bytes().get(..6)?;
    let bits = digits
        .iter()
        .try_fold(0u64, |bits, &c| Some(bits << 6 | u64::from(six(c)?)))?;
    Some(((bits >> 4) as u32).swap_bytes())
}

/// With pieces of zero characters the engine panics at the first text.
fn check_pieces(pre_tokenizer: &Value) -> Result<()> {
    if pre_tokenizer["type"] == "FixedLength" && pre_tokenizer["length"] == 0 {
        return Err(Error::format(
            "its pre_tokenizer cuts texts in pieces of 0 characters",
        ));
    }
    let parts = pre_tokenizer["pretokenizers"].as_array();
    parts.into_iter().flatten().try_for_each(check_pieces)
}

/// Disables the cache of words. Byte-pair models keep up to 10,000 words in a map that belongs to
/// the calling thread, outlives the model and cannot be emptied. Without it, text of common words
/// takes 1.8 times as long (5.4 s for 4 MB compared with 3.1 s), source code 1.1 times; a prompt
/// takes milliseconds.
fn forget_words(engine: &mut Engine) {
    if let ModelWrapper::BPE(model) = engine.get_model() {
        let mut model = model.clone();
        model.resize_cache(0);
        engine.with_model(model);
    }
}

/// The template may be a text, a list of named ones, or in a separate file.
fn template(folder: &Path, config: &Map<String, Value>) -> Result<Option<String>> {
    if let Some(bytes) = json::read(&folder.join("chat_template.jinja"))? {
        return Ok(Some(String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(match config.get("chat_template") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(named)) => {
            let default = named
                .iter()
                .find(|t| t.get("name").is_some_and(|n| n == "default"));
            let chosen = default.or(named.first());
            chosen.and_then(|t| Some(t.get("template")?.as_str()?.to_owned()))
        }
        _ => None,
    })
}

/// The wanted members of a JSON object; none if the file is absent.
fn object(path: &Path, wanted: &[&str]) -> Result<Map<String, Value>> {
    let Some(bytes) = json::read(path)? else {
        return Ok(Map::new());
    };
    json::object(&bytes, "it", |key| wanted.contains(&key)).map_err(|e| e.within(path.display()))
}
