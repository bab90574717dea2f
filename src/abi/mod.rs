//! The C ABI: entry points that check, convert, call one function and convert back.
//!
//! No raw pointer of a caller leaves this folder, and every exported function is one call of the
//! guard (`guard.rs`), so nothing unwinds into the caller. `tests/abi_exports.rs` checks the
//! latter.
//!
//! | file | contents |
//! |---|---|
//! | `lifecycle`, `oneshot`, `quantizing` | exported functions, with the header's comments |
//! | `weights`, `models`, `sessions` | the same, on handles |
//! | `status` | the numbers and texts of the statuses, the version of the ABI |
//! | `guard`, `last_error` | `Result` or panic in, status and message out |
//! | `args` | raw arguments in, slices and text out, in the contract's order of checks |
//! | `code_args` | the arguments of a quantised matrix, which seven functions share |
//! | `vectors` | the arguments x, y and n of a product |
//! | `handles`, `tables` | generational handles; the table of each kind |
//! | `state` | the configured library, and when it may be used |
//!
//! # Safety of the exported functions
//!
//! The caller guarantees what cannot be checked, and it is the same for all functions: a pointer
//! that is not NULL points to as many elements as its length says, readable (writable for an
//! output) until the call returns; meanwhile nobody writes an input, and nobody else reads or
//! writes an output; text ends with NUL. Lengths, NULL, alignment and overlap are checked. "The
//! contract of `abi`" in a SAFETY comment is this paragraph.
#![allow(
    clippy::missing_safety_doc,
    reason = "stated once above; the comments of the functions become those of the C header"
)]
#![allow(
    clippy::too_many_arguments,
    reason = "the prototypes are the contract's"
)]

mod args;
mod code_args;
mod guard;
mod handles;
mod last_error;
mod state;
mod tables;
mod vectors;

pub mod lifecycle;
pub mod models;
pub mod oneshot;
pub mod quantizing;
pub mod sessions;
pub mod status;
pub mod weights;
