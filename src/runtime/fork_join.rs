//! How threads share the tasks of one run: the protocol between the caller and the workers.
//!
//! A run is a job and a number of tasks. The caller publishes it and opens the *gate*; workers that
//! see the gate open go in and claim tasks beside the caller; whoever finds no task left closes the
//! gate; the caller returns when it is closed and nobody is inside. So a run never waits for a worker
//! to arrive: if none comes, the caller does the tasks itself, and one that comes late finds the gate
//! closed and has touched nothing.
//!
//! A worker *serves*: between runs it first spins, then gives its processor away at each look, then goes
//! back to where it came from; also, and at once, when the workers are *dismissed* because they are needed
//! there. A run that finds fewer serving than it has use for calls others.
//!
//! The gate is one word: whether it is open, how many dismissals are in force, how many workers serve or
//! have been called, and how many are inside. So leaving is one step from a gate that gives reason to,
//! and a run that has counted a worker will be seen by it.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// What a run does for each of its tasks.
pub(super) type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The job before there is any. Nobody runs it: the gate is closed.
const NOTHING: &Job<'static> = &|_| {};

/// Bit of the gate: a run is published and may have tasks left.
const OPEN: usize = 1 << (usize::BITS - 1);
/// One dismissal in the gate; while there is any, nobody is to serve.
const DISMISSAL: usize = 1 << (usize::BITS / 2);
/// All dismissals.
const DISMISSED: usize = OPEN - DISMISSAL;
/// One worker that serves or has been called. The bits below count the workers inside: rayon's limit on
/// threads is 255 where `usize` has 32 bits and 65535 where it has 64, so both counts fit.
const SERVING: usize = 1 << (usize::BITS / 4);
/// The workers inside.
const INSIDE: usize = SERVING - 1;

/// Looks at the gate before the processor is given away between two looks.
///
/// A pause instruction takes 9 to 70 ns on the processors of today, so this is 20 to 140 µs: about
/// what it costs to wake a sleeping thread. Spinning for as long as the alternative costs is never
/// worse than twice the best choice.
const SPINS: u32 = 2000;

/// How long a worker goes on looking after that, giving its processor away each time, before it leaves.
///
/// The gaps of a token loop, and of an interpreter that calls in a loop, are far shorter.
const PATIENCE: Duration = Duration::from_millis(1);

/// Whether there is a run that a worker may go into.
fn calls(gate: usize) -> bool {
    gate & (OPEN | DISMISSED) == OPEN
}

/// A cache line of its own (two: processors fetch them in pairs).
#[repr(align(128))]
struct Line<T>(T);

/// The run that is published. Written by the caller alone, while nobody is inside.
struct Run {
    job: UnsafeCell<(*const Job<'static>, usize)>,
    /// The next task that nobody has claimed; beyond the number of tasks: none is left. It shares the
    /// line with the job because every member reads both, and the spinning ones neither.
    next: AtomicUsize,
}

/// What the caller and the workers share.
pub(super) struct ForkJoin {
    gate: Line<AtomicUsize>,
    run: Line<Run>,
    /// Whether a caller holds the fork_join; then nobody else opens the gate.
    held: AtomicBool,
    /// How many workers there are to be called.
    workers: usize,
    /// The first panic of the run, from whichever thread.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: everything but `run.job` is Sync by itself. `run.job` is written only by `run`, which needs
// the one `Held` and writes while the gate is closed and nobody is inside; it is read only by a worker
// that went in through the open gate, and `run` does not write again before that worker has left. The
// gate's Release/Acquire pairs order these accesses. What it points to is Sync and outlives the run.
unsafe impl Sync for ForkJoin {}
// SAFETY: as above; the pointer in `run.job` is not used outside a run, whichever thread owns the fork_join.
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

    /// The right to publish runs, unless another caller has it.
    pub(super) fn try_hold(&self) -> Option<Held<'_>> {
        // Acquire, with the Release of `Held::drop`: what the previous holder wrote into `run` is
        // ordered before what this one writes.
        self.held
            .compare_exchange(false, true, Acquire, Relaxed)
            .is_ok()
            .then(|| Held { fork_join: self }) // not `then_some`: dropping a refused one would release the fork_join
    }

