//! The bytes of each token.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer as Engine;

use crate::error::{Error, Result};

/// The bytes of all tokens, concatenated.
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// The offset of each token's bytes, and the end of the last one: `(tokens + 1)`
    starts: Vec<u32>,
    /// The number of tokens up to the last one that was not added to the others.
    trained: usize,
    strips_first_space: bool,
}

/// How tokens spell bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// Each character is a byte, by the table of GPT-2.
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte, everything else is literal.
    SentencePiece,
}

impl Vocabulary {
    pub(super) fn of(engine: &Engine) -> Result<Vocabulary> {
        let (spelling, strips_first_space) = spelling(engine)?;
        let texts = engine.get_vocab(true);
        let len = texts.values().max().map_or(0, |&id| id as usize + 1);
        if len > MOST_TOKENS {
            return Err(Error::format(format!(
                "a token has the number {}, at most {MOST_TOKENS} were expected",
                len - 1
            )));
        }
        let mut by_id = vec![""; len];
        for (text, &id) in &texts {
            by_id[id as usize] = text;
        }
        let added = engine.get_added_tokens_decoder();
        let was_trained = |id: &usize| !by_id[*id].is_empty() && !added.contains_key(&(*id as u32));
        let trained = (0..len).rfind(was_trained).map_or(0, |id| id + 1);
        let letters = byte_letters();
        let (mut bytes, mut starts) = (Vec::new(), Vec::with_capacity(len + 1));
        let start = |bytes: &[u8]| {
            u32::try_from(bytes.len())
                .map_err(|_| Error::format("the tokens have more than 4 GiB together"))
        };
        for (id, text) in by_id.iter().enumerate() {
            starts.push(start(&bytes)?);
            // Added tokens are decoded like the others, in their normalised form.
            let text = match added.get(&(id as u32)) {
                Some(token) if token.special => continue,
                Some(_) => engine.id_to_token(id as u32).unwrap_or_default(),
                None => (*text).to_owned(),
            };
            match spelling {
                Spelling::ByteLevel => spell_bytes(&text, &letters, &mut bytes),
                Spelling::SentencePiece => match fallback_byte(&text) {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend_from_slice(text.replace('▁', " ").as_bytes()),
                },
            }
        }
        starts.push(start(&bytes)?);
        Ok(Vocabulary {
            bytes,
            starts,
            trained,
            strips_first_space,
        })
    }

    /// The number of tokens.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The number of tokens that the model must have: without those added after its training, as for
    /// padding, that it may have no rows for.
    pub(super) fn trained(&self) -> usize {
        self.trained
    }

    /// Whether the space at the start of the first token is not part of the text.
    pub(super) fn strips_first_space(&self) -> bool {
        self.strips_first_space
    }

    /// The bytes of a token; none beyond the vocabulary.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        match self.starts.get(id as usize..id as usize + 2) {
            Some(&[start, end]) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }
}

/// Far above the largest vocabularies, which have some 300,000.
const MOST_TOKENS: usize = 1 << 24;

/// The spelling of tokens, by the decoder of a tokenizer.
fn spelling(engine: &Engine) -> Result<(Spelling, bool)> {
    let decoder = engine.get_decoder();
    let decoder = serde_json::to_value(decoder).unwrap_or(Value::Null);
    let kind = |d: &Value| d["type"].as_str().unwrap_or("none").to_owned();
    match kind(&decoder).as_str() {
        "ByteLevel" => Ok((Spelling::ByteLevel, false)),
        "Metaspace" => {
            let scheme = decoder["prepend_scheme"].as_str().unwrap_or("always");
            let old = decoder["add_prefix_space"].as_bool().unwrap_or(true);
            Ok((Spelling::SentencePiece, scheme != "never" && old))
        }
        "Sequence" => {
            let parts = decoder["decoders"].as_array();
            let parts: Vec<String> = parts.into_iter().flatten().map(kind).collect();
            if parts.iter().any(|p| p == "ByteLevel") {
                Ok((Spelling::ByteLevel, false))
            } else if parts
                .iter()
                .any(|p| p == "ByteFallback" || p == "Metaspace")
            {
                let strips = parts.iter().any(|p| p == "Strip" || p == "Metaspace");
                Ok((Spelling::SentencePiece, strips))
            } else {
                Err(unknown(&parts.join(", ")))
            }
        }
        other => Err(unknown(other)),
    }
}

fn unknown(found: &str) -> Error {
    Error::unsupported(format!(
        "a tokenizer whose decoder is {found:?}; ByteLevel, Metaspace and ByteFallback are known"
    ))
}

/// The byte of `<0x0A>`.
fn fallback_byte(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The table of GPT-2: printable bytes are themselves, the others follow from U+0100 on.
fn byte_letters() -> HashMap<char, u8> {
    let mut letters = HashMap::with_capacity(256);
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let letter = if printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("below the surrogates")
        };
        letters.insert(letter, byte);
    }
    letters
}

/// A text with a character outside the table is literal, as for added tokens.
fn spell_bytes(text: &str, letters: &HashMap<char, u8>, out: &mut Vec<u8>) {
    let before = out.len();
    for c in text.chars() {
        let Some(&byte) = letters.get(&c) else {
            out.truncate(before);
            return out.extend_from_slice(text.as_bytes());
        };
        out.push(byte);
    }
}
