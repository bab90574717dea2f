//! Life cycle, errors, and what the library says about itself.

use std::ffi::c_char;

use serde_json::{Value, json};

use super::args::{fill, text};
use super::guard::{guard, guard_or, guard_unrecorded};
use super::status::{self, APL_FFI_ABI_VERSION, APL_FFI_OK};
use super::{last_error, state, tables};
use crate::cpu::Isa;
use crate::runtime::{Config, Runtime};

/// The version of the ABI that this library has; compare it with `APL_FFI_ABI_VERSION`.
///
/// Never initialises the library.
#[unsafe(no_mangle)]
pub extern "C" fn apl_ffi_abi_version() -> i32 {
    guard_or(APL_FFI_ABI_VERSION, || APL_FFI_ABI_VERSION)
}

/// Configures the library; without it the first call that needs to does so with the defaults.
///
/// `config`: a JSON object; NULL, "" and "{}" are the defaults. Keys, all optional:
/// - `"backend"`: `"auto"` (default: a CUDA device if there is one that will do, else the CPU without a word),
///   `"cpu"` or `"cuda"` (or ERR_BACKEND);
/// - `"device"`: the CUDA ordinal, 0 by default; or `"devices"`: an array of ordinals, among which the layers of
///   a model are shared in this order;
/// - `"threads"`: 0 (default) for the processors that this process may use, or a count;
/// - `"isa"`: `"auto"` (default), `"scalar"`, `"avx2"` or `"avx512"`: may lower what the processor has;
/// - `"amx"`: true (default, or 1) or false (or 0): whether AMX may be used beside AVX-512, where the processor has it and
///   the system agrees. On Linux the process is then let use it for good: frames of signals grow by 8 KiB on the threads that
///   multiplied with it, and alternative signal stacks of less than about 12 KiB (AT_MINSIGSTKSZ) are refused; where there is
///   such a stack already, the library does without AMX.
///
/// Where a key is absent, the environment variables APL_FFI_BACKEND, APL_FFI_THREADS, APL_FFI_ISA and APL_FFI_AMX
/// (1 or 0) say the same.
/// A configuration that resolves to the same values again is OK.
///
/// Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_UNSUPPORTED (an instruction set the processor lacks); ERR_BACKEND
/// (CUDA is demanded and cannot be used; the message has the reason); ERR_MEMORY (a thread is refused); ERR_STATE (configured otherwise: `apl_ffi_cleanup` comes
/// first).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_ffi_init(config: *const c_char) -> i32 {
    guard("apl_ffi_init", || {
        // SAFETY: the contract of `abi`.
        let config = unsafe { text("config", config)? };
        state::init(Config::from_json(config.unwrap_or_default())?)?;
        Ok(APL_FFI_OK)
    })
}

/// Frees every handle, ends every thread and lets the devices go; `apl_ffi_init` may follow again.
///
/// Waits for the calls that run in other threads. Handles from before never become valid again. It is no error
/// if the library was not initialised. Leaves the error state alone.
///
/// Returns: OK.
#[unsafe(no_mangle)]
pub extern "C" fn apl_ffi_cleanup() -> i32 {
    guard_unrecorded(|| {
        state::cleanup();
        Ok(APL_FFI_OK)
    })
}

/// 1 once the library is initialised, else 0.
///
/// Never initialises the library and leaves the error state alone.
#[unsafe(no_mangle)]
pub extern "C" fn apl_ffi_ready() -> i32 {
    guard_unrecorded(|| Ok(i32::from(state::if_initialised().is_some())))
}

/// What the library is and has chosen, as a JSON object.
///
/// Keys: `version`, `abi`, `backend`, `backend_reason`, `isa`, `isa_available`, `amx` (whether it is used), `threads`, `cuda` (null, or of
/// the device `name`, `compute_capability`, `memory_total`, `memory_free`, `driver`, and `image`, what its kernels
/// were loaded from), `devices` (the same and `ordinal` of every device in use, of which `cuda` is the first),
/// `handles` (live ones by kind). Before initialisation `backend`, `backend_reason`, `isa`, `amx` and `threads` are null.
/// Handles of other threads may lengthen the text between two calls: give room to spare, or ask again. Never
/// initialises the library and leaves the error state alone.
///
/// Returns: the bytes that the whole text needs without the NUL; ERR_LENGTH (`capacity` < 0); ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_ffi_info(json: *mut c_char, capacity: i32) -> i32 {
    guard_unrecorded(|| {
        let info = info();
        // SAFETY: the contract of `abi`.
        unsafe { fill("json", json, capacity, &info) }
    })
}

