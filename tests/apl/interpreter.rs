//! An emulator of `⎕NA`: associates, marshals, calls through libffi, puts results together, erases.
//!
//! What it takes from Dyalog's language reference:
//!
//! - A function has as many items in its argument as the declaration has types; with none it is niladic.
//! - An input array is copied, element by element converted to the declared type, to a buffer of exactly its size; a
//!   number that the type cannot hold is DOMAIN ERROR. Text becomes UTF-8 with a NUL.
//! - The item of an output array is the number of elements to allocate; that of a single output is not looked at.
//! - The result is the declared one, followed by every output in order; one item alone is disclosed.
//! - `&` runs in a system thread that belongs to the calling APL thread; everything else runs in the interpreter's own.
//! - The library is loaded by the first association with it and unloaded when the last is erased. A library that is not
//!   there is FILE ERROR 2, a function that is not there VALUE ERROR.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use libffi::middle::{Cif, CodePtr, Type as FfiType, arg};

use crate::declaration::{Declaration, Direction, Extent, Kind, Type};
use crate::guarded::Guarded;

/// An item of an argument or a result. APL has one kind of number as far as `⎕NA` is concerned.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Number(f64),
    Numbers(Vec<f64>),
    Text(String),
}

impl From<f64> for Item {
    fn from(n: f64) -> Item {
        Item::Number(n)
    }
}

impl From<i32> for Item {
    fn from(n: i32) -> Item {
        Item::Number(n.into())
    }
}

impl From<usize> for Item {
    fn from(n: usize) -> Item {
        Item::Number(n as f64)
    }
}

impl From<&str> for Item {
    fn from(text: &str) -> Item {
        Item::Text(text.to_owned())
    }
}

impl<T: Copy + Into<f64>> From<&[T]> for Item {
    fn from(numbers: &[T]) -> Item {
        Item::Numbers(numbers.iter().map(|&n| n.into()).collect())
    }
}

impl<T: Copy + Into<f64>> From<&Vec<T>> for Item {
    fn from(numbers: &Vec<T>) -> Item {
        numbers[..].into()
    }
}

impl Item {
    pub fn number(&self) -> f64 {
        match self {
            Item::Number(n) => *n,
            other => panic!("{other:?} is no number"),
        }
    }

    pub fn numbers(&self) -> &[f64] {
        match self {
            Item::Numbers(n) => n,
            other => panic!("{other:?} are no numbers"),
        }
    }

    pub fn text(&self) -> &str {
        match self {
            Item::Text(t) => t,
            other => panic!("{other:?} is no text"),
        }
    }
}

/// What APL signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Length,
    Value,
    Domain,
    File2,
}

/// A function as `⎕NA` made it. The library is open as long as it lives.
pub struct Function {
    pub declaration: Declaration,
    library: *mut c_void,
    code: *mut c_void,
}

// SAFETY: both pointers are the loader's, which is safe to use from any thread.
unsafe impl Send for Function {}
// SAFETY: as above; nothing is changed through a shared one.
unsafe impl Sync for Function {}

