use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::error::Status;

const THREADS: [usize; 4] = [1, 2, 3, 8];

fn pool(threads: usize) -> Pool {
    let pool = Pool::new(threads).unwrap();
    assert_eq!(pool.threads(), threads.max(1));
    pool
}

fn on_worker() -> bool {
    std::thread::current()
        .name()
        .is_some_and(|name| name.starts_with("apl_ffi-"))
}

/// A buffer that tasks write without atomics: only the pool orders the accesses, which
/// ThreadSanitizer checks.
struct Plain(Vec<UnsafeCell<u64>>);

// SAFETY: in the tests below each element is written by one task of a run, and read in the next
// run.
unsafe impl Sync for Plain {}

impl Plain {
    fn new(len: usize) -> Plain {
        Plain((0..len as u64).map(UnsafeCell::new).collect())
    }

    fn get(&self, i: usize) -> u64 {
        // SAFETY: no task of this run writes the buffer that is read.
        unsafe { *self.0[i].get() }
    }

    fn set(&self, i: usize, value: u64) {
        // SAFETY: task `i` alone touches element `i` in this run.
        unsafe { *self.0[i].get() = value }
    }
}

/// `layers` runs, each of which reads what the others wrote in the previous run; compared with a
/// single thread.
fn sequence(team: &Team, width: usize, layers: usize) {
    let mix =
        |left: u64, right: u64| left.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ right.rotate_left(7);
    let buffers = [Plain::new(width), Plain::new(width)];
    for layer in 0..layers {
        let (from, to) = (&buffers[layer % 2], &buffers[(layer + 1) % 2]);
        team.run(width, &|i| {
            to.set(i, mix(from.get(i), from.get((i + 1) % width)))
        });
    }
    let mut expected: Vec<u64> = (0..width as u64).collect();
    for _ in 0..layers {
        expected = (0..width)
            .map(|i| mix(expected[i], expected[(i + 1) % width]))
            .collect();
    }
    let found: Vec<u64> = (0..width).map(|i| buffers[layers % 2].get(i)).collect();
    assert_eq!(found, expected);
}

/// Runs a job in which every thread of the pool takes part, once each.
fn with_every_thread(pool: &Pool, job: impl Fn() + Sync) {
    let all = Barrier::new(pool.threads());
    pool.team(|team| {
        assert_eq!(team.threads(), pool.threads());
        team.run(team.threads(), &|_| {
            all.wait();
            job();
        });
    });
}

#[test]
fn every_task_is_done_once() {
    for threads in THREADS {
        let pool = pool(threads);
        for tasks in [0usize, 1, 2, 3, threads, threads + 1, 63, 1000, 10_007] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.team(|team| {
                team.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
            });
            assert!(
                counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                "{threads} {tasks}"
            );
        }
    }
}

#[test]
fn each_run_sees_what_the_one_before_wrote() {
    sequence(&Team::alone(), 5, 10);
    for threads in THREADS {
        let pool = pool(threads);
        pool.team(|team| {
            sequence(team, threads, 10_000);
            sequence(team, 37, 1000);
        });
        for _ in 0..100 {
            pool.team(|team| sequence(team, 6, 3));
        }
    }
}

#[test]
fn sleeping_workers_are_woken() {
    let pool = pool(3);
    for pause in (0..150).map(|i| Duration::from_micros(i * 17 % 1500)) {
        std::thread::sleep(pause);
        with_every_thread(&pool, || {}); // hangs if a worker stays asleep
    }
}

#[test]
fn a_panic_of_any_thread_comes_out_and_the_pool_stays_usable() {
    for threads in THREADS {
        let pool = pool(threads);
        for from_worker in [false, true] {
            if from_worker && threads == 1 {
                continue;
            }
            let meet = Barrier::new(threads);
            let begun = AtomicUsize::new(0);
            let outcome = pool.team(|team| {
                catch_unwind(AssertUnwindSafe(|| {
                    team.run(1000, &|task| {
                        // Only the first round meets: a thread that panics does not return.
                        if begun.fetch_add(1, Ordering::Relaxed) < threads {
                            meet.wait();
                            if on_worker() == from_worker {
                                resume_unwind(Box::new(task)); // without the hook, which prints
                            }
                        }
                    });
                }))
            });
            assert!(
                outcome.unwrap_err().is::<usize>(),
                "{threads} {from_worker}"
            );
            pool.team(|team| {
                assert_eq!(team.threads(), threads);
                sequence(team, 9, 100);
            });
        }
    }
}

