//! Causal attention of a block of queries over the KV cache: grouped queries, sliding windows, soft
//! caps.
//!
//! The queries of all positions that share a key/value head are rows; a *tile* is up to [`ROWS`] of
//! them. The softmax of a row is computed in chunks of positions: each chunk yields the largest
//! score, the sum of the exponentials and the weighted values. These *parts* are combined in the
//! order of the chunks. A row therefore gets the same bits whatever tile it belongs to, and whether
//! one thread processes all chunks of a tile or several threads share them.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::architecture::Architecture;
use super::cache::Layer;
use crate::cpu::vector::{BLOCK, CHUNK, Cached, Chunk, ROWS, VectorKernels, prefetch_beginning};
use crate::error::Result;
use crate::matmul::Output;
use crate::memory;
use crate::runtime::Shared;

/// The buffers of attention.
pub(super) struct Scratch {
    threads: Vec<Mutex<Thread>>,
    /// Parts of tiles whose chunks are shared between threads: `(tiles, chunks, part)`.
    parts: Vec<f32>,
}

/// The buffers of one thread.
struct Thread {
    scores: [Chunk; ROWS],
    /// `(head_dim, rows)`
    queries: Vec<f32>,
    part: Part,
    sum: Part,
}

/// The result of attention of a tile over some chunks.
struct Part {
    /// The largest score of each row; minus infinity if it attends to none of the positions.
    largest: [f32; ROWS],
    /// The sum of `exp(score - largest)`.
    sums: [f32; ROWS],
    /// The values weighted by these exponentials: `(rows, width)`.
    mixed: Vec<f32>,
}

impl Part {
    fn new(width: usize) -> Result<Part> {
        Ok(Part {
            largest: [f32::NEG_INFINITY; ROWS],
            sums: [0.0; ROWS],
            mixed: memory::filled(ROWS * width, 0.0, "mixed values")?,
        })
    }

    fn clear(&mut self) {
        self.largest = [f32::NEG_INFINITY; ROWS];
        self.sums = [0.0; ROWS];
        self.mixed.fill(0.0);
    }

    /// Combines the next chunk's part of row `r` into this one.
    fn add(&mut self, r: usize, (largest, sum, mixed): (f32, f32, &[f32])) {
        if largest == f32::NEG_INFINITY {
            return;
        }
        let width = mixed.len();
        let top = self.largest[r].max(largest);
        let (old, new) = (shift(self.largest[r], top), shift(largest, top));
        self.largest[r] = top;
        self.sums[r] = self.sums[r] * old + sum * new;
        for (to, v) in self.mixed[r * width..][..width].iter_mut().zip(mixed) {
            *to = *to * old + v * new;
        }
    }
}

/// The number of elements of a row's part in [`Scratch::parts`]: the weighted values, the largest
/// score, the sum.
fn row_part(width: usize) -> usize {
    width + 2
}

/// `exp(from - to)`. Of the two factors that a sum needs, one is always 1, and before the first
/// chunk the other is 0, for which the C library's `exp` takes its slowest path.
fn shift(from: f32, to: f32) -> f32 {
    match from {
        _ if from == to => 1.0,
        f32::NEG_INFINITY => 0.0,
        _ => (from - to).exp(),
    }
}

impl Scratch {
    /// For sequences of up to `context` tokens on up to `threads` threads.
    pub fn new(a: &Architecture, context: usize, threads: usize) -> Result<Scratch> {
        let width = a.head_dim.next_multiple_of(BLOCK);
        let mut list = memory::with_capacity(threads, "the scratch of attention")?;
        for _ in 0..threads {
            list.push(Mutex::new(Thread {
                scores: [Chunk([0.0; CHUNK]); ROWS],
                queries: memory::filled(ROWS * a.head_dim, 0.0, "queries")?,
                part: Part::new(width)?,
                sum: Part::new(width)?,
            }));
        }
        let chunks = context.div_ceil(CHUNK) + 1;
        let rows = a.kv_heads * (a.heads / a.kv_heads).next_multiple_of(ROWS);
        let parts = rows.saturating_mul(chunks).saturating_mul(row_part(width));
        let shared = threads > 1 && context > CHUNK;
        Ok(Scratch {
            threads: list,
            parts: memory::filled(if shared { parts } else { 0 }, 0.0, "parts of attention")?,
        })
    }
}