impl Function {
    pub fn associate(declaration: Declaration) -> Result<Function, Event> {
        let path = CString::new(declaration.library.as_str()).map_err(|_| Event::Domain)?;
        let name = CString::new(declaration.function.as_str()).map_err(|_| Event::Domain)?;
        // SAFETY: both texts end with NUL; the results are checked.
        unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            if library.is_null() {
                return Err(Event::File2);
            }
            let code = libc::dlsym(library, name.as_ptr());
            if code.is_null() {
                libc::dlclose(library);
                return Err(Event::Value);
            }
            Ok(Function {
                declaration,
                library,
                code,
            })
        }
    }

    /// Calls it in the thread that this is.
    fn call(&self, items: &[Item]) -> Result<Vec<Item>, Event> {
        let types = &self.declaration.arguments;
        if items.len() != types.len() {
            return Err(Event::Length);
        }
        let slots: Vec<Slot> = items
            .iter()
            .zip(types)
            .map(|(item, t)| Slot::fill(item, t))
            .collect::<Result<_, _>>()?;
        let cif = Cif::new(
            types.iter().map(ffi_type).collect::<Vec<_>>(),
            match self.declaration.result.map(|r| (r.kind, r.width)) {
                None => FfiType::void(),
                Some((Kind::Signed, 4)) => FfiType::i32(),
                Some((Kind::Pointer, _)) => FfiType::pointer(),
                Some(other) => panic!("no function here has the result {other:?}"),
            },
        );
        let arguments: Vec<_> = slots
            .iter()
            .map(|slot| match slot {
                Slot::I4(v) => arg(v),
                Slot::I8(v) => arg(v),
                Slot::Pointer(p, _) => arg(p),
            })
            .collect();
        // SAFETY: the types are those that the declaration has, which the tests hold against the header; the buffers
        // are as long as the lengths beside them say, or the test means to see that the library notices. A result
        // narrower than a register is widened to one, so that it takes 8 bytes.
        let result: i64 = unsafe { cif.call(CodePtr::from_ptr(self.code), &arguments) };

        let mut out = Vec::new();
        if let Some(r) = self.declaration.result {
            out.push(match r.kind {
                Kind::Signed => Item::Number(f64::from(result as i32)),
                _ => Item::Number(result as f64),
            });
        }
        for (slot, t) in slots.iter().zip(types) {
            if let Slot::Pointer(_, buffer) = slot {
                assert!(buffer.intact(), "something was written before a buffer");
                if t.comes_out() {
                    out.push(unmarshal(buffer.bytes(), t));
                }
            }
        }
        Ok(out)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        // SAFETY: opened by `associate`, closed once.
        unsafe { libc::dlclose(self.library) };
    }
}

/// An argument in C's form.
enum Slot {
    I4(i32),
    I8(i64),
    Pointer(*mut u8, Guarded),
}

impl Slot {
    fn fill(item: &Item, t: &Type) -> Result<Slot, Event> {
        let pointer = |buffer: Guarded| Slot::Pointer(buffer.pointer(), buffer);
        match (t.direction, t.extent) {
            (Direction::Value, _) => {
                let Item::Number(n) = item else {
                    return Err(Event::Domain);
                };
                let bytes = encode(*n, t)?;
                Ok(match t.width {
                    4 => Slot::I4(i32::from_ne_bytes(bytes.try_into().unwrap())),
                    _ => Slot::I8(i64::from_ne_bytes(bytes.try_into().unwrap())),
                })
            }
            (Direction::In, _) if t.kind == Kind::Utf8 => {
                let Item::Text(text) = item else {
                    return Err(Event::Domain);
                };
                let mut bytes = text.clone().into_bytes();
                bytes.push(0);
                Ok(pointer(Guarded::from_bytes(&bytes)))
            }
            (Direction::In, _) => {
                let Item::Numbers(numbers) = item else {
                    return Err(Event::Domain);
                };
                let mut bytes = Vec::with_capacity(numbers.len() * t.width);
                for &n in numbers {
                    bytes.extend(encode(n, t)?);
                }
                Ok(pointer(Guarded::from_bytes(&bytes)))
            }
            (Direction::Out, Extent::One) => Ok(pointer(Guarded::new(t.width))),
            (Direction::Out, Extent::Open) => match item {
                Item::Number(n) if *n >= 0.0 => Ok(pointer(Guarded::new(*n as usize * t.width))),
                _ => Err(Event::Domain),
            },
            (direction, extent) => panic!("{direction:?} {extent:?}: nothing here uses that"),
        }
    }
}

/// A number in its declared type.
fn encode(n: f64, t: &Type) -> Result<Vec<u8>, Event> {
    if t.kind == Kind::Float {
        return Ok(match t.width {
            4 => (n as f32).to_ne_bytes().to_vec(),
            _ => n.to_ne_bytes().to_vec(),
        });
    }
    let bits = t.width as i32 * 8;
    let (low, high) = match t.kind {
        Kind::Unsigned => (0.0, 2f64.powi(bits)),
        _ => (-2f64.powi(bits - 1), 2f64.powi(bits - 1)),
    };
    if n.fract() != 0.0 || n < low || n >= high {
        return Err(Event::Domain);
    }
    // Two's complement: the low bytes are right whatever the width.
    Ok((n as i128).to_le_bytes()[..t.width].to_vec())
}

