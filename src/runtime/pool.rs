//! The library's own threads, the team that they form for a sequence of products, and the sharing
//! of coarse-grained work.

use std::cell::RefCell;
use std::mem::take;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::enter_library;
use super::fork_join::{ForkJoin, Held, lock};
use crate::error::{Error, Result};
use crate::memory::with_capacity;
use crate::signals::Blocked;

/// The stack size of a worker, in bytes: Rust's default, fixed here so that it does not depend on
/// the host's environment (`RUST_MIN_STACK`).
const STACK: usize = 2 << 20;

/// The library's own threads. The calling thread always works too.
///
/// They receive no signals and print nothing. Dropping the pool joins them.
///
/// They are the threads of a rayon pool, where they sleep and share coarse-grained work. A sequence
/// of products is too fine-grained for rayon's jobs, each of which costs an allocation, a queue
/// operation and, for the caller, a wait until every worker has come and gone. For such a sequence
/// the workers leave rayon for a while to serve a [`ForkJoin`].
pub struct Pool {
    fork_join: Arc<ForkJoin>,
    /// `None` if there is only the calling thread.
    rayon: Option<ThreadPool>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the calling one included.
    ///
    /// # Errors
    /// `ERR_MEMORY` if the system refuses to create a thread; those already started are joined.
    pub fn new(threads: usize) -> Result<Pool> {
        let count = threads.saturating_sub(1);
        let mut pool = Pool {
            fork_join: Arc::new(ForkJoin::new(0)),
            rayon: None,
            workers: with_capacity(count, "the threads of the pool")?,
        };
        // rayon interprets 0 as the number of processors.
        if count > 0 {
            let _signals = Blocked::all();
            let started = ThreadPoolBuilder::new()
                .num_threads(count)
                .spawn_handler(|worker| {
                    let thread = Builder::new()
                        .name(format!("apl_ffi-{}", worker.index() + 1))
                        .stack_size(STACK)
                        .spawn(move || {
                            let _library = enter_library();
                            worker.run();
                        })?;
                    pool.workers.push(thread);
                    Ok(())
                })
                .build();
            // On an error rayon has told the threads already started to end.
            pool.rayon = Some(started.map_err(|e| {
                let n = pool.workers.len() + 1;
                Error::memory(format!("thread {n} of {count} cannot be started: {e}"))
            })?);
            // rayon has a limit of its own on the number of threads.
            pool.fork_join = Arc::new(ForkJoin::new(pool.workers.len()));
        }
        Ok(pool)
    }

    /// The number of threads, including the calling one.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Holds the workers for the sequence of products that `f` issues.
    ///
    /// If another caller holds them, the team is the calling thread alone: nobody waits. The same
    /// holds for a team requested from inside a team or a job. While [`Pool::try_for_each`] uses
    /// the workers, the team reports as many threads as ever, but the calling thread does the work.
    pub fn team<R>(&self, f: impl FnOnce(&Team) -> R) -> R {
        let workers = self.rayon.as_ref().and_then(|rayon| {
            Some(Workers {
                held: RefCell::new(self.fork_join.try_hold()?),
                fork_join: &self.fork_join,
                rayon,
            })
        });
        f(&Team {
            threads: workers.as_ref().map_or(1, |_| self.threads()),
            workers,
        })
    }

    /// Calls `work` on every item, on the calling thread and all others: for items that take 0.1 ms
    /// or more, such as bands of a matrix to quantise.
    ///
    /// Any number of callers share the threads, and each waits until its own items are done. It
    /// takes precedence over a team: workers that serve one leave it after the current run, and no
    /// run calls them until this call ends, so that products issued without a pause cannot delay it
    /// indefinitely.
    ///
    /// There is no `install` for arbitrary closures: with one thread it would have to run on the
    /// calling thread, where a rayon iterator would start the global pool.
    ///
    /// # Errors
    /// The error of an item, if any fails; items that have not been started are then skipped.
    ///
    /// # Panics
    /// If `work` panics, on any thread; the other items may still be processed.
    pub fn try_for_each<T: Send, E: Send>(
        &self,
        items: Vec<T>,
        work: impl Fn(T) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<(), E> {
        let helpers = self.workers.len().min(items.len().saturating_sub(1));
        let Some(rayon) = self.rayon.as_ref().filter(|_| helpers > 0) else {
            return items.into_iter().try_for_each(work);
        };
        let rest = Mutex::new(items.into_iter());
        let failure = Mutex::new(None);
        let take_part = || {
            loop {
                let item = lock(&rest).next();
                let Some(item) = item else { return };
                if let Err(e) = work(item) {
                    lock(&failure).get_or_insert(e);
                    let unbegun = take(&mut *lock(&rest));
                    drop(unbegun); // here, where the lock is not held
                }
            }
        };
        let _away_from_teams = self.fork_join.dismiss();
        rayon.in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| take_part());
            }
            take_part();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(e) => Err(e),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // `&mut self`: no team borrows the pool any more.
        let _for_good = self.fork_join.dismiss();
        // Its threads end when those that serve have returned.
        self.rayon = None;
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs, so it ends by returning.
            let _ = worker.join();
        }
    }
}

/// The calling thread and the workers of the pool while they are held.
///
/// It stays on the thread that requested it: a job cannot capture it.
pub struct Team<'a> {
    threads: usize,
    workers: Option<Workers<'a>>,
}

/// The workers of a team.
struct Workers<'a> {
    held: RefCell<Held<'a>>,
    fork_join: &'a Arc<ForkJoin>,
    rayon: &'a ThreadPool,
}

impl Team<'_> {
    /// A team of only the calling thread.
    pub fn alone() -> Team<'static> {
        Team {
            threads: 1,
            workers: None,
        }
    }

    /// The most threads that share work.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `job(task)` once for each task in `0..tasks`, in no particular order, and waits for
    /// all.
    ///
    /// # Panics
    /// If the job panics, on any thread: the first panic is resumed here, and tasks that have not
    /// been started are not run. The pool remains usable.
    pub fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        match &self.workers {
            Some(Workers {
                held,
                fork_join,
                rayon,
            }) if tasks > 1 => {
                held.borrow_mut().run(tasks, job, |missing| {
                    for _ in 0..missing {
                        let fork_join = Arc::clone(fork_join);
                        rayon.spawn(move || fork_join.serve());
                    }
                });
            }
            _ => (0..tasks).for_each(job),
        }
    }
}

/// What executes a piece of work in parallel: the pool's idle threads, or a team that is held
/// already.
#[derive(Clone, Copy)]
pub enum Executor<'a> {
    /// Forms a team for this piece of work.
    Pool(&'a Pool),
    /// A team that lasts for a sequence of them.
    Team(&'a dyn Shared),
}

/// Something that shares tasks among threads: a [`Team`], whatever its lifetime.
pub trait Shared {
    /// As [`Team::threads`].
    fn threads(&self) -> usize;

    /// As [`Team::run`].
    fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync));
}

impl Shared for Team<'_> {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        Team::run(self, tasks, job);
    }
}

impl Executor<'_> {
    /// The most threads that share work.
    pub fn threads(&self) -> usize {
        match self {
            Executor::Pool(pool) => pool.threads(),
            Executor::Team(team) => team.threads(),
        }
    }

    /// Calls `work` with what shares its tasks.
    pub fn share<R>(&self, work: impl FnOnce(&dyn Shared) -> R) -> R {
        match self {
            Executor::Pool(pool) => pool.team(|team| work(team)),
            Executor::Team(team) => work(*team),
        }
    }
}

#[cfg(test)]
mod tests;
