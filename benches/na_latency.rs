//! The cost of a call from C, through `⎕NA` and from Python's ctypes: the same product with a
//! vector of 4096 elements in and out, in alternating runs. The `⎕NA` path reproduces the
//! marshalling of an interpreter around a call by libffi.
//!
//! `cargo bench --bench na_latency`; `--rows`, `--cols` and `--bits` choose the matrix,
//! `--json FILE` saves the table. Under `cargo test` it makes one round with a small matrix. It
//! uses one thread, so that the time of the product is not hidden by other threads.
//!
//! What is marshalled: an interpreter holds arrays of float64 (⎕DR 645). F8 copies them to a buffer
//! and copies the result to a new array; F4 converts each element both ways. The result is a vector
//! of the status and the array.
//!
//! Each form is called with three handles: one for float32 activations, one for int8 activations,
//! and an invalid one, which is rejected at once: that call costs only the way there and back.

#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
#[path = "../tests/apl/declaration.rs"]
mod declaration;

use std::env;
use std::ffi::{CString, c_void};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use declaration::{Declaration, Direction, Extent};
use libffi::middle::{Arg, Cif, CodePtr, Type as FfiType, arg};
use serde_json::{Value, json};

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

/// A function as associated by `⎕NA`: whatever can be prepared once is.
struct Function {
    declaration: Declaration,
    cif: Cif,
    code: CodePtr,
}

/// An argument in C's form; the pointers refer to the buffers that follow them.
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
        // SAFETY: the declarations below are those of the namespace, which the tests compare with
        // the header, and the buffers have the lengths that the items state. An int32 is widened to
        // a register.
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

/// The median nanoseconds per call.
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

fn text_option(name: &str) -> Option<String> {
    let mut arguments = env::args().skip_while(|a| a != name).skip(1);
    arguments.next()
}

