//! The CUDA backend: quantised weights in device memory, and products there. Devices are
//! independent of each other.
//!
//! CUDA is not linked. The driver is first probed directly (`probe`), because cudarc panics if
//! something is missing; only then is it used through cudarc. From the bottom up:
//!
//! ```text
//! probe     is there a usable driver?                           raw symbols, raw integers
//! images    the embedded kernels                                chosen by compute capability
//! device    a context on one device, its module and kernels     Arc<Device>: the last releases it
//! memory    device memory (Memory, Part), page-locked memory    checked ranges, no pointers
//! stream    copies, launches, capture into a Graph              ordered; waits only if documented
//! kernels   names and argument structs, as in kernels/args.h
//! layout    slices: geometry and packing of kernels/README.md   safe, scalar
//! weights   a matrix on the device                              from and to quant::Codes
//! product   the choice of kernel and grid; enqueues launches    neither allocates nor waits
//! transformer  what models compute between products             as `product`
//! recorded  a captured graph with the memory that it uses
//! staging   a product with vectors in host memory               buffers and streams are reused
//! ```
//!
//! There are two ways to multiply. [`Gpu::multiply`] takes vectors in host memory and returns when
//! `y` is complete. A caller that keeps activations on the device creates a [`Stream`] and
//! [`Memory`], and calls [`prepare`] and [`multiply`] with [`Part`]s of it. These only enqueue
//! work, so that a sequence of them can be captured ([`Stream::capture`]) and replayed as one
//! [`Graph`].
//!
//! # Errors
//!
//! `ERR_MEMORY` if device memory or page-locked memory is exhausted, `ERR_BACKEND` for any other
//! failure of the driver; the message contains the operation and the driver's description. The
//! failure of a kernel is reported when a stream is waited for, and makes the context unusable, as
//! always with CUDA: every later call fails too, until `apl_ffi_cleanup`. Results are copied to the
//! caller's memory only after everything has succeeded.

mod device;
mod images;
mod kernels;
mod layout;
mod memory;
mod probe;
mod product;
mod recorded;
mod staging;
mod status;
mod stream;
pub mod transformer;
mod weights;

pub use device::{About, Device};
pub use kernels::{Arguments, Kernel};
pub use layout::{Columns, supports};
pub use memory::{Memory, Part, Pinned};
pub use product::{Mode, Operand, Prepared, multiply, prepare, prepared_bytes};
pub use recorded::Recorded;
pub use staging::Gpu;
pub use stream::{Graph, Grid, Mark, Stream};
pub use weights::Weights;

use std::panic::catch_unwind;
use std::sync::Arc;

use crate::signals::Blocked;

/// The device with this ordinal, ready to multiply; or the reason why it cannot be used, as a
/// sentence.
///
/// Threads that the driver starts have all signals blocked. Nothing is printed and nothing unwinds,
/// provided that the caller has marked this thread as the library's.
pub fn open(ordinal: u32) -> Result<Arc<Gpu>, String> {
    let _signals = Blocked::all();
    let opened = catch_unwind(|| {
        let driver = probe::look()?;
        let device = Device::open(&driver, ordinal)?;
        Gpu::new(device).map_err(|e| e.to_string())
    });
    match opened {
        Ok(opened) => opened.map(Arc::new),
        // cudarc panics if a symbol is missing that the probe did not look up.
        Err(_) => Err("the CUDA driver is not what its version promises".to_owned()),
    }
}

#[cfg(test)]
mod tests;
