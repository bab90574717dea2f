//! What a product costs through `⎕NA`: the marshalling of an interpreter around a call by libffi, with a 4096-vector in and out,
//! beside Python's ctypes doing the same, in turn.
//!
//! `cargo bench --bench na_latency`; `--rows`, `--cols` and `--bits` choose the matrix. Under `cargo test` it makes one round
//! with a small one. One thread, so that the product itself does not hide behind others.
//!
//! What is marshalled: an interpreter holds arrays of float64 (⎕DR 645). F8 copies them to a buffer and copies the result to
//! a new array; F4 converts each element both ways. The result is a vector of the status and the array.

#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
#[path = "../tests/apl/declaration.rs"]
mod declaration;

use std::env;
use std::ffi::{CString, c_void};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use declaration::{Declaration, Direction, Extent};
use libffi::middle::{Arg, Cif, CodePtr, Type as FfiType, arg};

/// An item of APL's argument.
enum Item<'a> {
    Number(i64),
    Floats(&'a [f64]),
    Text(&'a str),
}

/// An item of the result.
enum Out {
    Number(i32),
    Floats(Vec<f64>),
}

/// A function as `⎕NA` associates it: what can be prepared once is.
struct Function {
    declaration: Declaration,
    cif: Cif,
    code: CodePtr,
}

/// An argument in C's form; the pointers lead to the buffers that follow them.
enum Slot {
    I4(i32),
    I8(i64),
    Bytes(*mut u8, #[allow(dead_code, reason = "kept alive")] Vec<u8>),
    F4(*mut f32, Vec<f32>),
    F8(*mut f64, Vec<f64>),
}

impl Function {
    fn associate(text: &str, library: *mut c_void) -> Function {
        let declaration = Declaration::parse(text).unwrap();
        let name = CString::new(declaration.function.as_str()).unwrap();
        // SAFETY: `library` is open, and the name ends with NUL.
        let code = unsafe { libc::dlsym(library, name.as_ptr()) };
        assert!(!code.is_null(), "{text}");
        let types = declaration
            .arguments
            .iter()
            .map(|t| match (t.direction, t.width) {
                (Direction::Value, 4) => FfiType::i32(),
                (Direction::Value, _) => FfiType::i64(),
                _ => FfiType::pointer(),
            });
        Function {
            cif: Cif::new(types.collect::<Vec<_>>(), FfiType::i32()),
            code: CodePtr::from_ptr(code),
            declaration,
        }
    }

    fn call(&self, items: &[Item]) -> Vec<Out> {
        let slots: Vec<Slot> = items
            .iter()
            .zip(&self.declaration.arguments)
            .map(|(item, t)| match (item, t.direction, t.extent, t.width) {
                (Item::Number(n), Direction::Value, _, 4) => Slot::I4(*n as i32),
                (Item::Number(n), Direction::Value, ..) => Slot::I8(*n),
                (Item::Number(n), Direction::Out, Extent::Open, 4) => f4(vec![0.0; *n as usize]),
                (Item::Number(n), Direction::Out, Extent::Open, _) => f8(vec![0.0; *n as usize]),
                (Item::Number(_), Direction::Out, ..) => bytes(vec![0; 4]),
                (Item::Floats(x), _, _, 4) => f4(x.iter().map(|&x| x as f32).collect()),
                (Item::Floats(x), ..) => f8(x.to_vec()),
                (Item::Text(text), ..) => bytes([text.as_bytes(), b"\0"].concat()),
                _ => panic!("{t:?}"),
            })
            .collect();
        let arguments: Vec<Arg> = slots
            .iter()
            .map(|slot| match slot {
                Slot::I4(v) => arg(v),
                Slot::I8(v) => arg(v),
                Slot::Bytes(p, _) => arg(p),
                Slot::F4(p, _) => arg(p),
                Slot::F8(p, _) => arg(p),
            })
            .collect();
        // SAFETY: the declarations below are those of the namespace, which the tests hold against the header, and the
        // buffers have the lengths that the items say. An int32 is widened to a register.
        let status: i64 = unsafe { self.cif.call(self.code, &arguments) };
        let mut result = vec![Out::Number(status as i32)];
        for (slot, t) in slots.into_iter().zip(&self.declaration.arguments) {
            if t.direction != Direction::Out {
                continue;
            }
            result.push(match slot {
                Slot::F4(_, y) => Out::Floats(y.iter().map(|&y| y.into()).collect()),
                Slot::F8(_, y) => Out::Floats(y.to_vec()),
                Slot::Bytes(_, b) => Out::Number(i32::from_ne_bytes(b.try_into().unwrap())),
                Slot::I4(_) | Slot::I8(_) => panic!("{t:?}"),
            });
        }
        result
    }
}

fn bytes(mut b: Vec<u8>) -> Slot {
    Slot::Bytes(b.as_mut_ptr(), b)
}

fn f4(mut x: Vec<f32>) -> Slot {
    Slot::F4(x.as_mut_ptr(), x)
}

fn f8(mut x: Vec<f64>) -> Slot {
    Slot::F8(x.as_mut_ptr(), x)
}

/// The median nanoseconds of a call.
fn median(calls: usize, mut call: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..calls)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_nanos() as f64
        })
        .collect();
    middle(&mut times)
}

