//! Conversion of vectors between float64, which interpreters use, and the float32 of the products.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::tasks::{run_chunks, threads_for};
use crate::error::{Error, Result};
use crate::memory;
use crate::runtime::Executor;

/// Elements per task.
const CHUNK: usize = 1 << 15;

/// `x` rounded to float32.
///
/// # Errors
/// `ERR_RANGE` where a finite number has no finite float32; `ERR_MEMORY`.
pub fn narrowed(executor: Executor<'_>, x: &[f64]) -> Result<Vec<f32>> {
    let mut narrow = memory::zeroed(x.len(), "x in float32")?;
    let first_beyond = AtomicUsize::new(usize::MAX);
    each_chunk(executor, &mut narrow, |i, narrow| {
        let x = &x[i * CHUNK..][..narrow.len()];
        // Without an early exit, so that the loop is vectorised.
        let mut finite = true;
        for (n, x) in narrow.iter_mut().zip(x) {
            *n = *x as f32;
            finite &= n.is_finite();
        }
        if !finite {
            let beyond = |(x, n): (&f64, &f32)| x.is_finite() && !n.is_finite();
            if let Some(at) = x.iter().zip(&*narrow).position(beyond) {
                first_beyond.fetch_min(i * CHUNK + at, Ordering::Relaxed);
            }
        }
    })?;
    match first_beyond.into_inner() {
        usize::MAX => Ok(narrow),
        i => Err(Error::range(format!(
            "x[{i}] is {:e}, expected a number within the range of float32",
            x[i]
        ))),
    }
}

/// Writes `y` as float64.
///
/// # Errors
/// `ERR_MEMORY`; nothing is written then.
pub fn widen(executor: Executor<'_>, y: &[f32], out: &mut [f64]) -> Result<()> {
    each_chunk(executor, out, |i, out| {
        for (wide, y) in out.iter_mut().zip(&y[i * CHUNK..]) {
            *wide = (*y).into();
        }
    })
}

fn each_chunk<T: Send>(
    executor: Executor<'_>,
    out: &mut [T],
    job: impl Fn(usize, &mut [T]) + Sync,
) -> Result<()> {
    // An element takes about a nanosecond, mostly for memory that the system must provide.
    let threads = threads_for(executor, out.len());
    run_chunks(
        executor,
        threads,
        (out, CHUNK),
        || Ok(()),
        |(), i, chunk| job(i, chunk),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::runtime::Pool;

    #[test]
    fn there_and_back_on_any_number_of_threads() {
        for threads in [1, 3] {
            let pool = Pool::new(threads).unwrap();
            for len in [0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 7] {
                let x: Vec<f64> = (0..len).map(|i| i as f64 * 0.1 - 7.0).collect();
                let narrow = narrowed(Executor::Pool(&pool), &x).unwrap();
                let mut wide = vec![0.0; len];
                widen(Executor::Pool(&pool), &narrow, &mut wide).unwrap();
                for ((x, n), w) in x.iter().zip(&narrow).zip(&wide) {
                    assert_eq!((*n, *w), (*x as f32, f64::from(*x as f32)));
                }
            }
        }
    }

    #[test]
    fn the_first_number_beyond_float32_is_named() {
        let pool = Pool::new(2).unwrap();
        let mut x = vec![1.0; 3 * CHUNK];
        (x[5], x[6]) = (f64::NAN, f64::INFINITY);
        assert!(narrowed(Executor::Pool(&pool), &x).is_ok());
        (x[2 * CHUNK + 1], x[CHUNK + 3]) = (1e300, -4e38);
        let e = narrowed(Executor::Pool(&pool), &x).unwrap_err();
        let expected = "x[32771] is -4e38, expected a number within the range of float32";
        assert_eq!((e.status(), e.message()), (Status::Range, expected));
    }
}
