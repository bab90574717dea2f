//! Causal attention of a block of queries over the cache, grouped queries, windows and soft caps.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::architecture::Architecture;
use super::cache::Layer;
use crate::cpu::vector::{Cached, VectorKernels};
use crate::error::Result;
use crate::matmul::Output;
use crate::memory;
use crate::runtime::Shared;

/// Positions whose queries pass together over the keys: each key is then widened once for all of them.
const TOGETHER: usize = 8;

/// What each thread needs.
pub(super) struct Scratch {
    /// `(rows, context)`
    scores: Vec<f32>,
    /// `(rows, head_dim)`
    queries: Vec<f32>,
    /// `(rows, head_dim)`
    mixed: Vec<f32>,
}

impl Scratch {
    /// For at most `n` positions at once.
    pub fn new(a: &Architecture, context: usize, n: usize) -> Result<Scratch> {
        let rows = n.min(TOGETHER) * (a.heads / a.kv_heads);
        Ok(Scratch {
            scores: memory::filled(rows.saturating_mul(context), 0.0, "attention scores")?,
            queries: memory::filled(rows * a.head_dim, 0.0, "queries")?,
            mixed: memory::filled(rows * a.head_dim, 0.0, "mixed values")?,
        })
    }
}

/// One layer's attention for the `n` positions from `first` on, their keys and values kept already.
pub(super) struct Attention<'a, T> {
    pub kernels: &'a VectorKernels,
    pub architecture: &'a Architecture,
    pub layer: &'a Layer<T>,
    pub window: Option<usize>,
    pub first: usize,
    /// `(n, heads, head_dim)`, turned and scaled.
    pub queries: &'a [f32],
}

impl<T: Cached> Attention<'_, T> {
    /// Writes `(n, heads, head_dim)`.
    pub fn run(&self, team: &dyn Shared, scratch: &[Mutex<Scratch>], out: &mut [f32]) {
        let a = self.architecture;
        let n = self.queries.len() / (a.heads * a.head_dim);
        let tasks = a.kv_heads * n.div_ceil(TOGETHER);
        let out = Output::new(out);
        // Later positions see more, so they come first.
        let one = |scratch: &mut Scratch, task: usize| {
            let block = n.div_ceil(TOGETHER) - 1 - task / a.kv_heads;
            self.block(scratch, task % a.kv_heads, block * TOGETHER, &out);
        };
        let workers = team.members().min(tasks).min(scratch.len());
        let work = self.queries.len() * (self.first + n).min(self.window.unwrap_or(usize::MAX));
        if workers <= 1 || work < ALONE {
            let mut scratch = scratch[0].lock().unwrap_or_else(PoisonError::into_inner);
            (0..tasks).for_each(|task| one(&mut scratch, task));
            return;
        }
        let next = AtomicUsize::new(0);
        team.run(workers, &|worker| {
            let mut scratch = scratch[worker]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                one(&mut scratch, task);
            }
        });
    }

    /// The queries of a key/value head of up to [`TOGETHER`] positions from `start` of the block on.
    fn block(&self, scratch: &mut Scratch, head: usize, start: usize, out: &Output<'_>) {
        let a = self.architecture;
        let (width, group) = (a.head_dim, a.heads / a.kv_heads);
        let n = self.queries.len() / (a.heads * width);
        let positions = TOGETHER.min(n - start);
        let rows = positions * group;
        let query = |t: usize, g: usize| ((start + t) * a.heads + head * group + g) * width;
        for t in 0..positions {
            for g in 0..group {
                let to = &mut scratch.queries[(t * group + g) * width..][..width];
                to.copy_from_slice(&self.queries[query(t, g)..][..width]);
            }
        }
        // All keys that any of the positions sees.
        let least = self.least(self.first + start);
        let end = self.first + start + positions;
        let stride = end - least;
        let scores = &mut scratch.scores[..rows * stride];
        let queries = &scratch.queries[..rows * width];
        let rest = &self.layer.keys[head * self.layer.slots * width..];
        let runs = self.layer.runs(least, end);
        let mut at = 0;
        for run in runs.clone() {
            if !run.is_empty() {
                let len = run.len();
                self.kernels.dots(
                    queries,
                    &rest[run.start * width..run.end * width],
                    &mut scores[at..],
                    width,
                    stride,
                );
                at += len;
            }
        }
        for t in 0..positions {
            // What this position may see, of what was computed.
            let seen = self.least(self.first + start + t) - least..stride - (positions - 1 - t);
            for g in 0..group {
                let row = &mut scores[(t * group + g) * stride..][..stride];
                self.kernels
                    .softmax(&mut row[seen.clone()], a.attention_softcap);
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
        }
        let mixed = &mut scratch.mixed[..rows * width];
        mixed.fill(0.0);
        let rest = &self.layer.values[head * self.layer.slots * width..];
        let mut at = 0;
        for run in runs {
            if !run.is_empty() {
                let len = run.len();
                self.kernels.mix(
                    mixed,
                    &scores[at..],
                    &rest[run.start * width..run.end * width],
                    stride,
                );
                at += len;
            }
        }
        for t in 0..positions {
            for g in 0..group {
                let from = &mixed[(t * group + g) * width..][..width];
                for (i, &v) in from.iter().enumerate() {
                    out.set(query(t, g) + i, v);
                }
            }
        }
    }

    /// The first position that a position sees.
    fn least(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }
}

/// Products of elements below which the calling thread works alone.
const ALONE: usize = 1 << 15;
