//! Products with vectors in host memory, for `apl_matmul`.
//!
//! A call takes a lane (a stream, page-locked memory, a block of device memory) and returns it
//! afterwards. There are as many lanes as calls have ever run at once, and once every shape has
//! been used nothing is allocated any more. A lane keeps the largest buffers that it has needed.
//!
//! ```text
//! page-locked    x (n, cols)  ───►  device   x  │ prepared x │ y (n, rows), bad
//!                y, bad       ◄───                             └── one copy back
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Device;
use super::memory::{Memory, Pinned};
use super::product::{self, Mode, prepare, prepared_bytes};
use super::stream::Stream;
use super::weights::{Share, Weights};
use crate::error::{Error, Result};
use crate::quant::{Codes, CodesBuf};

/// A device with the lanes for products with vectors in host memory.
pub struct Gpu {
    device: Arc<Device>,
    /// The lanes not in use.
    lanes: Mutex<Vec<Lane>>,
}

struct Lane {
    stream: Stream,
    memory: Memory,
    sent: Pinned,
    received: Pinned,
}

/// The number of vectors prepared together; their scratch is then reused.
const TOGETHER: usize = 8192;

impl Gpu {
    /// Creates the first lane immediately, so that a device without free memory is detected.
    pub(super) fn new(device: Arc<Device>) -> Result<Gpu> {
        let lane = Lane::new(&device)?;
        Ok(Gpu {
            device,
            lanes: Mutex::new(vec![lane]),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Packs a matrix and copies it to the device, see [`Weights::new`].
    ///
    /// # Errors
    /// As [`Weights::new`].
    pub fn upload(&self, codes: &Codes<'_>, share: Share<'_>) -> Result<Weights> {
        self.with_lane(|lane| Weights::new(&lane.stream, codes, share))
    }

    /// Reads a matrix back, see [`Weights::to_codes`].
    ///
    /// # Errors
    /// As [`Weights::to_codes`].
    pub fn to_codes(&self, weights: &Weights) -> Result<CodesBuf> {
        self.with_lane(|lane| weights.to_codes(&lane.stream))
    }

    /// Reads one row as floats, see [`Weights::row`].
    ///
    /// # Errors
    /// As [`Weights::row`].
    pub fn row(&self, weights: &Weights, row: usize, out: &mut [f32]) -> Result<()> {
        self.with_lane(|lane| weights.row(&lane.stream, row, out))
    }

    /// `y[v] = W x[v]` for each of `n` vectors: `x` is `(n, cols)`, `y` is `(n, rows)`.
    ///
    /// # Errors
    /// `ERR_RANGE` if activations are int8 and a vector is not finite; `ERR_MEMORY`; `ERR_BACKEND`.
    /// Then `y` is unchanged.
    pub fn multiply(
        &self,
        weights: &Weights,
        mode: Mode,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        if y.is_empty() {
            return Ok(());
        }
        self.with_lane(|lane| lane.multiply(weights, mode, x, y, n))
    }

    /// Runs `work` with a lane that no other call uses.
    fn with_lane<R>(&self, work: impl FnOnce(&mut Lane) -> Result<R>) -> Result<R> {
        let _current = self.device.enter()?;
        let lane = self.lanes().pop();
        let mut lane = match lane {
            Some(lane) => lane,
            None => Lane::new(&self.device)?,
        };
        let done = work(&mut lane);
        // After an error the device may access the lane's page-locked memory until this
        // synchronises; a stream that fails is not reused.
        if done.is_ok() || lane.stream.synchronize().is_ok() {
            self.lanes().push(lane);
        }
        done
    }

    fn lanes(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The offsets in the device memory of a lane.
struct Plan {
    x: usize,
    scratch: usize,
    scratch_bytes: usize,
    y: usize,
    /// `y`, followed by `bad`.
    back: usize,
    total: usize,
}

impl Plan {
    /// `None` on overflow.
    fn new(weights: &Weights, mode: Mode, n: usize) -> Option<Plan> {
        let part = |bytes: usize| bytes.checked_next_multiple_of(256);
        let columns = weights.columns();
        let x_bytes = n.checked_mul(columns.cols as usize)?.checked_mul(4)?;
        let y_bytes = n.checked_mul(weights.shape().rows)?.checked_mul(4)?;
        let scratch_bytes = prepared_bytes(mode, &columns, n.min(TOGETHER))?;
        let scratch = part(x_bytes)?;
        let y = scratch.checked_add(part(scratch_bytes)?)?;
        let back = y_bytes.checked_add(4)?;
        Some(Plan {
            x: x_bytes,
            scratch,
            scratch_bytes,
            y,
            back,
            total: y.checked_add(back)?,
        })
    }
}

impl Lane {
    fn new(device: &Arc<Device>) -> Result<Lane> {
        Ok(Lane {
            stream: Stream::new(device)?,
            memory: Memory::new(device, 0, "products")?,
            sent: Pinned::new(device, 0, "vectors")?,
            received: Pinned::new(device, 0, "results")?,
        })
    }

    /// Makes the buffers at least as large as `plan` requires.
    fn grow(&mut self, plan: &Plan) -> Result<()> {
        let device = Arc::clone(self.stream.device());
        if self.memory.bytes() < plan.total {
            // The old one is freed first, because both may not fit.
            self.memory = Memory::new(&device, 0, "products")?;
            self.memory = Memory::new(&device, roomy(plan.total), "products")?;
        }
        if self.sent.bytes().len() < plan.x {
            self.sent = Pinned::new(&device, 0, "vectors")?;
            self.sent = Pinned::new(&device, roomy(plan.x), "vectors")?;
        }
        if self.received.bytes().len() < plan.back {
            self.received = Pinned::new(&device, 0, "results")?;
            self.received = Pinned::new(&device, roomy(plan.back), "results")?;
        }
        Ok(())
    }

    fn multiply(
        &mut self,
        weights: &Weights,
        mode: Mode,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        let plan = Plan::new(weights, mode, n)
            .ok_or_else(|| Error::memory(format!("no memory for {n} vectors on the device")))?;
        self.grow(&plan)?;
        let cols = weights.shape().cols;
        self.sent.bytes_mut()[..plan.x].copy_from_slice(bytemuck::cast_slice(x));

        let (stream, memory) = (&self.stream, &self.memory);
        let (x_all, back) = (memory.part(0, plan.x), memory.part(plan.y, plan.back));
        let bad = back.from(plan.back - 4);
        // SAFETY: `sent` is not touched before the stream is waited for, below or, on an error, by
        // `with_lane`.
        unsafe { stream.upload(x_all, &self.sent)? };
        stream.zero(bad)?;
        let columns = weights.columns();
        for first in (0..n).step_by(TOGETHER) {
            let count = TOGETHER.min(n - first);
            let x = x_all.part(first * cols * 4, count * cols * 4);
            let scratch = memory.part(plan.scratch, plan.scratch_bytes);
            let prepared = prepare(stream, mode, columns, x, count, scratch, bad)?;
            let y = back.from(first * weights.shape().rows * 4);
            product::multiply(stream, &prepared, &[(weights, y)])?;
        }
        // SAFETY: as above, for `received`.
        unsafe { stream.download(&mut self.received, back)? };
        stream.synchronize()?;

        let received = &self.received.bytes()[..plan.back];
        let (sums, bad) = received.split_at(plan.back - 4);
        if bad != [0; 4] {
            return Err(not_finite(x, cols));
        }
        y.copy_from_slice(bytemuck::cast_slice(sums));
        Ok(())
    }
}

/// The size to allocate, in bytes: more than needed, so that slowly growing needs do not each cause
/// an allocation.
fn roomy(bytes: usize) -> usize {
    const STEP: usize = 1 << 16;
    bytes
        .saturating_add(bytes / 8)
        .checked_next_multiple_of(STEP)
        .unwrap_or(bytes)
}

fn not_finite(x: &[f32], cols: usize) -> Error {
    match x.iter().position(|x| !x.is_finite()) {
        Some(i) => Error::range(format!(
            "x is {} at vector {}, column {}: int8 activations must be finite",
            x[i],
            i / cols,
            i % cols
        )),
        None => Error::backend("CUDA: the device found a vector that is not finite where all are"),
    }
}
