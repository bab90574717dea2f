//! One case: copies of a matrix, and a product timed alternately with its ceilings.

use std::hint::black_box;
use std::time::{Duration, Instant};

use apl_ffi::error::Result;
use apl_ffi::matmul::{Activations, Weights};
use apl_ffi::quant::{Bits, Codes, Packing, Per, ScaleValues, Shape, packed_row_bytes};
use apl_ffi::runtime::Runtime;
use half::f16;

use crate::args::{Args, Place};
use crate::ceilings::{Arithmetic, Ceilings};
use crate::stats::median;

/// The duration of a round; a round has at least one call.
const ROUND: Duration = Duration::from_millis(12);

/// A case stops after this time, though not before three rounds.
const CASE: Duration = Duration::from_secs(4);

/// The same random matrix several times over, together larger than the last-level cache.
pub struct Copies {
    weights: Vec<Weights>,
    /// Columns per group as requested; 0 is the whole row.
    pub group: usize,
}

impl Copies {
    /// As many copies of a matrix of `shape` (rows, columns, group) as `args` needs.
    pub fn new(
        rt: &Runtime,
        (rows, cols, group): (usize, usize, usize),
        bits: Bits,
        mode: Activations,
        args: &Args,
    ) -> Result<Copies> {
        let shape = Shape::new(rows, cols, group);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        // Any byte is a valid sequence of codes.
        let bytes: Vec<u8> = (0..rows * packed_row_bytes(cols, bits))
            .map(|_| (random.next() >> 56) as u8)
            .collect();
        let scales: Vec<f16> = (0..rows * shape.groups)
            .map(|_| f16::from_f32(0.01 * (1.0 + random.unit())))
            .collect();
        let codes = Codes {
            shape,
            bits,
            packing: Packing::Msb,
            bytes: &bytes,
            scales: ScaleValues::F16(&scales),
            scale_per: Per::Group,
            zero_points: None,
        };
        let mut weights = vec![Weights::from_codes(rt, &codes, mode)?];
        if args.places.contains(&Place::Memory) {
            let count = args.rotate.div_ceil(weights[0].bytes().max(1)).max(2);
            for _ in 1..count {
                weights.push(Weights::from_codes(rt, &codes, mode)?);
            }
        }
        Ok(Copies { weights, group })
    }

    /// The matrix.
    pub fn first(&self) -> &Weights {
        &self.weights[0]
    }
}

/// What is timed.
pub struct Case<'a> {
    /// The configured library.
    pub rt: &'a Runtime,
    /// The matrix.
    pub copies: &'a Copies,
    /// Where the matrix is when a call starts.
    pub place: Place,
    /// The number of vectors.
    pub n: usize,
}

/// The result.
pub struct Measured {
    /// Median seconds per call.
    pub seconds: f64,
    /// The 10th and 90th percentile of the same.
    pub spread: (f64, f64),
    /// Median bytes per second of the reading ceiling in the same rounds.
    pub read_ceiling: f64,
    /// Median operations per second of the arithmetic ceiling in the same rounds; `None` at the
    /// scalar level.
    pub peak_ceiling: Option<f64>,
    /// Median over the rounds of the product's reading rate over the ceiling's.
    pub read_share: f64,
    /// Median over the rounds of the product's arithmetic rate over the ceiling's.
    pub peak_share: Option<f64>,
}

impl Case<'_> {
    /// Operations per call: two for a multiply-add.
    pub fn operations(&self) -> f64 {
        let w = self.copies.first();
        2.0 * w.rows() as f64 * w.cols() as f64 * self.n as f64
    }

    /// The arithmetic that bounds the product.
    pub fn arithmetic(&self) -> Arithmetic {
        match self.copies.first().activations() {
            Activations::F32 => Arithmetic::Float,
            Activations::Int8 | Activations::Sign => Arithmetic::Integer,
        }
    }

    /// Times `rounds` rounds, each the two ceilings and then the product.
    pub fn measure(&self, ceilings: &mut Ceilings, rounds: usize) -> Result<Measured> {
        let w = self.copies.first();
        let (threads, bytes) = (self.rt.pool().threads(), w.bytes());
        let mut random = Random(42);
        let x: Vec<f32> = (0..self.n * w.cols())
            .map(|_| random.unit() - 0.5)
            .collect();
        let mut y = vec![0.0f32; self.n * w.rows()];
        let used = match self.place {
            Place::Memory => &self.copies.weights[..],
            Place::Cache => &self.copies.weights[..1],
        };
        let mut rotation = used.iter().cycle();
        let mut call = || -> Result<f64> {
            let w = rotation.next().expect("a cycle does not end");
            let start = Instant::now();
            w.multiply(self.rt, &x, &mut y, self.n)?;
            let seconds = start.elapsed().as_secs_f64();
            black_box(&mut y);
            Ok(seconds)
        };

        let (mut reads, mut peaks) = (Vec::new(), Vec::new());
        let (mut read_shares, mut peak_shares) = (Vec::new(), Vec::new());
        let mut all = Vec::new();
        let begun = Instant::now();
        while read_shares.len() < rounds && (read_shares.len() < 3 || begun.elapsed() < CASE) {
            let read = match self.place {
                Place::Memory => ceilings.read_memory(threads),
                Place::Cache => ceilings.read_cached(threads, bytes),
            };
            let peak = ceilings.peak(self.arithmetic(), threads);
            // The ceilings have replaced the cache contents and let the workers fall asleep.
            call()?;
            let mut calls = Vec::new();
            let started = Instant::now();
            while calls.is_empty() || started.elapsed() < ROUND {
                calls.push(call()?);
            }
            let seconds = median(&mut calls);
            reads.push(read);
            read_shares.push(bytes as f64 / seconds / read);
            if let Some(peak) = peak {
                peaks.push(peak);
                peak_shares.push(self.operations() / seconds / peak);
            }
            all.append(&mut calls);
        }
        let seconds = median(&mut all);
        let some = |v: &mut Vec<f64>| (!v.is_empty()).then(|| median(v));
        Ok(Measured {
            seconds,
            spread: (all[all.len() / 10], all[all.len() - 1 - all.len() / 10]),
            read_ceiling: median(&mut reads),
            peak_ceiling: some(&mut peaks),
            read_share: median(&mut read_shares),
            peak_share: some(&mut peak_shares),
        })
    }
}

/// A small generator (xorshift64), so that every run has the same matrix.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in 0..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}
