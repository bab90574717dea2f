//! The library's own threads.

use crate::error::Result;

/// The library's own threads; the calling thread is always one of those that work.
pub struct Pool {
    threads: usize,
}

impl Pool {
    /// A pool of `threads` threads, the calling one included.
    ///
    /// # Errors
    /// `ERR_MEMORY` if the system refuses a thread.
    pub fn new(threads: usize) -> Result<Pool> {
        Ok(Pool {
            threads: threads.max(1),
        })
    }

    /// Threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Holds the workers through the sequence of products that `f` issues.
    ///
    /// If another caller holds them, the team is the calling thread alone: nobody waits.
    pub fn team<R>(&self, f: impl FnOnce(&Team) -> R) -> R {
        f(&Team { members: 1 })
    }
}

/// The workers while they are held: the calling thread and those of the pool.
pub struct Team {
    members: usize,
}

impl Team {
    /// A team of the calling thread alone.
    pub fn alone() -> Team {
        Team { members: 1 }
    }

    /// How many threads share the work.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Runs `job(task)` once for each task in `0..tasks`, in no particular order, and waits for all.
    pub fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(job);
    }
}
