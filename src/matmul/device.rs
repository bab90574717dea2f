//! Weights on a device: the form of [`super::Weights`] that CUDA multiplies.

use std::sync::Arc;

use super::activations::Activations;
use crate::cuda::{self, Gpu, Mode};
use crate::error::{Result, Status};
use crate::quant::{Codes, CodesBuf};
use crate::runtime::{Executor, Runtime};

/// A matrix on a device, and that device.
pub struct OnDevice {
    gpu: Arc<Gpu>,
    weights: cuda::Weights,
}

impl From<Activations> for Mode {
    fn from(activations: Activations) -> Mode {
        match activations {
            Activations::F32 => Mode::F32,
            Activations::Int8 => Mode::Int8,
            Activations::Sign => Mode::Sign,
        }
    }
}

impl OnDevice {
    /// Copies a matrix to a device of `rt`: `device` of its list or, if `None`, the one with the
    /// most free memory, the first of equals. Returns `None` if the matrix stays on the host: the
    /// library runs on the CPU, the kernels do not support the shape, or device memory is exhausted
    /// while the configuration leaves the backend to the library.
    ///
    /// # Errors
    /// `ERR_MEMORY` if CUDA is demanded, `ERR_BACKEND`.
    ///
    /// # Panics
    /// If `device` is not an index of the devices of `rt`, unless there are none.
    pub fn place(
        rt: &Runtime,
        codes: &Codes<'_>,
        device: Option<usize>,
    ) -> Result<Option<OnDevice>> {
        if rt.gpus().is_empty() || !cuda::supports(&codes.shape) {
            return Ok(None);
        }
        let gpu = &rt.gpus()[match device {
            Some(device) => device,
            None => most_free_memory(rt.gpus())?,
        }];
        let uploaded = Executor::Pool(rt.pool())
            .share(|team| gpu.upload(codes, &|tasks, job| team.run(tasks, job)));
        match uploaded {
            Ok(weights) => Ok(Some(OnDevice {
                gpu: Arc::clone(gpu),
                weights,
            })),
            Err(e) if e.status() == Status::Memory && !rt.resolved().demanded => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The matrix on the device.
    pub fn weights(&self) -> &cuda::Weights {
        &self.weights
    }

    /// `y[v] = W x[v]` for each of `n` vectors: `x` is `(n, cols)`, `y` is `(n, rows)`.
    ///
    /// # Errors
    /// Those of [`Gpu::multiply`].
    pub fn multiply(
        &self,
        activations: Activations,
        x: &[f32],
        y: &mut [f32],
        n: usize,
    ) -> Result<()> {
        self.gpu
            .multiply(&self.weights, activations.into(), x, y, n)
    }

    /// The matrix read back, with the values that it was made of.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND`.
    pub fn to_codes(&self) -> Result<CodesBuf> {
        self.gpu.to_codes(&self.weights)
    }

    /// One row as floats; `out` is `(cols)`.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND`.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        self.gpu.row(&self.weights, row, out)
    }
}

/// The index of the device with the most free memory, the first of equals.
fn most_free_memory(gpus: &[Arc<Gpu>]) -> Result<usize> {
    let (mut best, mut most) = (0, 0);
    // A single device need not be queried.
    for (i, gpu) in gpus.iter().enumerate().filter(|_| gpus.len() > 1) {
        let free = gpu.device().memory_free()?;
        if free > most {
            (best, most) = (i, free);
        }
    }
    Ok(best)
}