/// Attention of one layer for the `n` positions from `first` on, whose keys and values are already
/// in the cache.
pub(super) struct Attention<'a, T> {
    pub kernels: &'a VectorKernels,
    pub architecture: &'a Architecture,
    pub layer: &'a Layer<T>,
    pub window: Option<usize>,
    pub first: usize,
    /// `(n, heads, head_dim)`, with the rotary embedding applied, scaled.
    pub queries: &'a [f32],
}

impl<T: Cached> Attention<'_, T> {
    /// Writes `(n, heads, head_dim)`.
    pub fn run(&self, team: &dyn Shared, scratch: &mut Scratch, out: &mut [f32]) {
        let a = self.architecture;
        let n = self.positions();
        let tiles = a.kv_heads * self.tiles();
        let out = Output::new(out);
        let last = self.first + n - 1;
        let chunks = self.least(self.first) / CHUNK..last / CHUNK + 1;
        let work = self.queries.len() * (self.first + n - self.least(last));
        let threads = &scratch.threads;
        let members = match work < ALONE {
            true => 1,
            false => team.threads().min(threads.len()),
        };
        let part = ROWS * row_part(self.layer.width());
        let parts = tiles * chunks.len() * part;
        if members == 1 || tiles >= 2 * members || chunks.len() == 1 || parts > scratch.parts.len()
        {
            // Later positions attend to more positions, so they are started first.
            return share(team, members, threads, tiles, |t, task| {
                self.tile(t, tiles - 1 - task, chunks.clone(), &out);
            });
        }
        let shared = Output::new(&mut scratch.parts[..parts]);
        share(team, members, threads, tiles * chunks.len(), |t, task| {
            let (tile, c) = (task / chunks.len(), task % chunks.len());
            self.load(t, tile);
            self.chunk(t, tile, chunks.start + c);
            self.write_part(&t.part, &shared, task * part);
        });
        let t = &mut *threads[0].lock().unwrap_or_else(PoisonError::into_inner);
        for (tile, parts) in scratch.parts[..parts]
            .chunks_exact(chunks.len() * part)
            .enumerate()
        {
            t.sum.clear();
            for chunk in parts.chunks_exact(part) {
                for (r, row) in chunk.chunks_exact(row_part(self.layer.width())).enumerate() {
                    let (mixed, ends) = row.split_at(self.layer.width());
                    t.sum.add(r, (ends[0], ends[1], mixed));
                }
            }
            self.finish(&t.sum, tile, &out);
        }
    }

    /// All chunks of a tile.
    fn tile(&self, t: &mut Thread, tile: usize, chunks: Range<usize>, out: &Output<'_>) {
        let width = self.layer.width();
        self.load(t, tile);
        t.sum.clear();
        for c in chunks {
            self.chunk(t, tile, c);
            for r in 0..self.rows(tile).len() {
                let p = &t.part;
                let mixed = &p.mixed[r * width..][..width];
                t.sum.add(r, (p.largest[r], p.sums[r], mixed));
            }
        }
        self.finish(&t.sum, tile, out);
    }

    /// Computes the part of chunk `c` for a tile whose queries are loaded.
    fn chunk(&self, t: &mut Thread, tile: usize, c: usize) {
        let a = self.architecture;
        let (head, rows, width) = (tile / self.tiles(), self.rows(tile), self.layer.width());
        let padded = VectorKernels::padded_rows(rows.len());
        let seen = |row: usize| {
            let position = self.first + row / self.group();
            let first = self.least(position).max(c * CHUNK);
            let end = (position + 1).min((c + 1) * CHUNK);
            first..end.max(first)
        };
        t.part.clear();
        // The positions visible to any of the rows. Where a window ends within a tile, the last row
        // may see nothing of this chunk while the first sees it to its end.
        let start = seen(rows.start).start;
        let end = seen(rows.end - 1).end.min((c + 1) * CHUNK);
        if start >= end {
            return;
        }
        let scores = &mut t.scores[..padded];
        let queries = &t.queries[..padded * a.head_dim];
        let blocks = start / BLOCK..end.div_ceil(BLOCK);
        let at = blocks.start - c * (CHUNK / BLOCK);
        let values = start - c * CHUNK..end - c * CHUNK;
        let values = self.layer.values(head, c, values);
        // The values are needed once the scores are known.
        prefetch_beginning(values);
        let keys = self.layer.keys(head, c, at..at + blocks.len());
        self.kernels.scores(queries, keys, at, scores);
        let from = c * CHUNK + at * BLOCK;
        for (r, scores) in scores.iter_mut().enumerate() {
            let scores = &mut scores.0[at * BLOCK..][..blocks.len() * BLOCK];
            let seen = match rows.start + r {
                row if row < rows.end => seen(row),
                _ => 0..0,
            };
            if seen.is_empty() {
                scores.fill(0.0);
                continue;
            }
            if let Some(cap) = a.attention_softcap {
                self.kernels.softcap(scores, cap);
            }
            let seen = seen.start - from..seen.end - from;
            (t.part.largest[r], t.part.sums[r]) = self.kernels.softmax(scores, seen);
        }
        let mixed = &mut t.part.mixed[..padded * width];
        self.kernels.mix(scores, start - c * CHUNK, values, mixed);
    }

    /// Loads the queries of a tile, transposed, with zeros for missing rows.
    fn load(&self, t: &mut Thread, tile: usize) {
        let dim = self.architecture.head_dim;
        let rows = self.rows(tile);
        let padded = VectorKernels::padded_rows(rows.len());
        let queries = &mut t.queries[..padded * dim];
        queries.fill(0.0);
        for (r, row) in rows.enumerate() {
            let from = &self.queries[self.at(tile, row)..][..dim];
            for (to, q) in queries[r..].iter_mut().step_by(padded).zip(from) {
                *to = *q;
            }
        }
    }

    fn finish(&self, sum: &Part, tile: usize, out: &Output<'_>) {
        let width = self.layer.width();
        for (r, row) in self.rows(tile).enumerate() {
            let (at, factor) = (self.at(tile, row), 1.0 / sum.sums[r]);
            let mixed = &sum.mixed[r * width..][..self.architecture.head_dim];
            out.set_all(at, mixed.iter().map(|v| v * factor));
        }
    }

    fn write_part(&self, part: &Part, to: &Output<'_>, at: usize) {
        let width = self.layer.width();
        for r in 0..ROWS {
            let at = at + r * row_part(width);
            to.set(at + width, part.largest[r]);
            to.set(at + width + 1, part.sums[r]);
            if part.largest[r] != f32::NEG_INFINITY {
                for (i, v) in part.mixed[r * width..][..width].iter().enumerate() {
                    to.set(at + i, *v);
                }
            }
        }
    }

    fn positions(&self) -> usize {
        self.queries.len() / (self.architecture.heads * self.architecture.head_dim)
    }

    /// The number of query heads per key/value head.
    fn group(&self) -> usize {
        self.architecture.heads / self.architecture.kv_heads
    }

    /// The number of tiles per key/value head.
    fn tiles(&self) -> usize {
        (self.positions() * self.group()).div_ceil(ROWS)
    }

    /// The rows of a tile, out of positions × query heads of its key/value head.
    fn rows(&self, tile: usize) -> Range<usize> {
        let first = tile % self.tiles() * ROWS;
        first..(first + ROWS).min(self.positions() * self.group())
    }

    /// The offset of a row's query, and of its output.
    fn at(&self, tile: usize, row: usize) -> usize {
        let a = self.architecture;
        let head = tile / self.tiles() * self.group() + row % self.group();
        (row / self.group() * a.heads + head) * a.head_dim
    }

    /// The first position visible from a position.
    fn least(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }
}

/// Runs the tasks on at most `members` threads, each with its own scratch.
fn share(
    team: &dyn Shared,
    members: usize,
    threads: &[Mutex<Thread>],
    tasks: usize,
    job: impl Fn(&mut Thread, usize) + Sync,
) {
    let next = AtomicUsize::new(0);
    let worker = |worker: usize| {
        let mut thread = threads[worker]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            job(&mut thread, task);
        }
    };
    match members.min(tasks) {
        0 => {}
        1 => worker(0),
        workers => team.run(workers, &worker),
    }
}

/// The number of products of elements below which the calling thread works alone: about 5 µs.
const ALONE: usize = 1 << 15;

#[cfg(test)]
mod tests;