#[test]
fn a_panic_between_runs_releases_the_workers() {
    let pool = pool(2);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        pool.team(|_| resume_unwind(Box::new("between")))
    }));
    assert!(outcome.is_err());
    assert_eq!(pool.team(|team| team.threads()), 2);
}

#[test]
fn whoever_comes_second_works_alone() {
    let pool = pool(2);
    pool.team(|first| {
        // More than once: a refusal must not release what the first team holds.
        for _ in 0..3 {
            assert_eq!(pool.team(|second| second.threads()), 1);
        }
        std::thread::scope(|s| {
            let other = s.spawn(|| pool.team(|other| other.threads()));
            assert_eq!(other.join().unwrap(), 1);
        });
        assert_eq!(first.threads(), 2);
        sequence(first, 4, 100);
    });
    assert_eq!(pool.team(|again| again.threads()), 2);
}

#[test]
fn a_team_inside_a_job_is_its_thread_alone() {
    let pool = pool(3);
    let inner = AtomicUsize::new(0);
    pool.team(|team| {
        team.run(20, &|_| {
            pool.team(|nested| {
                assert_eq!(nested.threads(), 1);
                nested.run(5, &|_| {
                    inner.fetch_add(1, Ordering::Relaxed);
                });
            });
        });
    });
    assert_eq!(inner.into_inner(), 100);
}

#[test]
fn many_callers_and_two_pools() {
    let pools = [pool(2), pool(3)];
    std::thread::scope(|s| {
        let callers = [0, 1, 2, 3, 4, 5, 6, 7].map(|caller| {
            let pools = &pools;
            s.spawn(move || {
                for round in 0..100 {
                    pools[(caller + round) % 2].team(|team| sequence(team, 1 + round % 7, 10));
                }
            })
        });
        // Joined individually: ThreadSanitizer does not understand how a scope waits.
        for caller in callers {
            caller.join().unwrap();
        }
    });
    // No pool is left held, and every worker is still there.
    for pool in &pools {
        with_every_thread(pool, || {});
    }
}

#[test]
fn every_item_is_done_once() {
    for threads in THREADS {
        let pool = pool(threads);
        for len in [0usize, 1, 2, threads, 1000] {
            let counts: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
            let done = pool.try_for_each(counts.iter().collect(), |count| {
                count.fetch_add(1, Ordering::Relaxed);
                Ok::<(), ()>(())
            });
            assert_eq!(done, Ok(()));
            assert!(
                counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                "{threads} {len}"
            );
        }
    }
}

#[test]
fn every_thread_takes_items() {
    for threads in THREADS {
        let pool = pool(threads);
        let caller = std::thread::current().id();
        let all = Barrier::new(threads); // hangs if a thread stays away
        let done = pool.try_for_each((0..threads).collect(), |_| {
            all.wait();
            assert_eq!(std::thread::current().id() == caller, !on_worker());
            Ok::<(), ()>(())
        });
        assert_eq!(done, Ok(()));
    }
}

#[test]
fn an_item_that_fails_ends_the_rest() {
    for threads in THREADS {
        let pool = pool(threads);
        let begun = AtomicUsize::new(0);
        let outcome = pool.try_for_each((0..1000).collect(), |item: usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            Err(item)
        });
        assert!(outcome.is_err());
        // Each thread starts one item, and then sees that nothing is left.
        let begun = begun.into_inner();
        assert!((1..=threads).contains(&begun), "{threads} {begun}");
    }
}

#[test]
fn a_panic_of_an_item_comes_out() {
    for threads in THREADS {
        let pool = pool(threads);
        for panicking in [0, 999] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.try_for_each((0..1000).collect(), |item: usize| {
                    if item == panicking {
                        resume_unwind(Box::new(item)); // without the hook, which prints
                    }
                    Ok::<(), ()>(())
                })
            }));
            assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&panicking));
        }
        with_every_thread(&pool, || {});
    }
}

