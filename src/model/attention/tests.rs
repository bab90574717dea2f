use super::*;
use crate::cpu::Isa;
use crate::model::cache::Cache;
use crate::model::options::Precision;
use crate::model::source::Source;
use proptest::prelude::*;
use std::path::Path;

/// Runs every task on the calling thread.
struct Alone;

impl Shared for Alone {
    fn threads(&self) -> usize {
        2
    }

    fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(job);
    }
}

/// An architecture with one layer and these numbers of heads.
fn architecture(heads: usize, kv_heads: usize, window: Option<usize>) -> Architecture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/mistral");
    let mut a = Source::open(&folder, true).unwrap().architecture().clone();
    (a.layers, a.heads, a.kv_heads, a.head_dim) = (1, heads, kv_heads, 6);
    a.windows = vec![window];
    a
}

/// A pseudo-random number from -1 to 1 that depends only on its position.
fn value(what: usize, position: usize, i: usize) -> f32 {
    let hash = (what * 7919 + position * 104_729 + i * 1_299_709) as u32;
    let hash = (hash ^ hash >> 15).wrapping_mul(0x2c1b_3c6d);
    (hash >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// The `(heads, head_dim)` elements of a position.
fn row(what: usize, position: usize, len: usize) -> impl Iterator<Item = f32> {
    (0..len).map(move |i| value(what, position, i))
}

/// Attention of a position, in float64.
fn expected(a: &Architecture, position: usize) -> Vec<f64> {
    let (dim, group) = (a.head_dim, a.heads / a.kv_heads);
    let seen = a.windows[0].map_or(0, |w| (position + 1).saturating_sub(w))..position + 1;
    let mut out = Vec::new();
    for head in 0..a.heads {
        let at = head / group * dim;
        let score = |p: usize| -> f64 {
            let each = (0..dim)
                .map(|i| f64::from(value(0, position, head * dim + i) * value(1, p, at + i)));
            each.sum::<f64>().exp()
        };
        let weights: Vec<f64> = seen.clone().map(score).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..dim).map(|i| {
            let mixed = seen.clone().zip(&weights);
            let mixed = mixed.map(|(p, w)| w * f64::from(value(2, p, at + i)));
            mixed.sum::<f64>() / total
        }));
    }
    out
}

/// Feeds blocks of the given sizes and checks each position of the last one.
fn check(a: &Architecture, blocks: &[usize], kernels: &VectorKernels) {
    let context: usize = blocks.iter().sum();
    let most = *blocks.iter().max().unwrap();
    let Cache::F32(mut layers) = Cache::new(a, Precision::F32, context, most, 0).unwrap() else {
        panic!("float32 was asked for");
    };
    let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let mut scratch = Scratch::new(a, context, 2).unwrap();
    let mut first = 0;
    for (i, &n) in blocks.iter().enumerate() {
        let rows = |what: usize, len: usize| -> Vec<f32> {
            (first..first + n).flat_map(|p| row(what, p, len)).collect()
        };
        layers[0].keep(kernels, first, &rows(1, kv), &rows(2, kv));
        if i + 1 == blocks.len() {
            let mut out = vec![0.0; n * q];
            let queries = rows(0, q);
            Attention {
                kernels,
                architecture: a,
                layer: &layers[0],
                window: a.windows[0],
                first,
                queries: &queries,
            }
            .run(&Alone, &mut scratch, &mut out);
            for (j, found) in out.chunks_exact(q).enumerate() {
                for (f, e) in found.iter().zip(expected(a, first + j)) {
                    let apart = (f64::from(*f) - e).abs();
                    assert!(apart < 2e-6, "{blocks:?}, {:?}, {j}: {f} {e}", a.windows);
                }
            }
        }
        first += n;
    }
}

#[test]
fn windows_that_end_within_a_block_and_at_the_ends_of_chunks() {
    for kernels in Isa::ALL.into_iter().filter_map(VectorKernels::for_isa) {
        for window in [1, 6, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3] {
            for blocks in [
                &[CHUNK + 8][..],
                &[CHUNK - 1, 9],
                &[CHUNK, CHUNK],
                &[100, CHUNK, CHUNK],
                &[CHUNK, CHUNK, 70, 5],
                &[2 * CHUNK + 40, 1],
            ] {
                check(&architecture(4, 2, Some(window)), blocks, &kernels);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 16 } else { 64 }))]

    #[test]
    fn any_window_and_any_blocks(
        window in proptest::option::of(1..700usize),
        blocks in proptest::collection::vec(1..300usize, 1..5),
        heads in proptest::sample::select(vec![(1, 1), (6, 2), (3, 3), (16, 1)]),
    ) {
        let kernels = VectorKernels::for_isa(Isa::Scalar).unwrap();
        check(&architecture(heads.0, heads.1, window), &blocks, &kernels);
    }
}
