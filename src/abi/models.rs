//! Model handles: a language model in memory, its tokenizer, its chat template.

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

/// Opens a language model: a manifest (.json), a .gguf file, or a folder in the Hugging Face layout.
///
/// `path`: text. `options`: JSON; NULL or "" for the defaults. Keys: those of `apl_weights_open` (`"bits"`, `"group"`,
/// `"symmetric"`, `"method"`, `"activations"`, `"mmap"`), and `"context"`, the longest context of a session. Weights that are
/// quantised already are taken as stored, unless `"bits"` is given and differs; floats are quantised by the options
/// (4 bits in groups of 32 by default; `"bits": 32` keeps them).
/// Families: llama, mistral, gemma, gemma2, qwen2, qwen3.
/// Output: `model`, to be closed by `apl_model_close`. Any number of sessions and threads use one model at once.
///
/// Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned `model`, a weight that is not finite, a
/// path of more than 64 KiB); ERR_IO;
/// ERR_FORMAT; ERR_UNSUPPORTED (also an architecture that is not known; the message lists those that are); ERR_MEMORY;
/// ERR_BACKEND; ERR_STATE (no handle is left).
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

/// What a model is, as a JSON object.
///
/// Keys: `family`, `format`, `layers`, `hidden`, `intermediate`, `heads`, `kv_heads`, `head_dim`, `vocabulary`, `context`,
/// `parameters` (in matrices), `bits` (the widths that occur), `bytes` (of all matrices in memory), `backend` (where it runs: `cpu`,
/// `cuda`, or `cuda+cpu` where the device has the first layers), `backend_reason`, `devices` (the `ordinal` of each that has a part, and how many `layers`), `activations`, `tokenizer` and `chat` (whether it
/// has one, and a chat template), `bos` (its beginning-of-sequence token or null).
///
/// Returns: the bytes that the whole text needs without the NUL; ERR_HANDLE; ERR_LENGTH (`capacity` < 0); ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_model_info(model: i32, json: *mut c_char, capacity: i32) -> i32 {
    guard("apl_model_info", || {
        let (_held, model) = live(model)?;
        let info = model.info().to_string();
        // SAFETY: the contract of `abi`.
        unsafe { fill("json", json, capacity, &info) }
    })
}

/// Closes a model handle. Sessions that are open go on, and other threads' calls too.
///
/// Returns: OK; ERR_HANDLE (also for a handle that is closed already).
#[unsafe(no_mangle)]
pub extern "C" fn apl_model_close(model: i32) -> i32 {
    guard("apl_model_close", || {
        let _held = state::if_initialised();
        drop(MODELS.remove(model).map_err(|e| called(e, "model"))?);
        Ok(APL_FFI_OK)
    })
}

/// The token ids of a text.
///
/// `text`: text; special tokens that stand in it (`<|im_end|>` …) are taken as such. `add_bos` not 0: exactly one
/// beginning-of-sequence token comes first, if the model has one (`bos` of `apl_model_info`), whether or not its texts begin with it.
/// Output: `ids`, of which at most `capacity` are written.
///
/// Returns: the ids that the whole text has; ERR_HANDLE; ERR_ENCODING; ERR_LENGTH (`capacity` < 0); ERR_NULL; ERR_RANGE
/// (misaligned); ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY.
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

/// The model's chat template over a conversation: the text that asks the model for the next turn.
///
/// `messages`: JSON, `[{"role": "user", "content": "…"}, …]`; roles are what the template knows (system, user, assistant).
/// Tokenize the text without `add_bos`: where the model wants that token, the template writes it. A template has 64 KiB at most, writes 64 MiB
/// at most, and ends after 400,000 steps; what it keeps to itself is not counted: templates are programs of whoever made the model.
///
/// Returns: the bytes that the whole text needs without the NUL; ERR_HANDLE; ERR_ENCODING; ERR_CONFIG (not such messages, or the
/// template refuses them); ERR_LENGTH (`capacity` < 0); ERR_NULL; ERR_FORMAT (a malformed template); ERR_UNSUPPORTED (the model
/// has no tokenizer, no template, or one beyond that); ERR_MEMORY.
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

/// The text of token ids. Special tokens have none; bytes that make no UTF-8 character become U+FFFD.
///
/// `ids` (ids_len).
///
/// Returns: the bytes that the whole text needs without the NUL; ERR_HANDLE; ERR_LENGTH (`ids_len` or `capacity` < 0);
/// ERR_NULL; ERR_RANGE (misaligned, an id that is none of the vocabulary); ERR_UNSUPPORTED (the model has no tokenizer); ERR_MEMORY.
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

/// Bytes that tokenizing takes of memory for each of the text, about, and detokenizing for each token.
const TOKENIZING: usize = 128;
const DETOKENIZING: usize = 64;

/// Declares the room for a text, so that what is wrong with it has its turn among the arrays; [`fill`] writes it.
fn room(arrays: &mut Arrays, text: *mut c_char, capacity: i32) {
    let bytes = arg("text", text.cast::<u8>(), i64::from(capacity));
    arrays.output(bytes, Length::Capacity);
}

/// A live handle's model, and the library that it lives in.
///
/// # Errors `ERR_HANDLE`.
pub(super) fn live(model: i32) -> Result<(Held, Arc<Model>)> {
    // As for weights: held before the look-up.
    let held = state::if_initialised();
    let found = MODELS.get(model).map_err(|e| called(e, "model"))?;
    let held = held.ok_or_else(|| called(MODELS.not_live(model), "model"))?;
    Ok((held, Arc::clone(&found)))
}

/// The message of a table, which knows only of `handle`, with the argument's name.
pub(super) fn called(e: Error, name: &str) -> Error {
    match e.message().strip_prefix("handle") {
        Some(rest) => Error::handle(format!("{name}{rest}")),
        None => e,
    }
}

/// A number of ids: 0 or more.
///
/// # Errors `ERR_LENGTH`.
pub(super) fn id_count(ids_len: i32) -> Result<usize> {
    usize::try_from(ids_len)
        .map_err(|_| Error::length(format!("ids_len is {ids_len}, expected 0 or more")))
}

/// Ids as the library has them.
///
/// # Errors `ERR_RANGE` for a negative one.
pub(super) fn as_ids(ids: &[i32]) -> Result<&[u32]> {
    match ids.iter().position(|&id| id < 0) {
        None => Ok(bytemuck::cast_slice(ids)),
        Some(i) => Err(Error::range(format!(
            "ids[{i}] is {}, expected a token of the vocabulary",
            ids[i]
        ))),
    }
}