fn unmarshal(bytes: &[u8], t: &Type) -> Item {
    if t.kind == Kind::Utf8 {
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        // A call that failed leaves the buffer as it was, which is no text at all.
        return Item::Text(String::from_utf8_lossy(&bytes[..end]).into_owned());
    }
    let numbers: Vec<f64> = bytes
        .chunks_exact(t.width)
        .map(|b| match (t.kind, t.width) {
            (Kind::Float, 4) => f32::from_ne_bytes(b.try_into().unwrap()).into(),
            (Kind::Float, 8) => f64::from_ne_bytes(b.try_into().unwrap()),
            (Kind::Signed, 4) => i32::from_ne_bytes(b.try_into().unwrap()).into(),
            (Kind::Signed, 1) => f64::from(b[0] as i8),
            (Kind::Unsigned, 1) => b[0].into(),
            // A 64-bit integer would come out as a decimal float: the library has none.
            other => panic!("{other:?} comes out of no function here"),
        })
        .collect();
    match t.extent {
        Extent::One => Item::Number(numbers[0]),
        _ => Item::Numbers(numbers),
    }
}

fn ffi_type(t: &Type) -> FfiType {
    match (t.direction, t.kind, t.width) {
        (Direction::Value, Kind::Signed, 4) => FfiType::i32(),
        (Direction::Value, Kind::Signed, 8) => FfiType::i64(),
        (Direction::Value, ..) => panic!("{t:?}: nothing here uses that"),
        _ => FfiType::pointer(),
    }
}

/// A workspace: names with the functions that they are associated with. Its own system thread is the one that calls.
#[derive(Default)]
pub struct Workspace {
    functions: HashMap<String, Arc<Function>>,
}

impl Workspace {
    /// `name ⎕NA declaration`, `%P` being `library`.
    pub fn associate(&mut self, name: &str, declaration: &str, library: &str) -> Result<(), Event> {
        let quoted = format!("\"{library}\"");
        let declaration =
            Declaration::parse(&declaration.replace("%P", &quoted)).map_err(|_| Event::Domain)?;
        let function = Function::associate(declaration)?;
        self.functions.insert(name.to_owned(), Arc::new(function));
        Ok(())
    }

    /// `⎕EX name`.
    pub fn erase(&mut self, name: &str) -> bool {
        self.functions.remove(name).is_some()
    }

    pub fn names(&self) -> Vec<String> {
        self.functions.keys().cloned().collect()
    }

    /// Calls in the interpreter's own system thread, which is also where thread 0 runs what is marked `&`.
    pub fn call(&self, name: &str, items: &[Item]) -> Result<Vec<Item>, Event> {
        self.functions.get(name).ok_or(Event::Value)?.call(items)
    }

    /// Calls in the system thread of an APL thread. Only what is marked `&` may.
    pub fn call_in(
        &self,
        thread: &AplThread,
        name: &str,
        items: Vec<Item>,
    ) -> Result<Vec<Item>, Event> {
        let function = Arc::clone(self.functions.get(name).ok_or(Event::Value)?);
        assert!(
            function.declaration.threaded,
            "{name} has no & and runs in thread 0"
        );
        thread.run(move || function.call(&items))
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// An APL thread with the system thread that runs its `&` calls, all of them in the same one.
pub struct AplThread {
    jobs: Option<Sender<Job>>,
    system: Option<JoinHandle<()>>,
}

impl AplThread {
    pub fn new() -> AplThread {
        let (jobs, inbox) = channel::<Job>();
        let system = thread::spawn(move || inbox.into_iter().for_each(|job| job()));
        AplThread {
            jobs: Some(jobs),
            system: Some(system),
        }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, receive) = channel();
        let job = Box::new(move || send.send(job()).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        receive.recv().expect("the call came back")
    }
}

impl Drop for AplThread {
    fn drop(&mut self) {
        self.jobs = None;
        let ended = self.system.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))));
    }
}
