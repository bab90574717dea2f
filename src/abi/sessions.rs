//! Session handles: a conversation with a model.

use std::ffi::c_char;
use std::sync::Arc;

use super::args::{Arrays, Length, arg, fill, text};
use super::guard::guard;
use super::models::{self, as_ids, called, id_count};
use super::state::{self, Held};
use super::status::{APL_FFI_END, APL_FFI_OK};
use super::tables::{SESSIONS, SessionEntry};
use crate::error::{Error, Result};
use crate::model::{Logits, Session, SessionOptions};

/// Opens a session: a position, a KV cache and a sampler of its own.
///
/// `options`: JSON; keys, all optional:
/// - `"context"`: the most tokens, by default and at most those of the model;
/// - `"temperature"`: 0.8 by default; 0 takes the most likely token;
/// - `"top_k"`: 40 by default; 0 for all tokens;
/// - `"top_p"`: 0.95 by default;
/// - `"min_p"`: 0.05 by default;
/// - `"repeat_penalty"`: 1.0 by default, from 0.1 to 10, over the last 64 tokens;
/// - `"seed"`: 0 by default; the same seed gives the same text;
/// - `"kv"`: the type of the KV cache, `"f16"` (default) or `"f32"`. If the model keeps float32
///   weights, it is always `"f32"`.
///
/// Output: `session`, to be closed with `apl_session_close`. Calls on one session from several
/// threads run one after the other.
///
/// Returns: OK; ERR_HANDLE; ERR_ENCODING; ERR_CONFIG; ERR_NULL; ERR_RANGE (misaligned); ERR_MEMORY;
/// ERR_BACKEND; ERR_STATE (no handle is left).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_session_open(
    model: i32,
    options: *const c_char,
    session: *mut i32,
) -> i32 {
    guard("apl_session_open", || {
        let (runtime, model) = models::live(model)?;
        // SAFETY: the contract of `abi`.
        let options = unsafe { text("options", options)? };
        let options = SessionOptions::from_json(options.unwrap_or_default())?;
        let mut arrays = Arrays::default();
        let place = arrays.place("session", session);
        arrays.check()?;
        let opened = Session::new(&runtime, model, &options)?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let place = unsafe { place.slice() };
        place[0] = SESSIONS.insert(SessionEntry::new(opened))?;
        Ok(APL_FFI_OK)
    })
}

/// Feeds tokens (prefill), and writes logits.
///
/// `ids`: (ids_len). Output: `logits`, with V the size of the vocabulary: `logits_len` = V for
/// those of the last token; `ids_len` * V for those of every token, (ids_len, V); 0 for none.
/// Without tokens, `logits_len` = V gives the latest logits again.
///
/// Returns: OK; ERR_HANDLE; ERR_LENGTH; ERR_NULL; ERR_RANGE (an id outside the vocabulary,
/// misaligned or overlapping arrays); ERR_STATE (tokens beyond the context, a cancelled call, no
/// logits yet); ERR_FORMAT (activations are int8, and one inside the model is not finite);
/// ERR_MEMORY; ERR_BACKEND. Unless it returns OK, nothing is fed and `logits` is not written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_session_eval(
    session: i32,
    ids: *const i32,
    ids_len: i32,
    logits: *mut f32,
    logits_len: i64,
) -> i32 {
    guard("apl_session_eval", || {
        let (runtime, shared) = live(session)?;
        let len = id_count(ids_len)?;
        let mut session = shared.take()?;
        let vocabulary = session.model().architecture().vocabulary;
        let mut arrays = Arrays::default();
        let ids = arrays.input(
            arg("ids", ids, i64::from(ids_len)),
            Length::Product(&[("ids_len", len)]),
        );
        let (one, each) = (
            [("vocabulary", vocabulary)],
            [("ids_len", len), ("vocabulary", vocabulary)],
        );
        let logits = arrays.output(
            arg("logits", logits, logits_len),
            Length::NoneOr(&[&one, &each]),
        );
        arrays.check()?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let (ids, logits) = unsafe { (ids.slice(), logits.slice()) };
        let wanted = match logits.len() {
            0 => Logits::None,
            n if n == vocabulary => Logits::Last(logits),
            _ => Logits::All(logits),
        };
        session.eval(&runtime, as_ids(ids)?, wanted)?;
        Ok(APL_FFI_OK)
    })
}