    /// Sends the workers away for as long as the result lives: those inside leave when their run has no
    /// task left for them, the others at their next look, and no run calls any.
    pub(super) fn dismiss(&self) -> Dismissed<'_> {
        // Relaxed, as in all that is done to the count of dismissals: it orders nothing.
        self.gate.0.fetch_add(DISMISSAL, Relaxed);
        Dismissed { fork_join: self }
    }

    /// Takes part in runs until none comes for a while. The gate has counted this worker already: it was
    /// called, once.
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
            // Acquire reads from the caller's step that opened the gate, or from a later step of anyone,
            // which continues its release sequence: the job is visible. That the gate may have been
            // closed and opened again since the look is harmless: then it is the new run's gate.
            if gate
                .compare_exchange_weak(seen, seen + 1, Acquire, Relaxed)
                .is_err()
            {
                continue;
            }
            // SAFETY: this worker is inside, so the caller is in `run` and does not write.
            let (job, tasks) = unsafe { *self.run.0.job.get() };
            // SAFETY: `run` returns, and the borrow it was given ends, only after the decrement below.
            self.work(unsafe { &*job }, tasks);
            // Release: what the tasks wrote is visible to the caller when it sees that nobody is inside.
            gate.fetch_sub(1, Release);
        }
    }

    /// Waits a while for the gate to be open or the workers to be dismissed; the gate as last seen.
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

    /// Claims tasks and does them until none is left, then closes the gate.
    fn work(&self, job: &Job<'_>, tasks: usize) {
        let next = &self.run.0.next;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                // Relaxed: a claim must only be unique; the job became visible through the gate.
                let task = next.fetch_add(1, Relaxed);
                if task >= tasks {
                    break;
                }
                job(task);
            }
        }));
        if let Err(payload) = outcome {
            next.store(tasks, Relaxed); // the run has failed: the tasks that are left are dropped
            lock(&self.panic).get_or_insert(payload);
        }
        // Relaxed: it publishes nothing, and as a read-modify-write it continues the release sequences
        // of those that have left.
        self.gate.0.fetch_and(!OPEN, Relaxed);
    }
}

/// The right to publish runs to a fork_join.
pub(super) struct Held<'a> {
    fork_join: &'a ForkJoin,
}

impl Held<'_> {
    /// Runs `job` once for each task in `0..tasks` and waits for all; a panic of any comes out here.
    ///
    /// `call` is told how many workers more the run has use for, if any: each must come to [`ForkJoin::serve`]
    /// once, at any time.
    ///
    /// `&mut`: a run is not published while another is, which also rules out a run from inside a job.
    pub(super) fn run(&mut self, tasks: usize, job: &Job<'_>, call: impl FnOnce(usize)) {
        let fork_join = self.fork_join;
        let job_ptr: *const Job<'_> = job;
        // SAFETY: only the lifetime changes. No member uses the pointer after `published` is dropped,
        // which is before this function returns or unwinds.
        let job_ptr: *const Job<'static> = unsafe { std::mem::transmute(job_ptr) };
        // SAFETY: the gate is closed and nobody is inside, as the previous run left it (or `new` did), so
        // no worker reads; `Held` is the only one, so nobody else writes.
        unsafe { *fork_join.run.0.job.get() = (job_ptr, tasks) };
        fork_join.run.0.next.store(0, Relaxed);
        // Release: a worker that goes in sees the two stores above.
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

/// A run that workers may see. Dropping it ends the run: the gate is closed and nobody is inside.
struct Published<'a> {
    fork_join: &'a ForkJoin,
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        let gate = &self.fork_join.gate.0;
        // Those inside are at their last tasks, or a scheduler has taken the processor from them: then it
        // is better given to them than spun away.
        let mut looks = 0;
        loop {
            // Acquire: pairs with the Release of each worker that has left.
            let seen = gate.load(Acquire);
            if seen & OPEN != 0 {
                // `work` closes it; it is open only if calling the workers has panicked.
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

/// While it lives, nobody serves.
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

    /// A run of `tasks` tasks that do nothing; how many workers it called.
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
        // They come and, as no run does, go.
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
