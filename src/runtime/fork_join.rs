//! Fork-join: the protocol by which the caller and the workers share the tasks of one run.
//!
//! A run is a job and a number of tasks. The caller publishes it and opens the *gate*. Workers that
//! see the gate open enter and claim tasks alongside the caller; whoever finds no task left closes
//! the gate; the caller returns when the gate is closed and nobody is inside. So a run never waits
//! for a worker to arrive: if none comes, the caller does all the tasks itself, and a worker that
//! comes late finds the gate closed and has touched nothing.
//!
//! A worker *serves*: between runs it first spins, then yields its processor between looks at the
//! gate, then returns to where it came from. When the workers are needed there they are
//! *dismissed*, and leave at once. A run that has use for more workers than are serving calls
//! others.
//!
//! The gate is one word: whether it is open, how many dismissals are in force, how many workers
//! serve or have been called, and how many are inside. So a worker leaves in one atomic step from a
//! gate value that permits it, and a run that has counted a worker will be seen by that worker.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// The function that a run calls for each of its tasks.
pub(super) type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The job before the first run. Nobody executes it: the gate is closed.
const NOTHING: &Job<'static> = &|_| {};

/// Gate bit: a run is published and may have tasks left.
const OPEN: usize = 1 << (usize::BITS - 1);
/// One dismissal in the gate; while there is any, no worker may serve.
const DISMISSAL: usize = 1 << (usize::BITS / 2);
/// All dismissals.
const DISMISSED: usize = OPEN - DISMISSAL;
/// One worker that serves or has been called. The bits below count the workers inside. Both counts
/// fit: rayon's limit on threads is 255 where `usize` has 32 bits and 65535 where it has 64.
const SERVING: usize = 1 << (usize::BITS / 4);
/// The workers inside.
const INSIDE: usize = SERVING - 1;

/// Looks at the gate before a worker starts to yield its processor between two looks.
///
/// A pause instruction takes 9 to 70 ns on current processors, so this is 20 to 140 µs: about what
/// it costs to wake a sleeping thread. Spinning for as long as the alternative costs is never worse
/// than twice the best choice.
const SPINS: u32 = 2000;

/// How long a worker goes on looking after that, yielding its processor each time, before it
/// leaves.
///
/// The gaps in a token loop, or in an interpreter that calls in a loop, are far shorter.
const PATIENCE: Duration = Duration::from_millis(1);

/// Whether there is a run that a worker may enter.
fn calls(gate: usize) -> bool {
    gate & (OPEN | DISMISSED) == OPEN
}

/// Has a cache line of its own (two: processors fetch them in pairs).
#[repr(align(128))]
struct Line<T>(T);

/// The published run. Written by the caller only, while nobody is inside.
struct Run {
    job: UnsafeCell<(*const Job<'static>, usize)>,
    /// The next unclaimed task; beyond the number of tasks: none is left. It shares a cache line
    /// with the job because every thread that takes part reads both, and spinning threads read
    /// neither.
    next: AtomicUsize,
}

/// State shared by the caller and the workers.
pub(super) struct ForkJoin {
    gate: Line<AtomicUsize>,
    run: Line<Run>,
    /// Whether a caller holds the workers; then nobody else opens the gate.
    held: AtomicBool,
    /// How many workers can be called.
    workers: usize,
    /// The first panic of the run, on any thread.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: everything but `run.job` is Sync by itself. `run.job` is written only by `run`, which
// needs the only `Held` and writes while the gate is closed and nobody is inside. It is read only
// by a worker that entered through the open gate, and `run` does not write again before that worker
// has left. The gate's Release/Acquire pairs order these accesses. The pointee is Sync and outlives
// the run.
unsafe impl Sync for ForkJoin {}
// SAFETY: as above; the pointer in `run.job` is not used outside a run, whichever thread owns the
// value.
unsafe impl Send for ForkJoin {}

impl ForkJoin {
    pub(super) fn new(workers: usize) -> ForkJoin {
        ForkJoin {
            gate: Line(AtomicUsize::new(0)),
            run: Line(Run {
                job: UnsafeCell::new((NOTHING, 0)),
                next: AtomicUsize::new(0),
            }),
            held: AtomicBool::new(false),
            workers,
            panic: Mutex::new(None),
        }
    }

