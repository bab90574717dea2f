//! Model handles: a language model in memory, with its tokenizer and its chat template.

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

use super::args::{self, Arrays, Length, arg, fill, text};
use super::guard::guard;
use super::state::{self, Held};
use super::status::APL_FFI_OK;
use super::tables::MODELS;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::{Model, ModelOptions};
use crate::tokenizer::Messages;

/// Opens a language model: a manifest (.json), a .gguf file, or a Hugging Face folder.
///
/// `path`: text. A folder has the Hugging Face layout (config.json, .safetensors files,
/// tokenizer.json) or holds one manifest or one .gguf file. `options`: JSON; keys: those of
/// `apl_weights_open` (`"bits"`, `"group"`, `"symmetric"`, `"method"`, `"activations"`, `"mmap"`),
/// and `"context"`, the longest context of a session. Weights that are already quantised are taken
/// as stored, unless `"bits"` is given and differs; floats are quantised by the options (4 bits in
/// groups of 32 by default; `"bits": 32` keeps them). Without `"bits"`, the GGUF types Q5_0, Q5_1,
/// Q5_K and Q6_K become 8-bit codes. Families: llama, mistral, gemma, gemma2, qwen2, qwen3.
///
/// Output: `model`, to be closed with `apl_model_close`. Any number of sessions and threads may use
/// one model at once.
///
/// Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned `model`, a weight that is
/// not finite, a path of more than 64 KiB); ERR_IO; ERR_FORMAT; ERR_UNSUPPORTED (including an
/// unknown architecture; the message lists the known ones); ERR_MEMORY; ERR_BACKEND; ERR_STATE (no
/// handle is left).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_model_open(
    path: *const c_char,
    options: *const c_char,
    model: *mut i32,
) -> i32 {
    guard("apl_model_open", || {
        // SAFETY: the contract of `abi`.
        let (path, options) = unsafe { (args::name("path", path)?, text("options", options)?) };
        let options = ModelOptions::from_json(options.unwrap_or_default())?;
        let mut arrays = Arrays::default();
        let path = arrays.required("path", path);
        let place = arrays.place("model", model);
        arrays.check()?;

        let runtime = state::runtime()?;
        let opened = Model::open(&runtime, Path::new(path), &options)?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let place = unsafe { place.slice() };
        place[0] = MODELS.insert(Arc::new(opened))?;
        Ok(APL_FFI_OK)
    })
}

/// Describes a model, as a JSON object.
///
/// Keys: `family`; `format`; `layers`; `hidden`; `intermediate`; `heads`; `kv_heads`; `head_dim`;
/// `vocabulary`; `context`; `parameters` (in matrices); `bits` (the widths that occur); `bytes` (of
/// all matrices in memory); `backend` (where it runs: `cpu`, `cuda`, or `cuda+cpu` if only the
/// first layers are on the device); `backend_reason`; `devices` (the `ordinal` of each device that
/// has a part, and its number of `layers`); `activations`; `tokenizer` and `chat` (whether it has a
/// tokenizer and a chat template); `bos` (its beginning-of-sequence token, or null).
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_LENGTH
/// (`capacity` < 0); ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_model_info(model: i32, json: *mut c_char, capacity: i32) -> i32 {
    guard("apl_model_info", || {
        let (_held, model) = live(model)?;
        let info = model.info().to_string();
        // SAFETY: the contract of `abi`.
        unsafe { fill("json", json, capacity, &info) }
    })
}

/// Closes a model handle. Open sessions and running calls keep using the model until they end.
///
/// Returns: OK; ERR_HANDLE (also for a handle that has been closed already).
#[unsafe(no_mangle)]
pub extern "C" fn apl_model_close(model: i32) -> i32 {
    guard("apl_model_close", || {
        let _held = state::if_initialised();
        drop(MODELS.remove(model).map_err(|e| called(e, "model"))?);
        Ok(APL_FFI_OK)
    })
}

/// Converts a text to token ids.
///
/// `text`: text; special tokens in it (`<|im_end|>` …) are recognised as such. If `add_bos` is not
/// 0 and the model has a beginning-of-sequence token (`bos` of `apl_model_info`), exactly one comes
/// first, whether or not the model's own texts begin with it.
///
/// Output: `ids`, of which at most `capacity` are written.
///
/// Returns: the number of ids of the whole text; ERR_HANDLE; ERR_ENCODING; ERR_LENGTH
/// (`capacity` < 0); ERR_NULL; ERR_RANGE (misaligned); ERR_FORMAT (the tokenizer cannot encode the
/// text); ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_model_tokenize(
    model: i32,
    text: *const c_char,
    add_bos: i32,
    ids: *mut i32,
    capacity: i32,
) -> i32 {
    guard("apl_model_tokenize", || {
        let (_held, model) = live(model)?;
        // SAFETY: the contract of `abi`.
        let text = unsafe { args::text("text", text)? };
        let mut arrays = Arrays::default();
        let text = arrays.required("text", text);
        let ids = arrays.output(arg("ids", ids, i64::from(capacity)), Length::Capacity);
        arrays.check()?;
        memory::room_for(
            text.len().saturating_mul(TOKENIZING),
            "the tokens of a text",
        )?;
        let tokenizer = model.tokenizer()?;
        let first = tokenizer.bos().filter(|_| add_bos != 0);
        let found = tokenizer.encode(text, first)?;
        let needed = i32::try_from(found.len())
            .map_err(|_| Error::unsupported("text has more tokens than an int32 counts"))?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let ids = unsafe { ids.slice() };
        for (to, &id) in ids.iter_mut().zip(&found) {
            *to = id as i32;
        }
        Ok(needed)
    })
}

