//! The C ABI: entry points that check, convert, call one function and convert back.
//!
//! Every raw pointer of a caller ends in this folder, and every exported function is one call of
//! the guard (`guard.rs`): nothing unwinds into the caller. `tests/abi_exports.rs` holds the sources to both.
//!
//! | file | one reason to exist |
//! |---|---|
//! | `lifecycle`, `oneshot`, `quantizing`, `weights`, `models`, `sessions` | the exported functions; their comments are those of the header |
//! | `status` | the numbers and texts of the statuses, the ABI's version |
//! | `guard`, `last_error` | from `Result` or panic to status and message |
//! | `args` | from raw arguments to slices and text, in the order of checks that the contract gives |
//! | `code_args` | the arguments of a quantised matrix, which seven functions share |
//! | `vectors` | the arguments x, y and n of a product |
//! | `handles` | generational handles |
//! | `state` | the configured library, and who may use it when |
//!
//! # Safety of the exported functions
//!
//! What cannot be checked is the caller's part, and it is the same for all of them: a pointer that is
//! not NULL points to as many elements as its length says, readable (writable for an output) until the
//! call returns; nobody writes an input, and nobody else touches an output, meanwhile; text ends with NUL.
//! Lengths, NULL, alignment and overlap are checked. "The contract of `abi`" in a SAFETY comment is this paragraph.
#![allow(
    clippy::missing_safety_doc,
    reason = "stated once above; the comments of the functions are those of the C header"
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