    /// Acquires the right to publish runs, unless another caller has it.
    pub(super) fn try_hold(&self) -> Option<Held<'_>> {
        // Acquire, paired with the Release of `Held::drop`: what the previous holder wrote to `run`
        // happens before what this one writes.
        self.held
            .compare_exchange(false, true, Acquire, Relaxed)
            .is_ok()
            // Not `then_some`: dropping an unused `Held` would release the workers.
            .then(|| Held { fork_join: self })
    }

    /// Sends the workers away for as long as the result lives: those inside leave when their run
    /// has no task left for them, the others at their next look, and no run calls any.
    pub(super) fn dismiss(&self) -> Dismissed<'_> {
        // Relaxed, like every operation on the count of dismissals: it orders nothing.
        self.gate.0.fetch_add(DISMISSAL, Relaxed);
        Dismissed { fork_join: self }
    }

    /// Takes part in runs until none comes for a while. Each call must have been counted in the
    /// gate before, by a run that called this worker once.
    pub(super) fn serve(&self) {
        let gate = &self.gate.0;
        loop {
            let seen = self.look();
            if !calls(seen) {
                let leave = |gate| (!calls(gate)).then(|| gate - SERVING);
                if gate.fetch_update(Relaxed, Relaxed, leave).is_ok() {
                    return;
                }
                continue;
            }
            // The Acquire reads from the caller's operation that opened the gate, or from a later
            // one in its release sequence: the job is visible. The gate may have been closed and
            // opened again since the look, which is harmless: then it is the gate of the new run.
            if gate
                .compare_exchange_weak(seen, seen + 1, Acquire, Relaxed)
                .is_err()
            {
                continue;
            }
            // SAFETY: this worker is inside, so the caller is in `run` and does not write.
            let (job, tasks) = unsafe { *self.run.0.job.get() };
            // SAFETY: `run` returns, and the borrow it was given ends, only after the decrement
            // below.
            self.work(unsafe { &*job }, tasks);
            // Release: what the tasks wrote is visible to the caller when it sees that nobody is
            // inside.
            gate.fetch_sub(1, Release);
        }
    }

    /// Waits a while for the gate to open or the workers to be dismissed; returns the last value
    /// seen.
    fn look(&self) -> usize {
        let mut gate = self.gate.0.load(Relaxed);
        for _ in 0..SPINS {
            if gate & (OPEN | DISMISSED) != 0 {
                return gate;
            }
            spin_loop();
            gate = self.gate.0.load(Relaxed);
        }
        let start = Instant::now();
        while gate & (OPEN | DISMISSED) == 0 && start.elapsed() < PATIENCE {
            yield_now();
            gate = self.gate.0.load(Relaxed);
        }
        gate
    }

    /// Claims and executes tasks until none is left, then closes the gate.
    fn work(&self, job: &Job<'_>, tasks: usize) {
        let next = &self.run.0.next;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                // Relaxed: a claim only has to be unique; the job became visible through the gate.
                let task = next.fetch_add(1, Relaxed);
                if task >= tasks {
                    break;
                }
                job(task);
            }
        }));
        if let Err(payload) = outcome {
            next.store(tasks, Relaxed); // the run has failed: drop the remaining tasks
            lock(&self.panic).get_or_insert(payload);
        }
        // Relaxed: it publishes nothing, and as a read-modify-write it continues the release
        // sequences of the workers that have left.
        self.gate.0.fetch_and(!OPEN, Relaxed);
    }
}

/// The right to publish runs.
pub(super) struct Held<'a> {
    fork_join: &'a ForkJoin,
}

