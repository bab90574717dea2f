//! The library runs on its own threads alone: rayon's global pool is never started.
//!
//! A process of its own with one test, so that every thread in it is accounted for.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::fs;
use std::sync::Barrier;

use apl_ffi::runtime::Pool;

/// The threads of this process: `(id, name)`.
fn threads() -> BTreeSet<(String, String)> {
    let ids = fs::read_dir("/proc/self/task").unwrap();
    let thread = |id: String| {
        // The name is gone if the thread ended after it was listed.
        let name = fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok()?;
        Some((id, name.trim_end().to_owned()))
    };
    ids.filter_map(|entry| thread(entry.unwrap().file_name().into_string().unwrap()))
        .collect()
}

#[test]
fn every_thread_is_the_pools() {
    let before = threads();
    for count in [1, 4] {
        let pool = Pool::new(count).unwrap();
        for _ in 0..20 {
            let products = || {
                pool.team(|team| {
                    for _ in 0..10 {
                        team.run(64, &|_| {});
                    }
                });
                Ok::<(), ()>(())
            };
            products().unwrap();
            pool.try_for_each(vec![(); 64], |()| products()).unwrap();
        }
        // A thread names itself when it starts: until all have met here, one may not have.
        let all = Barrier::new(count);
        let meet = |()| {
            all.wait();
            Ok::<(), ()>(())
        };
        pool.try_for_each(vec![(); count], meet).unwrap();
        let found: BTreeSet<String> = threads()
            .difference(&before)
            .map(|(_, name)| name.clone())
            .collect();
        let expected: BTreeSet<String> = (1..count).map(|n| format!("apl_ffi-{n}")).collect();
        assert_eq!(found, expected);
    }
}
