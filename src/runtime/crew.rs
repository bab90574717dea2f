//! How threads share the tasks of one run: the protocol between the caller and the workers.
//!
//! A run is a job and a number of tasks. The caller publishes it and opens the *gate*; workers that
//! see the gate open go in and claim tasks beside the caller; whoever finds no task left closes the
//! gate; the caller returns when it is closed and nobody is inside. So a run never waits for a worker
//! to arrive: if all of them sleep, the caller does the tasks itself, and one that comes late finds
//! the gate closed and has touched nothing.
//!
//! Between runs a worker first spins, then gives its processor away at each look, then sleeps.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// What a run does for each of its tasks.
pub(super) type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The job before there is any. Nobody runs it: the gate is closed.
const NOTHING: &Job<'static> = &|_| {};

/// Bit of the gate: a run is published and may have tasks left.
const OPEN: u32 = 1 << 31;
/// Bit of the gate: the workers are to end. The bits below count the workers inside.
const QUIT: u32 = 1 << 30;

/// Looks at the gate before the processor is given away between two looks.
///
/// A pause instruction takes 9 to 70 ns on the processors of today, so this is 20 to 140 µs: about
/// what it costs to wake a sleeping thread. Spinning for as long as the alternative costs is never
/// worse than twice the best choice.
const SPINS: u32 = 2000;

/// How long a worker goes on looking after that, giving its processor away each time, before it sleeps.
///
/// The gaps of a token loop, and of an interpreter that calls in a loop, are far shorter.
const PATIENCE: Duration = Duration::from_millis(1);

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
pub(super) struct Crew {
    gate: Line<AtomicU32>,
    run: Line<Run>,
    /// Whether a caller holds the crew; then nobody else opens the gate.
    held: AtomicBool,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    door: Mutex<()>,
    bell: Condvar,
    /// The first panic of the run, from whichever thread.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: everything but `run.job` is Sync by itself. `run.job` is written only by `run`, which needs
// the one `Held` and writes while the gate is closed and nobody is inside; it is read only by a worker
// that went in through the open gate, and `run` does not write again before that worker has left. The
// gate's Release/Acquire pairs order these accesses. What it points to is Sync and outlives the run.
unsafe impl Sync for Crew {}
// SAFETY: as above; the pointer in `run.job` is not used outside a run, whichever thread owns the crew.
unsafe impl Send for Crew {}

impl Crew {
    pub(super) fn new() -> Crew {
        Crew {
            gate: Line(AtomicU32::new(0)),
            run: Line(Run {
                job: UnsafeCell::new((NOTHING, 0)),
                next: AtomicUsize::new(0),
            }),
            held: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            door: Mutex::new(()),
            bell: Condvar::new(),
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
            .then(|| Held { crew: self }) // not `then_some`: dropping a refused one would release the crew
    }

    /// Tells the workers to end. No caller may hold the crew.
    pub(super) fn quit(&self) {
        self.gate.0.store(QUIT, SeqCst);
        self.wake(usize::MAX);
    }

    /// The life of a worker. It begins asleep: a library is configured long before it is used, and a
    /// thousand threads that all look for work would make the starting of them slow.
    pub(super) fn serve(&self) {
        self.sleep();
        loop {
            let gate = self.gate.0.load(Relaxed);
            if gate & QUIT != 0 {
                return;
            }
            if gate & OPEN == 0 {
                self.idle();
                continue;
            }
            // Acquire reads from the caller's store that opened the gate, or from a later change of the
            // count, which continues its release sequence: the job is visible. That the gate may have
            // been closed and opened again since the load is harmless: then it is the new run's gate.
            if self
                .gate
                .0
                .compare_exchange_weak(gate, gate + 1, Acquire, Relaxed)
                .is_err()
            {
                continue;
            }
            // SAFETY: this worker is inside, so the caller is in `run` and does not write.
            let (job, tasks) = unsafe { *self.run.0.job.get() };
            // SAFETY: `run` returns, and the borrow it was given ends, only after the decrement below.
            self.work(unsafe { &*job }, tasks);
            // Release: what the tasks wrote is visible to the caller when it sees the count at 0.
            self.gate.0.fetch_sub(1, Release);
        }
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

    /// Waits for the gate to change: a while awake, then asleep. It may return early.
    fn idle(&self) {
        for _ in 0..SPINS {
            if self.called() {
                return;
            }
            spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.called() {
                return;
            }
            yield_now();
        }
        self.sleep();
    }

    /// Sleeps unless the gate has changed, until it does. It may return early.
    fn sleep(&self) {
        let door = lock(&self.door);
        // This and `wake` are the two halves of one argument: here `sleepers` is written and then the
        // gate read, there the gate is written and then `sleepers` read, all SeqCst, so at least one
        // side sees the other. If it is the waking one, it rings only after taking the door, which
        // this thread holds until it waits.
        self.sleepers.fetch_add(1, SeqCst);
        if self.gate.0.load(SeqCst) & (OPEN | QUIT) == 0 {
            drop(self.bell.wait(door));
        }
        self.sleepers.fetch_sub(1, Relaxed);
    }

    fn called(&self) -> bool {
        self.gate.0.load(Relaxed) & (OPEN | QUIT) != 0
    }

    /// Wakes at most `wanted` sleepers. The gate has been changed, with SeqCst.
    fn wake(&self, wanted: usize) {
        let sleepers = self.sleepers.load(SeqCst);
        if sleepers == 0 {
            return;
        }
        drop(lock(&self.door));
        if wanted >= sleepers {
            self.bell.notify_all();
        } else {
            (0..wanted).for_each(|_| self.bell.notify_one());
        }
    }
}

/// The right to publish runs to a crew.
pub(super) struct Held<'a> {
    crew: &'a Crew,
}

impl Held<'_> {
    /// Runs `job` once for each task in `0..tasks` and waits for all; a panic of any comes out here.
    ///
    /// `&mut`: a run is not published while another is, which also rules out a run from inside a job.
    pub(super) fn run(&mut self, tasks: usize, job: &Job<'_>) {
        let crew = self.crew;
        let job_ptr: *const Job<'_> = job;
        // SAFETY: only the lifetime changes. No member uses the pointer after this function returns, and
        // it does not unwind before the wait below: `work` catches the panics of the job.
        let job_ptr: *const Job<'static> = unsafe { std::mem::transmute(job_ptr) };
        // SAFETY: the gate is closed and nobody is inside, as the previous run left it (or `new` did), so
        // no worker reads; `Held` is the only one, so nobody else writes.
        unsafe { *crew.run.0.job.get() = (job_ptr, tasks) };
        crew.run.0.next.store(0, Relaxed);
        // Release: a worker that goes in sees the two stores above. SeqCst: see `sleep`.
        crew.gate.0.store(OPEN, SeqCst);
        crew.wake(tasks.saturating_sub(1));
        crew.work(job, tasks);

        // `work` has closed the gate. Those inside are at their last tasks, or a scheduler has taken the
        // processor from them: then it is better given to them than spun away.
        // Acquire: pairs with the Release of each worker that has left.
        let mut looks = 0;
        while crew.gate.0.load(Acquire) != 0 {
            if looks < SPINS {
                looks += 1;
                spin_loop();
            } else {
                yield_now();
            }
        }
        let panic = lock(&crew.panic).take();
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.crew.held.store(false, Release);
    }
}

/// Locks a mutex under which nothing panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
