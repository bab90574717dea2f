//! Text to token ids and back, and chat templates.
//!
//! | module | responsibility |
//! |---|---|
//! | `hf` | `tokenizer.json` and the files beside it |
//! | `gguf` | the same, made from the metadata of a GGUF file |
//! | `vocabulary` | the bytes of each token |
//! | `pieces` | the text of a growing sequence, whole characters at a time |
//! | `chat` | the chat template of a model |
//! | `namespaces` | refuses templates that could make cycles |
//! | `tags` | what stands in the tags of a template |
//!
//! Encoding is done by the `tokenizers` crate; the vocabulary of a GGUF file is converted to its
//! format. Decoding uses a table of bytes that is built once, so that the text of one more token
//! takes neither a search nor an allocation.

mod chat;
mod gguf;
mod hf;
mod namespaces;
mod pieces;
mod tags;
mod vocabulary;

pub use chat::Messages;
pub use pieces::Pieces;

use std::fmt::Display;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;
use crate::runtime::quietly;
use chat::Template;
use vocabulary::Vocabulary;

/// The tokenizer and the chat template of a model.
pub struct Tokenizer {
    engine: tokenizers::Tokenizer,
    vocabulary: Vocabulary,
    special: Special,
    template: Option<Template>,
}

/// The special tokens and the chat template.
#[derive(Clone, Debug, Default)]
struct Special {
    /// The `bos_token` of chat templates.
    bos: Option<u32>,
    /// Whether texts begin with `bos`.
    begins: bool,
    /// The tokens that end a text or a turn.
    ends: Vec<u32>,
    template: Option<String>,
}

/// Tokens that end a turn in the chat formats of known models, whatever the files say.
const TURN_ENDS: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<|end|>",
];