fn option(name: &str, default: usize) -> usize {
    text_option(name).map_or(default, |v| {
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
    let n = |n: usize| Item::Number(n as i64);
    let handle = |activations: &str| {
        let options = format!(r#"{{"bits":{bits},"activations":"{activations}"}}"#);
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
        handle
    };
    let handles = [handle("f32"), handle("int8"), 0];
    let x: Vec<f64> = (0..cols)
        .map(|i| (i * 53 % 97) as f64 / 32.0 - 1.5)
        .collect();
    let na8 = Function::associate("I4 lib|apl_matmul_f64 I4 <F8[] I8 >F8[] I8 I8", so);
    let na4 = Function::associate("I4 lib|apl_matmul I4 <F4[] I8 >F4[] I8 I8", so);
    let items = |handle: i32| {
        [
            Item::Number(handle.into()),
            Item::Floats(&x),
            n(cols),
            n(rows),
            n(rows),
            n(1),
        ]
    };
    let product = |f: &Function, handle: i32| match &f.call(&items(handle))[..] {
        [Out::Number(0), Out::Floats(y)] => y.clone(),
        _ => panic!("{} failed", f.declaration.function),
    };
    for handle in [handles[0], handles[1]] {
        assert_eq!(product(&na8, handle), product(&na4, handle));
    }

    let shape = [rows, cols, bits, calls];
    let mut others = [Other::c(shape), Other::python(shape)];
    let mut measured: Vec<(&str, [Vec<f64>; 3])> = Vec::new();
    let mut note = |form: &'static str, times: [f64; 3]| {
        let i = measured.iter().position(|(name, _)| *name == form);
        let i = i.unwrap_or_else(|| {
            measured.push((form, Default::default()));
            measured.len() - 1
        });
        for (all, time) in measured[i].1.iter_mut().zip(times) {
            all.push(time);
        }
    };
    for _ in 0..rounds {
        let [c, python] = &mut others;
        c.iter_mut().for_each(|c| c.round(&mut note));
        for (form, f) in [
            ("⎕NA-like, F8 in and out", &na8),
            ("⎕NA-like, F4 in and out", &na4),
        ] {
            let times = handles.map(|h| median(calls, || drop(black_box(f.call(&items(h))))));
            note(form, times);
        }
        python.iter_mut().for_each(|python| python.round(&mut note));
    }
    println!(
        "{rows} x {cols}, {bits} bits, one vector, one thread: median of {rounds} rounds of {calls} calls, us"
    );
    println!(
        "{:42} {:>9} {:>9} {:>20} {:>16}",
        "", "float32", "int8", "without the product", "share, f32, int8"
    );
    let mut table = Vec::new();
    for (form, mut times) in measured {
        let [f32, int8, alone] = times.each_mut().map(|t| middle(t) / 1e3);
        let [of_f32, of_int8] = [f32, int8].map(|t| 100.0 * alone / t);
        println!("{form:42} {f32:9.2} {int8:9.2} {alone:20.2} {of_f32:7.1}% {of_int8:7.1}%");
        table.push(json!({
            "form": form,
            "f32_us": f32,
            "int8_us": int8,
            "without_product_us": alone,
            "shares": format!("{of_f32:.1}%, {of_int8:.1}%"),
        }));
    }
    if let Some(path) = text_option("--json") {
        // As tools/render_results.py reads it.
        let report = json!({
            "machine": processor(),
            "conditions": format!(
                "{rows} x {cols}, {bits} bits, one vector, one thread; medians of {rounds} rounds of {calls} calls in turn"
            ),
            "command": "make latency",
            "columns": [
                ["", "form"],
                ["float32 activations, µs", "f32_us"],
                ["int8 activations, µs", "int8_us"],
                ["without the product, µs", "without_product_us"],
                ["its share of both", "shares"],
            ],
            "rows": table,
        });
        std::fs::write(&path, format!("{report:#}\n"))
            .unwrap_or_else(|e| panic!("{path} cannot be written: {e}"));
    }
}

/// The system's name for the processor.
fn processor() -> String {
    let said = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = said.lines().find_map(|l| l.strip_prefix("model name"));
    name.map_or("unknown", |n| n.trim_start_matches([' ', '\t', ':']))
        .to_owned()
}

/// Another process that alternates with this one: it runs a round for each line that it reads.
struct Other {
    process: Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
    /// The names of its forms in its answers and in the table.
    forms: &'static [(&'static str, &'static str)],
}

impl Other {
    fn python(shape: [usize; 4]) -> Option<Other> {
        let mut command = Command::new("python3");
        command.arg(bench_na("ctypes_latency.py"));
        let forms = &[
            ("lists", "ctypes, lists in and out"),
            ("arrays", "ctypes, arrays copied in and out"),
            ("views", "ctypes, arrays in place, nothing copied"),
        ];
        Other::start(command, shape, forms)
    }

    /// Compiled here, by `CC` or `cc`.
    fn c(shape: [usize; 4]) -> Option<Other> {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c_latency");
        let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let compiled = Command::new(&compiler)
            .args(["-O2", "-std=c99", "-Wall", "-Wextra", "-Werror"])
            .arg(bench_na("c_latency.c"))
            .arg("-o")
            .arg(&program)
            .arg("-ldl")
            .status();
        match compiled {
            Ok(status) => assert!(status.success(), "{compiler} does not compile c_latency.c"),
            Err(e) => {
                println!("{compiler} is not here ({e}): no calls from C");
                return None;
            }
        }
        let forms = &[
            ("doubles", "C, double in and out"),
            ("floats", "C, float in and out"),
        ];
        Other::start(Command::new(program), shape, forms)
    }

    fn start(
        mut command: Command,
        shape: [usize; 4],
        forms: &'static [(&'static str, &'static str)],
    ) -> Option<Other> {
        let started = command
            .arg(library())
            .args(shape.map(|n| n.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        match started {
            Ok(mut process) => {
                let answers = BufReader::new(process.stdout.take().unwrap()).lines();
                Some(Other {
                    process,
                    answers,
                    forms,
                })
            }
            Err(e) => {
                println!("{command:?} cannot be started ({e}): nothing to compare with");
                None
            }
        }
    }

    /// Reports the median nanoseconds of each form with each handle.
    fn round(&mut self, note: &mut dyn FnMut(&'static str, [f64; 3])) {
        writeln!(self.process.stdin.as_mut().unwrap(), "round").expect("it listens");
        let answer = self.answers.next().expect("it answers").unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        for (key, form) in self.forms {
            note(
                form,
                std::array::from_fn(|i| answer[key][i].as_f64().unwrap()),
            );
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It ends at the end of its input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn bench_na(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("bench/na")
        .join(name)
}
