//! Buffers that outlive single products.

use super::aligned::Aligned;
use super::int8::Int8;
use super::tasks::lock;
use crate::error::Result;
use crate::memory;
use std::sync::Mutex;

/// Buffers for products with int8 and float32 activations. A sequence of products with the same
/// workspace allocates nothing once each shape has occurred, with int8 activations and with float32
/// ones that are split.
#[derive(Default)]
pub struct Workspace {
    pub(super) activations: Int8,
    /// Float32 activations that are not split, and rounded ones for short groups.
    pub(super) floats: Vec<f32>,
    /// For each thread the accumulators of the tile that it works on.
    pub(super) sums: Vec<Mutex<Aligned>>,
}

impl Workspace {
    /// Makes the accumulators of `threads` threads at least `len` floats long, and returns them.
    ///
    /// # Errors
    /// `ERR_MEMORY`.
    pub(super) fn sums(
        sums: &mut Vec<Mutex<Aligned>>,
        threads: usize,
        len: usize,
    ) -> Result<&[Mutex<Aligned>]> {
        if sums.len() < threads {
            let more = threads - sums.len();
            let mut list = memory::with_capacity(threads, "the scratch of the threads")?;
            list.append(sums);
            for _ in 0..more {
                list.push(Mutex::new(Aligned::zeros(len, "sums")?));
            }
            *sums = list;
        }
        for one in &sums[..threads] {
            lock(one).at_least(len, "sums")?;
        }
        Ok(&sums[..threads])
    }
}