fn middle(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn option(name: &str, default: usize) -> usize {
    let arguments: Vec<String> = env::args().collect();
    let given = arguments
        .iter()
        .position(|a| a == name)
        .map(|i| &arguments[i + 1]);
    given.map_or(default, |v| {
        v.parse()
            .unwrap_or_else(|_| panic!("{name} {v}: a number is expected"))
    })
}

/// The library that cargo built beside this program.
fn library() -> String {
    let path = env::current_exe().unwrap().with_file_name("libapl_ffi.so");
    path.to_str().unwrap().to_owned()
}

fn main() {
    let benching = env::args().any(|a| a == "--bench");
    let (side, calls, rounds) = if benching {
        (4096, 200, 21)
    } else {
        (32, 3, 1)
    };
    let (rows, cols, bits) = (
        option("--rows", side),
        option("--cols", side),
        option("--bits", 4),
    );

    let path = CString::new(library()).unwrap();
    // SAFETY: the path ends with NUL; the library stays open to the end.
    let so = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!so.is_null(), "{} cannot be loaded", library());
    let init = Function::associate("I4 lib|apl_ffi_init <0UTF8[]", so);
    assert!(matches!(
        init.call(&[Item::Text(r#"{"threads":1}"#)])[0],
        Out::Number(0)
    ));
    let w: Vec<f64> = (0..rows * cols)
        .map(|i| (i * 37 % 101) as f64 / 64.0 - 0.78)
        .collect();
    let make = Function::associate(
        "I4 lib|apl_weights_from_f64 <F8[] I8 I8 I8 <0UTF8[] >I4",
        so,
    );
    let options = format!("{{\"bits\":{bits}}}");
    let n = |n: usize| Item::Number(n as i64);
    let made = make.call(&[
        Item::Floats(&w),
        n(rows * cols),
        n(rows),
        n(cols),
        Item::Text(&options),
        n(0),
    ]);
    let [Out::Number(0), Out::Number(handle)] = made[..] else {
        panic!("no handle of {rows} x {cols} weights");
    };
    let x: Vec<f64> = (0..cols)
        .map(|i| (i * 53 % 97) as f64 / 32.0 - 1.5)
        .collect();
    let na8 = Function::associate("I4 lib|apl_matmul_f64 I4 <F8[] I8 >F8[] I8 I8", so);
    let na4 = Function::associate("I4 lib|apl_matmul I4 <F4[] I8 >F4[] I8 I8", so);
    let items = || {
        [
            Item::Number(handle.into()),
            Item::Floats(&x),
            n(cols),
            n(rows),
            n(rows),
            n(1),
        ]
    };
    let same = |f: &Function| match &f.call(&items())[..] {
        [Out::Number(0), Out::Floats(y)] => y.clone(),
        _ => panic!("{} failed", f.declaration.function),
    };
    assert_eq!(same(&na8), same(&na4));

    // The product alone, from and to buffers that are there.
    // SAFETY: these are the prototypes of the header; C's integers are the fixed-width ones.
    let (plain8, plain4) = unsafe {
        let f = |name: &std::ffi::CStr| libc::dlsym(so, name.as_ptr());
        (
            std::mem::transmute::<
                *mut c_void,
                extern "C" fn(i32, *const f64, i64, *mut f64, i64, i64) -> i32,
            >(f(c"apl_matmul_f64")),
            std::mem::transmute::<
                *mut c_void,
                extern "C" fn(i32, *const f32, i64, *mut f32, i64, i64) -> i32,
            >(f(c"apl_matmul")),
        )
    };
    let x4: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let (mut y8, mut y4) = (vec![0f64; rows], vec![0f32; rows]);
    let (cols_len, rows_len) = (cols as i64, rows as i64);

    let mut python = Python::start(rows, cols, bits, calls);
    let mut measured: [Vec<f64>; 7] = Default::default();
    for _ in 0..rounds {
        measured[0].push(median(calls, || {
            assert_eq!(
                plain8(handle, x.as_ptr(), cols_len, y8.as_mut_ptr(), rows_len, 1),
                0
            );
        }));
        measured[1].push(median(calls, || {
            assert_eq!(
                plain4(handle, x4.as_ptr(), cols_len, y4.as_mut_ptr(), rows_len, 1),
                0
            );
        }));
        measured[2].push(median(calls, || drop(black_box(na8.call(&items())))));
        measured[3].push(median(calls, || drop(black_box(na4.call(&items())))));
        if let Some(python) = &mut python {
            for (i, ns) in python.round().into_iter().enumerate() {
                measured[4 + i].push(ns);
            }
        }
    }
    let us: Vec<f64> = measured
        .iter_mut()
        .map(|m| {
            if m.is_empty() {
                f64::NAN
            } else {
                middle(m) / 1e3
            }
        })
        .collect();
    println!(
        "{rows} x {cols}, {bits} bits, one vector, one thread: median of {rounds} rounds of {calls} calls, us"
    );
    println!("{:44} {:>9} {:>22}", "", "a call", "of it, marshalling");
    for (what, at, alone) in [
        ("⎕NA-like, F8 in and out", 2, 0),
        ("⎕NA-like, F4 in and out", 3, 1),
    ] {
        let share = 100.0 * (us[at] - us[alone]) / us[at];
        println!(
            "{what:44} {:9.2} {:13.2} ({share:4.1}%)",
            us[at],
            us[at] - us[alone]
        );
    }
    for (what, at) in [
        ("ctypes, lists in and out", 4),
        ("ctypes, arrays copied in and out", 5),
        ("ctypes, arrays in place, nothing copied", 6),
    ] {
        let share = 100.0 * (us[at] - us[0]) / us[at];
        println!(
            "{what:44} {:9.2} {:13.2} ({share:4.1}%)",
            us[at],
            us[at] - us[0]
        );
    }
    println!("{:44} {:9.2}", "the product alone, float64", us[0]);
    println!("{:44} {:9.2}", "the product alone, float32", us[1]);
}

/// The Python process that takes turns with this one.
struct Python {
    process: Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Python {
    fn start(rows: usize, cols: usize, bits: usize, calls: usize) -> Option<Python> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/na/ctypes_latency.py");
        let started = Command::new("python3")
            .arg(script)
            .arg(library())
            .args([rows, cols, bits, calls].map(|n| n.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        match started {
            Ok(mut process) => {
                let answers = BufReader::new(process.stdout.take().unwrap()).lines();
                Some(Python { process, answers })
            }
            Err(e) => {
                println!("python3 is not here ({e}): nothing to compare with");
                None
            }
        }
    }

    /// Median nanoseconds of each form.
    fn round(&mut self) -> [f64; 3] {
        writeln!(self.process.stdin.as_mut().unwrap(), "round").expect("Python listens");
        let answer = self.answers.next().expect("Python answers").unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        ["lists", "arrays", "views"].map(|form| answer[form].as_f64().unwrap())
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
