//! Decides which device a matrix goes to while a model is loaded, in the order embedding, layers,
//! output.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use super::{stage, unfit};
use crate::error::Result;
use crate::matmul::{Arena, Weights};
use crate::model::architecture::Architecture;
use crate::runtime::Runtime;
use crate::weights::Home;

/// Decides for each matrix, as it is loaded, where it goes.
pub(in crate::model) struct Room<'a> {
    rt: &'a Runtime,
    architecture: &'a Architecture,
    /// The context of a session, in tokens.
    context: usize,
    /// The memory of matrices on the host.
    host: Arena,
    /// The first layer of each device, as planned.
    begins: Vec<usize>,
    /// Whether everything goes to the host from now on.
    closed: Cell<bool>,
    now: RefCell<Now>,
}

/// The device that is being filled.
struct Now {
    /// Its index in the library's list.
    device: usize,
    /// Its layers, up to and including the one being loaded.
    layers: Range<usize>,
    /// Its free memory before that layer, in bytes.
    free: usize,
    /// The size of the previous layer, in bytes.
    layer_bytes: usize,
}

/// Memory that the driver allocates over time: graphs, and rounding to pages.
const SLACK: usize = 64 << 20;

impl<'a> Room<'a> {
    /// For a model whose sessions have `context` tokens; without `devices` everything goes to the
    /// host.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn new(
        rt: &'a Runtime,
        a: &'a Architecture,
        context: usize,
        devices: bool,
    ) -> Result<Room<'a>> {
        let closed = !devices || unfit(rt, a).is_some();
        let mut free = Vec::new();
        for gpu in rt.gpus().iter().filter(|_| !closed) {
            free.push(gpu.device().memory_free()?);
        }
        Ok(Room {
            rt,
            architecture: a,
            context,
            host: Arena::default(),
            begins: begins(a, &free),
            closed: Cell::new(closed),
            now: RefCell::new(Now {
                device: 0,
                layers: 0..0,
                free: free.first().copied().unwrap_or(0),
                layer_bytes: 0,
            }),
        })
    }

    /// Begins the layer to be loaded next: on the planned device, or on a later one if there is no
    /// memory for another layer like the last.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn begin_layer(&self, layer: usize) -> Result<()> {
        if self.closed.get() {
            return Ok(());
        }
        let now = &mut *self.now.borrow_mut();
        let free = self.free(now.device)?;
        if layer > 0 {
            now.layer_bytes = now.free.saturating_sub(free);
        }
        now.free = free;
        now.layers.end = layer + 1;
        while now.device + 1 < self.begins.len()
            && (layer >= self.begins[now.device + 1]
                || now.free < now.layer_bytes.saturating_add(self.reserve(now)))
        {
            now.device += 1;
            now.layers.start = layer;
            now.free = self.free(now.device)?;
        }
        Ok(())
    }

    /// Begins the output. It goes to the last device in use, which by plan is the last of all.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn begin_output(&self) -> Result<()> {
        let now = &mut *self.now.borrow_mut();
        let last = self.begins.len().saturating_sub(1);
        if !self.closed.get() && now.device < last {
            now.device = last;
            now.layers = now.layers.end..now.layers.end;
        }
        Ok(())
    }

    /// Places the matrix that `make` creates: on the device while memory suffices. After the first
    /// one that does not fit, everything stays on the host, because a pass needs whole layers from
    /// the first one on.
    ///
    /// If CUDA is required, no memory is held back, and a matrix that does not fit is an error.
    ///
    /// # Errors
    /// Those of `make`; `ERR_BACKEND`.
    pub fn place(&self, make: impl Fn(Home<'_>) -> Result<Weights>) -> Result<Weights> {
        let now = &mut *self.now.borrow_mut();
        while !self.closed.get() {
            let made = make(Home::Device(now.device))?;
            let there = made.on_device().is_some();
            if there && (self.rt.resolved().demanded || self.free(now.device)? >= self.reserve(now))
            {
                return Ok(made);
            }
            // Only the embedding has been placed, so no layer is split if the next device takes it.
            if now.layers.end == 0 && now.device + 1 < self.begins.len() {
                now.device += 1;
                continue;
            }
            self.closed.set(true);
            if !there {
                return Ok(made);
            }
        }
        make(Home::Host(&self.host))
    }

    fn free(&self, device: usize) -> Result<usize> {
        self.rt.gpus()[device].device().memory_free()
    }

    /// The number of bytes to keep free on the device: for a session over its layers and, unless
    /// CUDA is required, for the driver.
    fn reserve(&self, now: &Now) -> usize {
        let device = self.rt.gpus()[now.device].device();
        // A single device is planned to have all layers, however many fit.
        let layers = match self.begins.len() {
            1 => 0..self.architecture.layers,
            _ => now.layers.clone(),
        };
        let slack = if self.rt.resolved().demanded {
            0
        } else {
            SLACK
        };
        stage::session_bytes(device, self.architecture, layers, self.context).saturating_add(slack)
    }
}

/// The first layer of each of several devices, such that the number of matrix elements on a device
/// is proportional to its free memory.
///
/// A layer belongs to the device in whose share its middle falls. The first device also has the
/// embedding, and the last one the output.
fn begins(a: &Architecture, free: &[usize]) -> Vec<usize> {
    let (query, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let layer = a.hidden as f64 * (2 * (query + kv) + 3 * a.intermediate) as f64;
    let embedding = a.hidden as f64 * a.vocabulary as f64;
    let output = if a.tied { 0.0 } else { embedding };
    let all = embedding + layer * a.layers as f64 + output;
    let room: f64 = free.iter().map(|&bytes| bytes as f64).sum();
    let mut before = 0.0;
    let begin = |&bytes: &usize| {
        let share = if room > 0.0 { before / room } else { 0.0 };
        before += bytes as f64;
        ((all * share - embedding) / layer)
            .round()
            .clamp(0.0, a.layers as f64) as usize
    };
    let mut begins: Vec<usize> = free.iter().map(begin).collect();
    if let Some(first) = begins.first_mut() {
        *first = 0;
    }
    begins
}
