//! How threads share work, and the output that they write together.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cpu;
use crate::error::Result;
use crate::memory;
use crate::runtime::{Executor, Shared};

/// Nanoseconds of work below which the calling thread works alone: waking a thread costs 3 to 10
/// µs, so that a second one gains nothing.
const MIN_SHARED_NS: usize = 8192;

/// The number of threads for work that takes one thread about this many nanoseconds.
pub fn threads_for(executor: Executor<'_>, nanoseconds: usize) -> usize {
    if nanoseconds < MIN_SHARED_NS {
        1
    } else {
        executor.threads()
    }
}

/// Runs `job(scratch, task)` once for each task in `0..tasks`, in any order, on at most `threads`
/// threads.
///
/// Each thread has its own scratch, made by `scratch` before the first task runs.
///
/// # Errors
/// Those of `scratch`, and `ERR_MEMORY`; in both cases no task has run.
pub fn run<S: Send>(
    executor: Executor<'_>,
    threads: usize,
    tasks: usize,
    scratch: impl Fn() -> Result<S>,
    job: impl Fn(&mut S, usize) + Sync,
) -> Result<()> {
    if threads == 1 || tasks == 1 {
        let mut scratch = scratch()?;
        (0..tasks).for_each(|task| job(&mut scratch, task));
        return Ok(());
    }
    executor.share(|team| {
        let workers = team.threads().min(threads).min(tasks);
        let mut scratches = memory::with_capacity(workers, "the scratch of the threads")?;
        for _ in 0..workers {
            scratches.push(Mutex::new(scratch()?));
        }
        claim(team, &scratches, tasks, &job);
        Ok(())
    })
}

/// As [`run`], with one existing scratch per thread: it allocates nothing.
pub fn run_with<S: Send>(
    executor: Executor<'_>,
    scratches: &[Mutex<S>],
    tasks: usize,
    job: impl Fn(&mut S, usize) + Sync,
) {
    if scratches.len() == 1 || tasks == 1 {
        let mut scratch = lock(&scratches[0]);
        (0..tasks).for_each(|task| job(&mut scratch, task));
        return;
    }
    executor.share(|team| {
        let workers = team.threads().min(scratches.len()).min(tasks);
        claim(team, &scratches[..workers], tasks, &job);
    });
}

/// One thread per scratch claims tasks until none is left: first those of its own contiguous run,
/// whose data are adjacent in memory so that prefetches help, then tasks left in other runs (task
/// stealing).
fn claim<S: Send>(
    team: &dyn Shared,
    scratches: &[Mutex<S>],
    tasks: usize,
    job: &(impl Fn(&mut S, usize) + Sync),
) {
    let runs = scratches.len().min(MAX_RUNS);
    let begun = [const { AtomicUsize::new(0) }; MAX_RUNS];
    team.run(scratches.len(), &|worker| {
        let mut scratch = lock(&scratches[worker]);
        for run in (0..runs).map(|i| (worker + i) % runs) {
            let (first, end) = (run * tasks / runs, (run + 1) * tasks / runs);
            // A claim takes the cache line away from all other threads; for a finished run a load
            // is enough.
            if first + begun[run].load(Ordering::Relaxed) >= end {
                continue;
            }
            loop {
                let task = first + begun[run].fetch_add(1, Ordering::Relaxed);
                if task >= end {
                    break;
                }
                job(&mut scratch, task);
            }
        }
    });
}

/// The most runs of tasks: if there are more threads, they share runs.
const MAX_RUNS: usize = 64;

/// As [`run`], the tasks being the chunks of `len` elements of `out`, of which the last may be
/// shorter: `job(scratch, i, chunk)` for chunk `i`.
///
/// # Errors
/// As [`run`].
pub fn run_chunks<T: Send, S: Send>(
    executor: Executor<'_>,
    threads: usize,
    (out, len): (&mut [T], usize),
    scratch: impl Fn() -> Result<S>,
    job: impl Fn(&mut S, usize, &mut [T]) + Sync,
) -> Result<()> {
    let mut chunks = memory::with_capacity(out.len().div_ceil(len), "the list of tasks")?;
    chunks.extend(out.chunks_mut(len).map(Mutex::new));
    run(executor, threads, chunks.len(), scratch, |scratch, i| {
        job(scratch, i, &mut lock(&chunks[i]));
    })
}

