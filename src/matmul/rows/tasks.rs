//! How a product is shared among threads.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::cpu::rows::RowKernels;
use crate::error::{Error, Result};
use crate::memory;
use crate::runtime::{Pool, Runtime};

/// Products (multiplications) below which the calling thread works alone.
///
/// One thread multiplies 5 to 15 weights a nanosecond with one vector, so that this is 17 to 50 µs of
/// work; waking a thread costs 3 to 10 µs, and below this a second thread has little to give.
const ALONE: usize = 1 << 18;

/// What products run on: the kernels of one level, and threads.
pub(super) struct Driver<'a> {
    pub(super) kernels: RowKernels,
    pub(super) pool: &'a Pool,
}

impl<'a> Driver<'a> {
    pub(super) fn new(rt: &'a Runtime) -> Result<Driver<'a>> {
        let kernels = RowKernels::for_isa(rt.isa())
            .ok_or_else(|| Error::internal(format!("no row kernels for isa \"{}\"", rt.isa())))?;
        let pool = rt.pool();
        Ok(Driver { kernels, pool })
    }

    /// Runs `job(scratch, task)` once for each task in `0..tasks`, in any order.
    ///
    /// Each thread has a scratch of its own, made by `scratch` before the first task runs. `work` is
    /// the number of products in all tasks.
    ///
    /// # Errors
    /// Those of `scratch`; no task has run then.
    pub(super) fn run<S: Send>(
        &self,
        work: usize,
        tasks: usize,
        scratch: impl Fn() -> Result<S>,
        job: impl Fn(&mut S, usize) + Sync,
    ) -> Result<()> {
        if work < ALONE || tasks == 1 || self.pool.threads() == 1 {
            let mut scratch = scratch()?;
            (0..tasks).for_each(|task| job(&mut scratch, task));
            return Ok(());
        }
        self.pool.team(|team| {
            let workers = team.members().min(tasks);
            let mut scratches = memory::with_capacity(workers, "the scratch of the threads")?;
            for _ in 0..workers {
                scratches.push(Mutex::new(scratch()?));
            }
            let next = AtomicUsize::new(0);
            team.run(workers, &|worker| {
                let mut scratch = scratches[worker]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= tasks {
                        break;
                    }
                    job(&mut scratch, task);
                }
            });
            Ok(())
        })
    }
}

/// The output of a product, written by several threads.
///
/// Its elements are atomics so that nothing here is unsafe to share; a relaxed store is a plain one.
pub(super) struct Output<'a> {
    y: &'a [AtomicU32],
}

impl<'a> Output<'a> {
    pub(super) fn new(y: &'a mut [f32]) -> Output<'a> {
        // SAFETY: `AtomicU32` has the size and alignment of `f32`, both are valid for every bit pattern, and
        // `y` is borrowed mutably for as long as the atomics are.
        let y = unsafe { &*(std::ptr::from_mut(y) as *const [AtomicU32]) };
        Output { y }
    }

    pub(super) fn set(&self, i: usize, value: f32) {
        self.y[i].store(value.to_bits(), Ordering::Relaxed);
    }
}