fn info() -> String {
    let held = state::if_initialised();
    let runtime = held.as_deref();
    let isa_available: Vec<&str> = Isa::ALL
        .into_iter()
        .filter(|isa| isa.available())
        .map(Isa::name)
        .collect();
    let devices: Vec<Value> = runtime
        .map_or(&[][..], Runtime::gpus)
        .iter()
        .map(|gpu| gpu.device().describe())
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi": APL_FFI_ABI_VERSION,
        "backend": runtime.map(|rt| rt.resolved().backend().name()),
        "backend_reason": runtime.map(|rt| &rt.resolved().reason),
        "isa": runtime.map(|rt| rt.isa().name()),
        "isa_available": isa_available,
        "amx": runtime.map(Runtime::amx),
        "threads": runtime.map(|rt| rt.pool().threads()),
        "cuda": devices.first(),
        "devices": devices,
        "handles": {"weights": tables::WEIGHTS.live(), "models": tables::MODELS.live(), "sessions": tables::SESSIONS.live()},
    })
    .to_string()
}

/// The message of this thread's latest failed call or, where it had none since its latest success, of the
/// latest in the process.
///
/// It names the function, the argument, and what was expected and found: "apl_matmul_q: x_len is 63, expected
/// cols = 64". It is empty if nothing failed. The other threads count because a `⎕NA` call marked `&` runs in
/// another system thread. Leaves the error state alone, so asking for the size and then for the text is safe.
///
/// Returns: the bytes that the whole text needs without the NUL; ERR_LENGTH (`capacity` < 0); ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_ffi_last_error(text: *mut c_char, capacity: i32) -> i32 {
    guard_unrecorded(|| {
        last_error::with_message(|message| {
            // SAFETY: the contract of `abi`.
            unsafe { fill("text", text, capacity, message) }
        })
    })
}

/// The text of a status: static, never NULL, also for a number that is no status. For C.
///
/// Never initialises the library and leaves the error state alone.
#[unsafe(no_mangle)]
pub extern "C" fn apl_ffi_status_text(status: i32) -> *const c_char {
    guard_or(c"".as_ptr(), || status::text(status).as_ptr())
}

/// The text of a status, written to a buffer. For APL, which has no use for a pointer.
///
/// Never initialises the library and leaves the error state alone.
///
/// Returns: the bytes that the whole text needs without the NUL; ERR_LENGTH (`capacity` < 0); ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_ffi_status_message(
    status: i32,
    text: *mut c_char,
    capacity: i32,
) -> i32 {
    guard_unrecorded(|| {
        let message = status::text(status).to_string_lossy();
        // SAFETY: the contract of `abi`.
        unsafe { fill("text", text, capacity, &message) }
    })
}

/// Every function of this library as JSON: its C prototype, its `⎕NA` declaration and one line of
/// documentation.
///
/// `{"abi":1, "version":"…", "functions":[{"name":"…", "c":"…", "na":"…", "doc":"…"}, …]}`, in the order of
/// this header. In `na`, `%P` stands for the path of the library. Never initialises the library and leaves the
/// error state alone.
///
/// Returns: the bytes that the whole text needs without the NUL; ERR_LENGTH (`capacity` < 0); ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_ffi_describe(json: *mut c_char, capacity: i32) -> i32 {
    guard_unrecorded(|| {
        let description = describe();
        // SAFETY: the contract of `abi`.
        unsafe { fill("json", json, capacity, &description) }
    })
}

/// A function as the committed header has it.
struct Function {
    name: &'static str,
    /// The prototype.
    c: &'static str,
    /// The `⎕NA` declaration, `%P` for the path of the library.
    na: &'static str,
    /// The first paragraph of its comment.
    doc: &'static str,
}

fn describe() -> String {
    // `build.rs` reads the committed header, so header, declarations and this text cannot disagree.
    const FUNCTIONS: &[Function] = include!(concat!(env!("OUT_DIR"), "/functions.rs"));
    let functions: Vec<Value> = FUNCTIONS
        .iter()
        .map(|f| json!({"name": f.name, "c": f.c, "na": f.na, "doc": f.doc}))
        .collect();
    json!({
        "abi": APL_FFI_ABI_VERSION,
        "version": env!("CARGO_PKG_VERSION"),
        "functions": functions,
    })
    .to_string()
}