impl Held<'_> {
    /// Runs `job` once for each task in `0..tasks` and waits for all; a panic in any of them is
    /// resumed here.
    ///
    /// `call` is given the number of additional workers that the run can use, if any: each of them
    /// must call [`ForkJoin::serve`] once, at any time.
    ///
    /// `&mut`: only one run is published at a time, which also rules out a run from inside a job.
    pub(super) fn run(&mut self, tasks: usize, job: &Job<'_>, call: impl FnOnce(usize)) {
        let fork_join = self.fork_join;
        let job_ptr: *const Job<'_> = job;
        // SAFETY: only the lifetime changes. No thread uses the pointer after `published` is
        // dropped, which is before this function returns or unwinds.
        let job_ptr: *const Job<'static> = unsafe { std::mem::transmute(job_ptr) };
        // SAFETY: the gate is closed and nobody is inside, as the previous run (or `new`) left it,
        // so no worker reads; `Held` is unique, so nobody else writes.
        unsafe { *fork_join.run.0.job.get() = (job_ptr, tasks) };
        fork_join.run.0.next.store(0, Relaxed);
        // Release: a worker that enters sees the two stores above.
        let gate = fork_join.gate.0.fetch_or(OPEN, Release);
        let published = Published { fork_join };

        let wanted = tasks.saturating_sub(1).min(fork_join.workers);
        let missing = wanted.saturating_sub(gate % DISMISSAL / SERVING);
        if missing > 0 && gate & DISMISSED == 0 {
            fork_join.gate.0.fetch_add(missing * SERVING, Relaxed);
            call(missing);
        }
        fork_join.work(job, tasks);
        drop(published);

        let panic = lock(&fork_join.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.fork_join.held.store(false, Release);
    }
}

/// A run that workers may see. Dropping it ends the run: the gate is closed, and nobody is inside.
struct Published<'a> {
    fork_join: &'a ForkJoin,
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        let gate = &self.fork_join.gate.0;
        // Workers inside are executing their last tasks, or have been preempted: then yielding to
        // them is better than spinning.
        let mut looks = 0;
        loop {
            // Acquire: pairs with the Release of each worker that has left.
            let seen = gate.load(Acquire);
            if seen & OPEN != 0 {
                // `work` closes it; it is still open only if calling the workers has panicked.
                gate.fetch_and(!OPEN, Relaxed);
            } else if seen & INSIDE == 0 {
                return;
            } else if looks < SPINS {
                looks += 1;
                spin_loop();
            } else {
                yield_now();
            }
        }
    }
}

/// While it lives, no worker serves.
#[must_use = "the workers may be called again when this is dropped"]
pub(super) struct Dismissed<'a> {
    fork_join: &'a ForkJoin,
}

impl Drop for Dismissed<'_> {
    fn drop(&mut self) {
        self.fork_join.gate.0.fetch_sub(DISMISSAL, Relaxed);
    }
}

/// Locks a mutex under which nothing panics.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of `tasks` empty tasks; returns how many workers it called.
    fn called(held: &mut Held<'_>, tasks: usize) -> usize {
        let mut called = 0;
        held.run(tasks, &|_| {}, |missing| called = missing);
        called
    }

    #[test]
    fn a_run_calls_those_it_lacks() {
        let fork_join = ForkJoin::new(3);
        let mut held = fork_join.try_hold().unwrap();
        for (tasks, expected) in [(0, 0), (1, 0), (2, 1), (2, 0), (9, 2), (9, 0)] {
            assert_eq!(called(&mut held, tasks), expected, "{tasks}");
        }
        // They come and, as there is no run, leave.
        (0..3).for_each(|_| fork_join.serve());
        assert_eq!(called(&mut held, 9), 3);
    }

    #[test]
    fn the_dismissed_leave_an_open_run_and_are_not_called() {
        let fork_join = ForkJoin::new(2);
        let mut held = fork_join.try_hold().unwrap();
        assert_eq!(called(&mut held, 2), 1);
        let done = AtomicUsize::new(0);
        let job = |task| {
            if task == 0 {
                let _dismissed = fork_join.dismiss();
                fork_join.serve(); // would do the other tasks
                assert_eq!(done.load(Relaxed), 0);
            }
            done.fetch_add(1, Relaxed);
        };
        held.run(2, &job, |_| ());
        assert_eq!(done.into_inner(), 2);

        let dismissed = [fork_join.dismiss(), fork_join.dismiss()];
        for one in dismissed {
            assert_eq!(called(&mut held, 9), 0);
            drop(one);
        }
        assert_eq!(called(&mut held, 9), 2);
    }

    #[test]
    fn a_run_that_cannot_call_is_ended() {
        let fork_join = ForkJoin::new(1);
        let mut held = fork_join.try_hold().unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let call = |_| resume_unwind(Box::new("no call")); // without the hook, which prints
            held.run(2, &|_| {}, call);
        }));
        assert!(outcome.is_err());
        fork_join.serve(); // would run the job of the run that has ended
        let done = AtomicUsize::new(0);
        let job = |_| {
            done.fetch_add(1, Relaxed);
        };
        held.run(5, &job, |_| ());
        assert_eq!(done.into_inner(), 5);
    }
}