/// Samples one token from the latest logits, feeds it, and writes its text (decode).
///
/// Outputs: `id`; `piece`, whole UTF-8 characters in at most `capacity` bytes, the NUL included.
/// Bytes that do not form a whole character yet, or do not fit, come first in the next piece. When
/// the text ends they are not written; `apl_model_detokenize` gives them.
///
/// Returns: the length in bytes of the piece, excluding the NUL; APL_FFI_END, which is not an
/// error, with an empty piece, at a token that ends the text (`id` is that token; it is not fed) or
/// if the context is full (`id` is -1); ERR_HANDLE; ERR_LENGTH (`capacity` < 0); ERR_NULL;
/// ERR_RANGE (misaligned); ERR_STATE (no logits: feed something first; or a cancelled call);
/// ERR_FORMAT (the logits are not finite); ERR_UNSUPPORTED (the model has no tokenizer);
/// ERR_MEMORY; ERR_BACKEND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_session_next(
    session: i32,
    id: *mut i32,
    piece: *mut c_char,
    capacity: i32,
) -> i32 {
    guard("apl_session_next", || {
        let (runtime, shared) = live(session)?;
        let mut arrays = Arrays::default();
        let id = arrays.place("id", id);
        let bytes = piece.cast::<u8>();
        arrays.output(arg("piece", bytes, i64::from(capacity)), Length::Capacity);
        arrays.check()?;
        let mut session = shared.take()?;
        let room = usize::try_from(capacity).unwrap_or(0).saturating_sub(1);
        let step = session.next(&runtime, room)?;
        // SAFETY: the arrays were checked; the rest is the contract of `abi`.
        let id = unsafe { id.slice() };
        id[0] = step.id.map_or(-1, |id| id as i32);
        // SAFETY: as above.
        let bytes = unsafe { fill("piece", piece, capacity, step.piece)? };
        Ok(if step.end { APL_FFI_END } else { bytes })
    })
}

/// Keeps the first `position` tokens and forgets the others.
///
/// The logits of the last kept token are the latest again. If a sliding window has overwritten what
/// the kept tokens see, they are fed again, which takes as long as the first time.
///
/// Returns: OK; ERR_HANDLE; ERR_RANGE (`position` is negative or beyond the tokens fed); ERR_STATE
/// (a cancelled call); ERR_FORMAT (activations are int8, and one inside the model is not finite);
/// ERR_MEMORY; ERR_BACKEND. Nothing changes unless it returns OK.
#[unsafe(no_mangle)]
pub extern "C" fn apl_session_rewind(session: i32, position: i32) -> i32 {
    guard("apl_session_rewind", || {
        let (runtime, shared) = live(session)?;
        let position = usize::try_from(position)
            .map_err(|_| Error::range(format!("position is {position}, expected 0 or more")))?;
        shared.take()?.rewind(&runtime, position)?;
        Ok(APL_FFI_OK)
    })
}

/// Describes a session and its position, as a JSON object.
///
/// Keys: `position` (tokens fed); `context`; `logits` (whether there are any to sample from);
/// `backend` (as of the model); `kv`; `kv_bytes` (of the KV cache); and the options of the sampler.
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_HANDLE; ERR_LENGTH
/// (`capacity` < 0); ERR_NULL; ERR_STATE (a bug ended an earlier call on the session).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_session_info(session: i32, json: *mut c_char, capacity: i32) -> i32 {
    guard("apl_session_info", || {
        let (_held, shared) = live(session)?;
        let info = shared.take()?.info().to_string();
        // SAFETY: the contract of `abi`.
        unsafe { fill("json", json, capacity, &info) }
    })
}

/// Cancels the call that another thread is running on a session.
///
/// That call returns ERR_STATE and has fed nothing, unless it has passed the last check for
/// cancellation, one of which precedes every layer and the output matrix (on a device, every block
/// of tokens); then it ends normally, and a caller that loops needs a flag of its own. This
/// function does not wait for it, and does nothing if no call is running.
///
/// Returns: OK; ERR_HANDLE.
#[unsafe(no_mangle)]
pub extern "C" fn apl_session_cancel(session: i32) -> i32 {
    guard("apl_session_cancel", || {
        // Does not hold the library: if `apl_ffi_cleanup` is waiting for the call that is to be
        // cancelled, holding it would wait for `apl_ffi_cleanup`.
        let canceller = SESSIONS.look(session, SessionEntry::canceller);
        canceller.map_err(|e| called(e, "session"))?.cancel();
        Ok(APL_FFI_OK)
    })
}

/// Closes a session handle. Safe while another thread uses it: the session lives until that call
/// ends.
///
/// Returns: OK; ERR_HANDLE (also for a handle that has been closed already).
#[unsafe(no_mangle)]
pub extern "C" fn apl_session_close(session: i32) -> i32 {
    guard("apl_session_close", || {
        let _held = state::if_initialised();
        drop(SESSIONS.remove(session).map_err(|e| called(e, "session"))?);
        Ok(APL_FFI_OK)
    })
}

/// The session of a live handle, and the library, held.
///
/// # Errors
/// `ERR_HANDLE`.
fn live(session: i32) -> Result<(Held, Arc<SessionEntry>)> {
    let held = state::if_initialised();
    let found = SESSIONS.get(session).map_err(|e| called(e, "session"))?;
    let held = held.ok_or_else(|| called(SESSIONS.not_live(session), "session"))?;
    Ok((held, found))
}