#[test]
fn teams_and_items_inside_one_another() {
    let pool = pool(3);
    let items = |count: &AtomicUsize| {
        let done = pool.try_for_each((0..7).collect(), |_: usize| {
            pool.team(|team| sequence(team, 4, 3));
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<(), ()>(())
        });
        assert_eq!(done, Ok(()));
    };
    let count = AtomicUsize::new(0);
    pool.team(|team| {
        team.run(5, &|_| items(&count));
        items(&count);
    });
    let outer = pool.try_for_each((0..5).collect(), |_: usize| {
        items(&count);
        Ok::<(), ()>(())
    });
    assert_eq!(outer, Ok(()));
    assert_eq!(count.into_inner(), 7 * (5 + 1 + 5));
    with_every_thread(&pool, || {});
}

#[test]
fn items_of_many_callers_while_runs_follow_one_another_without_a_pause() {
    let pool = pool(3);
    let waiting = AtomicUsize::new(8);
    std::thread::scope(|s| {
        let team = s.spawn(|| {
            pool.team(|team| {
                while waiting.load(Ordering::Relaxed) > 0 {
                    sequence(team, 3, 20);
                }
            });
        });
        let callers = [(); 8].map(|()| {
            s.spawn(|| {
                for _ in 0..20 {
                    let sum = AtomicUsize::new(0);
                    let done = pool.try_for_each((0..50).collect(), |item| {
                        sum.fetch_add(item, Ordering::Relaxed);
                        Ok::<(), ()>(())
                    });
                    assert_eq!(done, Ok(()));
                    assert_eq!(sum.into_inner(), 50 * 49 / 2);
                }
                waiting.fetch_sub(1, Ordering::Relaxed);
            })
        });
        for caller in callers {
            caller.join().unwrap();
        }
        team.join().unwrap();
    });
    with_every_thread(&pool, || {});
}

#[test]
fn a_pool_ends_while_its_workers_serve() {
    for pause in (0..60).map(|i| Duration::from_micros(i * 29)) {
        let pool = pool(3);
        pool.team(|team| team.run(3, &|_| {})); // calls both; one may still be on its way
        std::thread::sleep(pause);
        drop(pool); // hangs if a worker does not come back
    }
}

#[test]
fn workers_are_the_library() {
    with_every_thread(&pool(3), || {
        assert_eq!(crate::runtime::panic_scope::in_library(), on_worker());
    });
}

#[test]
fn too_many_threads_are_an_error() {
    let error = Pool::new(usize::MAX).err().unwrap();
    assert_eq!(error.status(), Status::Memory);
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::time::Instant;

    /// The `/proc` directories of the pool's own threads.
    fn workers(pool: &Pool) -> Vec<PathBuf> {
        let ids = Mutex::new(Vec::new());
        with_every_thread(pool, || {
            if on_worker() {
                // SAFETY: it only returns a number.
                ids.lock().unwrap().push(unsafe { libc::gettid() });
            }
        });
        let ids = ids.into_inner().unwrap();
        ids.iter()
            .map(|id| format!("/proc/self/task/{id}").into())
            .collect()
    }

    fn blocked_signals(thread: &std::path::Path) -> u64 {
        let status = std::fs::read_to_string(thread.join("status")).unwrap();
        let mask = status
            .lines()
            .find_map(|l| l.strip_prefix("SigBlk:"))
            .unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn every_worker_blocks_every_signal_and_the_caller_none_more() {
        let me = PathBuf::from("/proc/thread-self");
        let before = blocked_signals(&me);
        let pool = pool(4);
        assert_eq!(blocked_signals(&me), before);
        // KILL and STOP cannot be blocked; 32 to 34 are used by the C library.
        let never: u64 = [9, 19, 32, 33, 34].iter().map(|n| 1 << (n - 1)).sum();
        let workers = workers(&pool);
        assert_eq!(workers.len(), 3);
        for worker in workers {
            assert_eq!(blocked_signals(&worker) | never, u64::MAX, "{worker:?}");
        }
    }

    #[test]
    fn dropping_the_pool_ends_its_threads() {
        for asleep in [false, true] {
            let pool = pool(4);
            let workers = workers(&pool);
            if asleep {
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(pool);
            // The kernel removes the directory shortly after the join.
            let start = Instant::now();
            while workers.iter().any(|w| w.exists()) {
                assert!(start.elapsed() < Duration::from_secs(10), "{workers:?}");
                std::thread::yield_now();
            }
        }
    }
}