/// A lock that is never contended. Poisoning is ignored: what the mutex guards was left by a task
/// that has ended, perhaps by a panic.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The output of a product, written by several threads.
pub struct Output<'a> {
    // Atomics, so that sharing the slice and setting one element is safe; a relaxed store compiles
    // to a plain one.
    y: &'a [AtomicU32],
}

impl<'a> Output<'a> {
    /// Shares `y` for as long as it is borrowed.
    pub fn new(y: &'a mut [f32]) -> Output<'a> {
        // SAFETY: `AtomicU32` has the size and alignment of `f32`, both are valid for every bit
        // pattern, and `y` is borrowed mutably for as long as the atomics are.
        let y = unsafe { &*(std::ptr::from_mut(y) as *const [AtomicU32]) };
        Output { y }
    }

    /// Writes element `i`.
    pub fn set(&self, i: usize, value: f32) {
        self.y[i].store(value.to_bits(), Ordering::Relaxed);
    }

    /// Writes the elements from `at` on, as many as there are values.
    #[inline]
    pub fn set_all(&self, at: usize, values: impl ExactSizeIterator<Item = f32>) {
        for (y, value) in self.y[at..][..values.len()].iter().zip(values) {
            y.store(value.to_bits(), Ordering::Relaxed);
        }
    }

    /// Writes the elements from `at` on with vector stores: 32 relaxed stores would remain 32
    /// stores.
    ///
    /// # Safety
    /// No other thread writes these elements meanwhile.
    #[inline]
    pub unsafe fn store<const N: usize>(&self, at: usize, values: &[f32; N]) {
        let to = &self.y[at..][..N];
        // SAFETY: `to` is as long as `values`; atomics may be written through a shared borrow, and
        // no other thread writes these now.
        unsafe { to.as_ptr().cast::<[f32; N]>().cast_mut().write(*values) };
    }

    /// Prefetches the cache lines of the `len` elements from `at` on, which may be past the end.
    /// Elements that do not begin at a line boundary extend into one more line, which is not
    /// prefetched.
    #[inline]
    pub fn prefetch(&self, at: usize, len: usize) {
        let line = 64 / size_of::<f32>();
        for i in (at..at + len).step_by(line) {
            cpu::prefetch_line(self.y.as_ptr().wrapping_add(i));
        }
    }

    /// Writes the elements from `at` on, of any number. Not inlined: next to [`Output::store`] the
    /// compiler merged both into one copy, a call to `memcpy` for 128 bytes.
    #[cold]
    #[inline(never)]
    pub fn store_few(&self, at: usize, values: &[f32]) {
        self.set_all(at, values.iter().copied());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::runtime::Pool;

    #[test]
    fn every_chunk_once_whoever_takes_it() {
        let pool = Pool::new(3).unwrap();
        for (len, chunk) in [(0, 4), (1, 4), (8, 4), (103, 4), (5000, 7)] {
            for threads in [1, 2, 3] {
                let mut out = vec![0; len];
                let add = |(): &mut (), i: usize, chunk: &mut [usize]| {
                    chunk.iter_mut().for_each(|v| *v += i + 1);
                };
                run_chunks(
                    Executor::Pool(&pool),
                    threads,
                    (&mut out, chunk),
                    || Ok(()),
                    add,
                )
                .unwrap();
                let expected: Vec<usize> = (0..len).map(|i| i / chunk + 1).collect();
                assert_eq!(out, expected, "{len} by {chunk}, {threads} threads");
            }
        }
    }

    #[test]
    fn without_scratch_no_task_runs() {
        let pool = Pool::new(2).unwrap();
        for threads in [1, 2] {
            let made = AtomicUsize::new(0);
            let scratch = || match made.fetch_add(1, Ordering::Relaxed) + 1 {
                last if last == threads => Err(Error::memory("none left")),
                _ => Ok(()),
            };
            let error = run(Executor::Pool(&pool), threads, 9, scratch, |(), _| {
                panic!("a task ran")
            });
            assert_eq!(error.unwrap_err().message(), "none left");
        }
    }

    #[test]
    fn an_output_is_written_where_it_says() {
        let mut y = [0.0; 6];
        let out = Output::new(&mut y);
        out.set(1, -0.0);
        // SAFETY: there is one thread.
        unsafe { out.store(3, &[1.0, f32::INFINITY]) };
        assert_eq!(y, [0.0, 0.0, 0.0, 1.0, f32::INFINITY, 0.0]);
        assert!(y[1].is_sign_negative());
    }
}
