//! The library's own threads, and the team they form for a sequence of products.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::crew::{Crew, Held};
use super::enter_library;
use super::signals::Blocked;
use crate::error::{Error, Result};
use crate::memory::with_capacity;

/// The stack of a worker, in bytes: the default of Rust, fixed here because the host's environment
/// (`RUST_MIN_STACK`) is not ours to depend on.
const STACK: usize = 2 << 20;

/// The library's own threads; the calling thread is always one of those that work.
///
/// They take no signals and print nothing. Dropping the pool joins them.
pub struct Pool {
    crew: Arc<Crew>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the calling one included.
    ///
    /// # Errors
    /// `ERR_MEMORY` if the system refuses a thread; those already started are joined.
    pub fn new(threads: usize) -> Result<Pool> {
        let count = threads.saturating_sub(1);
        let mut pool = Pool {
            crew: Arc::new(Crew::new()),
            workers: with_capacity(count, "the threads of the pool")?,
        };
        let _signals = Blocked::all();
        for n in 1..=count {
            let crew = Arc::clone(&pool.crew);
            let worker = Builder::new()
                .name(format!("apl_ffi-{n}"))
                .stack_size(STACK)
                .spawn(move || {
                    let _library = enter_library();
                    crew.serve();
                })
                .map_err(|e| {
                    Error::memory(format!("thread {n} of {count} cannot be started: {e}"))
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Holds the workers through the sequence of products that `f` issues.
    ///
    /// If another caller holds them, the team is the calling thread alone: nobody waits. The same
    /// holds for a team asked for from inside a team or a job.
    pub fn team<R>(&self, f: impl FnOnce(&Team) -> R) -> R {
        let held = match self.workers.len() {
            0 => None,
            _ => self.crew.try_hold(),
        };
        f(&Team {
            members: if held.is_some() { self.threads() } else { 1 },
            held: held.map(RefCell::new),
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // `&mut self`: no team borrows the pool any more.
        self.crew.quit();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs, so it ends by returning.
            let _ = worker.join();
        }
    }
}

/// The workers while they are held: the calling thread and those of the pool.
///
/// It stays on the thread that asked for it: a job cannot capture it.
pub struct Team<'a> {
    members: usize,
    held: Option<RefCell<Held<'a>>>,
}

impl Team<'_> {
    /// A team of the calling thread alone.
    pub fn alone() -> Team<'static> {
        Team {
            members: 1,
            held: None,
        }
    }

    /// How many threads share the work.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Runs `job(task)` once for each task in `0..tasks`, in no particular order, and waits for all.
    ///
    /// # Panics
    /// If the job does, on whichever thread: the first panic comes out here, and the tasks that nobody
    /// has begun by then are not run. The pool stays usable.
    pub fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        match &self.held {
            Some(held) if tasks > 1 => held.borrow_mut().run(tasks, job),
            _ => (0..tasks).for_each(job),
        }
    }
}

#[cfg(test)]
mod tests;
