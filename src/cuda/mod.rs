//! The CUDA backend: quantised weights in the memory of devices, and products there; each device by itself.
//!
//! Nothing of CUDA is linked. The driver is looked at first (`probe`), without a library between that panics where
//! something is missing; only then it is used, through cudarc. From the bottom up:
//!
//! ```text
//! probe     is there a driver that will do?                         raw symbols, raw integers
//! images    the kernels for this device, embedded                   chosen by compute capability
//! device    a context on one device, its module and its kernels     Arc<Device>: the last one to go lets the device go
//! memory    device memory (Memory, Part) and page-locked memory     checked ranges, no pointer that Rust would follow
//! stream    copies, launches, capture into a Graph                  in order, nothing waits unless it says so
//! kernels   names and argument structs, twins of kernels/args.h
//! layout    slices: the geometry and packing of kernels/README.md   safe, scalar
//! weights   a matrix on the device                                  from and to quant::Codes
//! product   which kernel, which grid; enqueued on a stream          allocates nothing, waits for nothing
//! transformer  what models compute between products                   as `product`
//! recorded  a captured sequence, and what it needs to stay alive
//! staging   a product with vectors of the host                      memory, a stream and page-locked buffers, kept for the next
//! ```
//!
//! Two ways in. [`Gpu::multiply`] takes vectors of the host and returns when `y` is there. Whoever keeps activations on the device
//! makes a [`Stream`], [`Memory`], and calls [`prepare`] and [`multiply`] with [`Part`]s of it: these only enqueue, so that a
//! sequence of them can be captured ([`Stream::capture`]) and replayed as one [`Graph`].
//!
//! # Errors
//!
//! `ERR_MEMORY` where the device or page-locked memory is exhausted, `ERR_BACKEND` for anything else the driver refuses; the
//! message has the operation and the driver's own words. A kernel that fails is noticed where a stream is waited for, and
//! leaves the context unusable, as CUDA has it: every call after it fails too, until `apl_ffi_cleanup`. Results are copied to
//! the caller's memory after everything has succeeded.

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

/// The device of this ordinal, ready to multiply; or why it cannot be used, in a sentence.
///
/// A thread that the driver starts takes no signals. Nothing is printed and nothing unwinds, given that the caller has marked
/// this thread as the library's.
pub fn open(ordinal: u32) -> Result<Arc<Gpu>, String> {
    let _signals = Blocked::all();
    let opened = catch_unwind(|| {
        let driver = probe::look()?;
        let device = Device::open(&driver, ordinal)?;
        Gpu::new(device).map_err(|e| e.to_string())
    });
    match opened {
        Ok(opened) => opened.map(Arc::new),
        // cudarc panics where a symbol that nobody asked for before is missing.
        Err(_) => Err("the CUDA driver is not what its version promises".to_owned()),
    }
}

#[cfg(test)]
mod tests;