/// Applies the model's chat template to a conversation: the text that asks for the next turn.
///
/// `messages`: JSON, `[{"role": "user", "content": "…"}, …]`; the roles are those that the template
/// knows (system, user, assistant). Tokenize the text without `add_bos`: if the model needs that
/// token, the template writes it.
///
/// Templates are programs written by whoever made the model, so they are limited: to 64 KiB, to
/// 400,000 steps, to an output of 64 MiB, to reading and setting attributes of namespaces, and to
/// multiplying (repeating) literal strings. Memory that a template uses without writing it, and the
/// time of a step over a long list, are not limited.
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_ENCODING;
/// ERR_CONFIG (`messages` is not of this form, or the template refuses it); ERR_LENGTH
/// (`capacity` < 0); ERR_NULL; ERR_FORMAT (a malformed template); ERR_UNSUPPORTED (the model has no
/// tokenizer, no template, or one that exceeds the limits); ERR_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_model_chat(
    model: i32,
    messages: *const c_char,
    text: *mut c_char,
    capacity: i32,
) -> i32 {
    guard("apl_model_chat", || {
        let (_held, model) = live(model)?;
        // SAFETY: the contract of `abi`.
        let messages = unsafe { args::text("messages", messages)? };
        let read = messages.map(Messages::parse).transpose()?;
        let mut arrays = Arrays::default();
        arrays.required("messages", messages);
        room(&mut arrays, text, capacity);
        arrays.check()?;
        let messages = read.ok_or_else(|| Error::null("messages is NULL, expected text"))?;
        let chat = model.tokenizer()?.chat_over(&messages)?;
        // SAFETY: the contract of `abi`.
        unsafe { fill("text", text, capacity, &chat) }
    })
}

/// Converts token ids to text.
///
/// `ids`: (ids_len). Special tokens have no text; bytes that form no UTF-8 character become U+FFFD.
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_LENGTH
/// (`ids_len` or `capacity` < 0); ERR_NULL; ERR_RANGE (misaligned, an id outside the vocabulary);
/// ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_model_detokenize(
    model: i32,
    ids: *const i32,
    ids_len: i32,
    text: *mut c_char,
    capacity: i32,
) -> i32 {
    guard("apl_model_detokenize", || {
        let (_held, model) = live(model)?;
        let len = id_count(ids_len)?;
        let mut arrays = Arrays::default();
        let ids = arrays.input(
            arg("ids", ids, i64::from(ids_len)),
            Length::Product(&[("ids_len", len)]),
        );
        room(&mut arrays, text, capacity);
        arrays.check()?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let ids = as_ids(unsafe { ids.slice() })?;
        memory::room_for(ids.len().saturating_mul(DETOKENIZING), "the text of tokens")?;
        let decoded = model.tokenizer()?.decode(ids)?;
        // SAFETY: the contract of `abi`.
        unsafe { fill("text", text, capacity, &decoded) }
    })
}

/// Bytes of memory, about, that tokenizing takes per byte of text, and detokenizing per token.
const TOKENIZING: usize = 128;
const DETOKENIZING: usize = 64;

/// Declares the buffer for a text, so that its checks come in order with those of the arrays;
/// [`fill`] writes it.
fn room(arrays: &mut Arrays, text: *mut c_char, capacity: i32) {
    let bytes = arg("text", text.cast::<u8>(), i64::from(capacity));
    arrays.output(bytes, Length::Capacity);
}

/// The model of a live handle, and the library, held.
///
/// # Errors
/// `ERR_HANDLE`.
pub(super) fn live(model: i32) -> Result<(Held, Arc<Model>)> {
    // Held before the look-up, as for weights.
    let held = state::if_initialised();
    let found = MODELS.get(model).map_err(|e| called(e, "model"))?;
    let held = held.ok_or_else(|| called(MODELS.not_live(model), "model"))?;
    Ok((held, Arc::clone(&found)))
}

/// The error of a table, whose message says `handle`, with the name of the argument instead.
pub(super) fn called(e: Error, name: &str) -> Error {
    match e.message().strip_prefix("handle") {
        Some(rest) => Error::handle(format!("{name}{rest}")),
        None => e,
    }
}

/// The number of ids, 0 or more.
///
/// # Errors
/// `ERR_LENGTH`.
pub(super) fn id_count(ids_len: i32) -> Result<usize> {
    usize::try_from(ids_len)
        .map_err(|_| Error::length(format!("ids_len is {ids_len}, expected 0 or more")))
}

/// The ids as unsigned integers.
///
/// # Errors
/// `ERR_RANGE` for a negative one.
pub(super) fn as_ids(ids: &[i32]) -> Result<&[u32]> {
    match ids.iter().position(|&id| id < 0) {
        None => Ok(bytemuck::cast_slice(ids)),
        Some(i) => Err(Error::range(format!(
            "ids[{i}] is {}, expected a token of the vocabulary",
            ids[i]
        ))),
    }
}
