//! The overhead of sharing work among threads: nanoseconds per call, from the 10th to the 99th
//! percentile.
//!
//! `cargo bench --bench team [-- THREADS]`, 2 threads by default. On a machine with other load,
//! only the 10th percentile says something about the library.

use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use apl_ffi::runtime::{Pool, Team};

fn timed(call: impl FnOnce()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos();
    println!(
        "{name:<48} p10 {:>8}  median {:>8}  p90 {:>8}  p99 {:>9}",
        at(0.1),
        at(0.5),
        at(0.9),
        at(0.99)
    );
}

fn repeat(name: &str, count: usize, mut call: impl FnMut()) {
    report(name, (0..count).map(|_| timed(&mut call)).collect());
}

/// The same after 5 ms of idling each time, so that the workers sleep.
fn repeat_cold(name: &str, mut call: impl FnMut()) {
    let sample = |_| {
        std::thread::sleep(Duration::from_millis(5));
        timed(&mut call)
    };
    report(name, (0..200).map(sample).collect());
}

/// A chain of `n` multiplications: 1 to 2 ns each.
fn work(n: u64) {
    let mut x = 1u64;
    for i in 0..n {
        x = black_box(x.wrapping_mul(0x9e37_79b9).wrapping_add(i));
    }
}

fn main() {
    let arguments = std::env::args().skip(1);
    let threads = arguments.filter_map(|a| a.parse().ok()).next().unwrap_or(2);
    let pool = Pool::new(threads).expect("threads");
    let empty = |team: &Team| team.run(threads, &|_| {});
    let share = |team: &Team, n| team.run(4 * threads, &|_| work(n));
    println!("{threads} threads; nanoseconds");

    repeat("start and join a pool", 100, || {
        black_box(Pool::new(threads).expect("threads"));
    });
    repeat("team without a run", 10_000, || pool.team(|_| {}));
    pool.team(|team| {
        repeat("empty run in a team", 10_000, || empty(team));
        for n in [100, 1_000, 10_000, 100_000] {
            let name = format!("{} x {n} steps in a team", 4 * threads);
            repeat(&name, 1000, || share(team, n));
            repeat("    by the caller alone", 1000, || share(&Team::alone(), n));
        }
    });
    repeat("team and empty run, workers awake", 10_000, || {
        pool.team(empty)
    });
    repeat_cold("team and empty run, workers asleep", || pool.team(empty));
    for n in [1_000, 10_000, 100_000] {
        let name = format!("{} x {n} steps, workers asleep", 4 * threads);
        repeat_cold(&name, || pool.team(|team| share(team, n)));
    }

    let name = format!("try_for_each over {} x 100000 steps", 4 * threads);
    repeat_cold(&name, || {
        let items = vec![100_000; 4 * threads];
        let done = pool.try_for_each(items, |n| {
            work(n);
            Ok::<(), ()>(())
        });
        assert_eq!(done, Ok(()));
    });

    let times = Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..2000 {
                    let time = timed(|| pool.team(|team| share(team, 1000)));
                    times.lock().expect("no panic").push(time);
                }
            });
        }
    });
    let name = format!("{} x 1000 steps, 8 callers at once", 4 * threads);
    report(&name, times.into_inner().expect("no panic"));
}
