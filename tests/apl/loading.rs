//! Association and erasure: what `Init`, `Close`, `)CLEAR` and `)LOAD` do to the library.

use std::fs;

use crate::declaration::Declaration;
use crate::interpreter::{Event, Item, Workspace};
use crate::{library, namespace, turn, workspace};

/// `SigBlk` of each thread of the library that is alive, by the names that it gives them.
fn blocked_signals() -> Vec<u64> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        // A thread may end while we look.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .map(str::trim)
        };
        if field("Name:").is_some_and(|n| n.starts_with("apl_ffi")) {
            found.push(u64::from_str_radix(field("SigBlk:").unwrap(), 16).unwrap());
        }
    }
    found
}

/// Those masks, once as many threads as expected have their names: a thread gives itself its name, and ends a little
/// after it was joined.
fn settled(count: usize) -> Vec<u64> {
    for _ in 0..2000 {
        let masks = blocked_signals();
        if masks.len() == count {
            return masks;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!(
        "{} threads of the library, expected {count}",
        blocked_signals().len()
    );
}

/// All but SIGKILL (9) and SIGSTOP (19), which cannot be blocked, and the two that the C library keeps (32 and 33).
const ALL: u64 = !(1 << 8 | 1 << 18 | 1 << 31 | 1 << 32);

#[test]
fn a_hundred_times_associated_and_erased() {
    let _turn = turn();
    for round in 0..100 {
        let mut w = workspace();
        let config = Item::from(r#"{"threads":3}"#);
        assert_eq!(
            w.call("apl_ffi_init", &[config]).unwrap()[0].number(),
            0.0,
            "round {round}"
        );
        let x = Item::from(&vec![1.0f64; 64 * 64]);
        let made = w
            .call(
                "apl_weights_from_f64",
                &[x, 4096.into(), 64.into(), 64.into(), "".into(), 0.into()],
            )
            .unwrap();
        assert_eq!(made[0].number(), 0.0);
        for mask in settled(2) {
            assert_eq!(mask & ALL, ALL, "{mask:x}");
        }
        // Close does this; )CLEAR erases without it, and the library's threads are alive then.
        if round % 2 == 0 || round == 99 {
            assert_eq!(w.call("apl_ffi_cleanup", &[]).unwrap()[0].number(), 0.0);
            settled(0);
        }
        for name in w.names() {
            assert!(w.erase(&name));
        }
        assert_eq!(w.call("apl_ffi_ready", &[]), Err(Event::Value));
    }
}

#[test]
fn what_is_not_there() {
    let mut w = Workspace::default();
    let missing = w.associate("f", "I4 %P|apl_ffi_ready", "/nowhere/libapl_ffi.so");
    assert_eq!(missing, Err(Event::File2));
    assert_eq!(
        w.associate("f", "I4 %P|apl_ffi_nothing", &library()),
        Err(Event::Value)
    );
    assert_eq!(
        w.associate("f", "I4 %P|apl_ffi_ready I3", &library()),
        Err(Event::Domain)
    );
    assert_eq!(w.call("f", &[]), Err(Event::Value));
}

/// The emulator is as strict as the interpreter: wrong items never reach the library.
#[test]
fn items_that_do_not_fit_the_declaration() {
    let _turn = turn();
    let w = workspace();
    let numbers = Item::from(&vec![1.0f64]);
    for wrong in [
        vec![],
        vec![Item::from("x")],
        vec![Item::from(1.5)],
        vec![Item::from(3e9)],
        vec![numbers.clone()],
    ] {
        let expected = if wrong.is_empty() {
            Event::Length
        } else {
            Event::Domain
        };
        assert_eq!(
            w.call("apl_weights_free", &wrong),
            Err(expected),
            "{wrong:?}"
        );
    }
    assert_eq!(w.call("apl_ffi_init", &[numbers]), Err(Event::Domain));
}

/// A path with a blank in it is quoted, and found.
#[test]
fn a_library_in_a_folder_with_a_blank() {
    let _turn = turn();
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("a folder");
    fs::create_dir_all(&folder).unwrap();
    let copy = folder.join("libapl_ffi.so");
    let _ = fs::remove_file(&copy);
    std::os::unix::fs::symlink(library(), &copy).unwrap();
    let mut w = Workspace::default();
    let (name, text, _) = namespace()
        .declarations()
        .into_iter()
        .find(|(name, ..)| name == "apl_ffi_abi_version")
        .unwrap();
    assert!(Declaration::parse(&text).is_ok());
    w.associate(&name, &text, copy.to_str().unwrap()).unwrap();
    assert_eq!(w.call(&name, &[]).unwrap(), [Item::from(1)]);
}