impl Tokenizer {
    /// The files beside a manifest that make up its tokenizer.
    pub const FILES: [&str; 3] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ];

    /// From a folder in the Hugging Face layout: `tokenizer.json`, with the special tokens and the
    /// chat template from `tokenizer_config.json`, `generation_config.json` and `config.json`.
    ///
    /// # Errors
    /// `ERR_IO`, `ERR_FORMAT`, `ERR_UNSUPPORTED` for an unknown kind of tokenizer.
    pub fn from_folder(folder: &Path) -> Result<Tokenizer> {
        let (engine, special) = hf::read(folder)?;
        Tokenizer::new(engine, special).map_err(|e| e.in_file(&folder.join("tokenizer.json")))
    }

    /// From the text of a `tokenizer.json` alone, without special tokens or a chat template.
    ///
    /// # Errors
    /// `ERR_FORMAT`, `ERR_UNSUPPORTED` for an unknown kind of tokenizer.
    pub fn from_json(text: &[u8]) -> Result<Tokenizer> {
        Tokenizer::new(hf::parse(text)?, Special::default())
    }

    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// `ERR_FORMAT` for an inconsistent vocabulary, `ERR_UNSUPPORTED` for an unknown kind.
    pub fn from_gguf(file: &Gguf) -> Result<Tokenizer> {
        let (engine, special) = gguf::read(file)?;
        Tokenizer::new(engine, special)
    }

    fn new(engine: tokenizers::Tokenizer, mut special: Special) -> Result<Tokenizer> {
        let vocabulary = Vocabulary::of(&engine)?;
        // Some files name tokens that were never added to the vocabulary. None of these is ever
        // generated; `transformers` and llama.cpp pass over them too.
        let is_known = |id: &u32| (*id as usize) < vocabulary.len();
        special.bos = special.bos.filter(is_known);
        special.ends.retain(is_known);
        for token in TURN_ENDS {
            if let Some(id) = engine.token_to_id(token)
                && !special.ends.contains(&id)
            {
                special.ends.push(id);
            }
        }
        // An empty template, which some files have, counts as none.
        special.template = special.template.filter(|text| !text.trim().is_empty());
        let name = |id: Option<u32>| id.and_then(|id| content(&engine, id)).unwrap_or_default();
        let template = match &special.template {
            None => None,
            Some(text) => Some(Template::new(
                text.clone(),
                name(special.bos),
                name(special.ends.first().copied()),
            )),
        };
        Ok(Tokenizer {
            engine,
            vocabulary,
            special,
            template,
        })
    }

    /// The contents of the files [`Tokenizer::FILES`], in their order, from which
    /// [`Tokenizer::from_folder`] reads this tokenizer back. `generation` is what the last of them
    /// contains besides the tokens that begin and end a text.
    ///
    /// # Errors
    /// `ERR_IO`.
    pub fn texts(&self, generation: Map<String, Value>) -> Result<[String; 3]> {
        let name = |id: u32| content(&self.engine, id);
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.special.bos.and_then(name),
            "add_bos_token": self.begins().is_some(),
            "eos_token": self.special.ends.first().copied().and_then(name),
        });
        if let Some(template) = &self.special.template {
            config["chat_template"] = Value::from(template.as_str());
        }
        let tokenizer = self
            .engine
            .to_string(false)
            .map_err(|e| Error::io(format!("the tokenizer cannot be written: {e}")))?;
        let mut generation = Value::Object(generation);
        generation["bos_token_id"] = json!(self.special.bos);
        generation["eos_token_id"] = json!(self.special.ends);
        Ok([
            tokenizer,
            format!("{config:#}\n"),
            format!("{generation:#}\n"),
        ])
    }

    /// The number of tokens in the vocabulary, including added ones.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary.len()
    }

    /// Checks that a model with `rows` tokens can be this tokenizer's. Tokens that were added after
    /// its training, as for padding, may be beyond them.
    ///
    /// # Errors
    /// `ERR_FORMAT`.
    pub fn check_rows(&self, rows: usize) -> Result<()> {
        let trained = self.vocabulary.trained();
        if trained > rows {
            return Err(Error::format(format!(
                "the tokenizer has {trained} tokens, the model {rows}"
            )));
        }
        match self.begins() {
            Some(first) if first as usize >= rows => Err(Error::format(format!(
                "the tokenizer begins texts with token {first}, the model has {rows} tokens"
            ))),
            _ => Ok(()),
        }
    }

    /// The beginning-of-sequence token, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The beginning-of-sequence token, if texts of the model begin with it.
    pub fn begins(&self) -> Option<u32> {
        self.bos().filter(|_| self.special.begins)
    }

    /// Whether a token ends the text or the turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.special.ends.contains(&id)
    }

    /// The ids of a text. Special tokens named in the text are recognised, as chat templates need.
    /// `first` is put in front, once; usually [`Tokenizer::begins`].
    ///
    /// # Errors
    /// `ERR_FORMAT` if the tokenizer cannot encode the text (a vocabulary without its characters,
    /// and no unknown token).
    pub fn encode(&self, text: &str, first: Option<u32>) -> Result<Vec<u32>> {
        encoded(&self.engine, text, first)
    }

    /// The same, but the names of special tokens are ordinary text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str, first: Option<u32>) -> Result<Vec<u32>> {
        let mut engine = self.engine.clone();
        engine.set_encode_special_tokens(true);
        encoded(&engine, text, first)
    }

    /// The text of a sequence. Special tokens have no text; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// `ERR_RANGE` for an id beyond the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut pieces = self.pieces(true);
        let mut text = String::new();
        for (i, &id) in ids.iter().enumerate() {
            if id as usize >= self.vocabulary.len() {
                return Err(Error::range(format!(
                    "ids[{i}] is {id}, expected 0 to {}",
                    self.vocabulary.len() - 1
                )));
            }
            pieces.push(self, id, i);
            text.push_str(pieces.take(usize::MAX));
        }
        pieces.finish();
        text.push_str(pieces.take(usize::MAX));
        Ok(text)
    }

    /// The text of a growing sequence; `at_start`: at most a beginning-of-sequence token comes
    /// before.
    pub fn pieces(&self, at_start: bool) -> Pieces {
        Pieces::new(at_start && self.vocabulary.strips_first_space())
    }

    /// The bytes of a token; none for a special one.
    fn bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The prompt that the chat template makes of messages, a JSON list
    /// `[{"role": …, "content": …}, …]`, including the start of the answer.
    ///
    /// # Errors
    /// `ERR_UNSUPPORTED` if the model has no template, `ERR_CONFIG` if the messages are not such a
    /// list or the template refuses them, `ERR_FORMAT` for a malformed template.
    pub fn chat(&self, messages: &str) -> Result<String> {
        self.chat_over(&Messages::parse(messages)?)
    }

    /// As [`Tokenizer::chat`], for parsed messages.
    ///
    /// # Errors
    /// As [`Tokenizer::chat`].
    pub fn chat_over(&self, messages: &Messages) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::unsupported("the model has no chat template: it continues text, give it some")
        })?;
        template.render(messages)
    }
}

/// The text of a token. For an added token the engine's own look-up returns the text after
/// normalisation (`▁<s>`).
fn content(engine: &tokenizers::Tokenizer, id: u32) -> Option<String> {
    match engine
        .get_added_vocabulary()
        .get_added_tokens_decoder()
        .get(&id)
    {
        Some(added) => Some(added.content.clone()),
        None => engine.id_to_token(id),
    }
}

fn encoded(engine: &tokenizers::Tokenizer, text: &str, first: Option<u32>) -> Result<Vec<u32>> {
    let failed =
        |e: &dyn Display| Error::format(format!("the tokenizer cannot encode the text: {e}"));
    // The engine panics on inconsistencies that the checks have missed; nothing in it changes
    // during this call.
    let encoding = quietly(|| engine.encode_fast(text, false))
        .map_err(|said| failed(&said))?
        .map_err(|e| failed(&e))?;
    let ids = encoding.get_ids();
    let mut out = Vec::with_capacity(ids.len() + 1);
    out.extend(first.filter(|first| ids.first() != Some(first)));
    out.extend_from_slice(ids);
    Ok(out)
}

#[cfg(test)]
mod tests;
