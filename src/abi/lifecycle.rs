//! Life cycle, errors, and what the library says about itself.

use std::ffi::c_char;

use serde_json::{Value, json};

use super::args::{fill, text};
use super::guard::{guard, guard_or, guard_unrecorded};
use super::status::{self, APL_FFI_ABI_VERSION, APL_FFI_OK};
use super::{last_error, state, tables};
use crate::cpu::Isa;
use crate::runtime::{Config, Runtime};

/// Returns the version of the ABI that this library has; compare it with `APL_FFI_ABI_VERSION`.
///
/// Never initialises the library.
#[unsafe(no_mangle)]
pub extern "C" fn apl_ffi_abi_version() -> i32 {
    guard_or(APL_FFI_ABI_VERSION, || APL_FFI_ABI_VERSION)
}

/// Initialises the library with a configuration.
///
/// Optional: the first call that needs the library initialised does it with the defaults.
///
/// `config`: a JSON object; NULL, "" and "{}" are the defaults. Keys, all optional:
/// - `"backend"`: `"auto"` (default) uses a CUDA device if one is usable and the CPU otherwise,
///   without a message; `"cpu"` does not look for devices; `"cuda"` uses CUDA or fails with
///   ERR_BACKEND;
/// - `"device"`: the CUDA ordinal, 0 by default; or `"devices"`: an array of ordinals, among which
///   the layers of a model are shared in this order. Ignored on the CPU;
/// - `"threads"`: the number of threads, the calling one included, up to 1024; 0 (default) is the
///   number of processors that this process may use;
/// - `"isa"`: `"auto"` (default), `"scalar"`, `"avx2"` or `"avx512"`: restricts what the processor
///   supports;
/// - `"amx"`: true (default, or 1) or false (or 0): whether AMX may be used in addition to AVX-512,
///   where the processor and the system support it.
///
/// Where a key is absent, the environment variables APL_FFI_BACKEND, APL_FFI_THREADS, APL_FFI_ISA
/// and APL_FFI_AMX (1 or 0) supply its value. A configuration that resolves to the same values
/// again is OK.
///
/// On Linux, the library requests AMX for the process; this cannot be revoked. Signal frames grow
/// by 8 KiB on threads that have multiplied with AMX, and the system refuses alternate signal
/// stacks smaller than about 12 KiB (AT_MINSIGSTKSZ). If such a stack exists already, the library
/// does without AMX.
///
/// Returns: OK; ERR_ENCODING; ERR_CONFIG; ERR_UNSUPPORTED (an instruction set that the processor
/// lacks); ERR_BACKEND (CUDA is demanded and cannot be used; the message says why); ERR_MEMORY (a
/// thread cannot be started); ERR_STATE (already configured otherwise: call `apl_ffi_cleanup`
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

/// Frees every handle, ends every thread and releases the devices.
///
/// Waits for calls that are running in other threads. Handles from before never become valid again.
/// `apl_ffi_init` may follow. Not an error if the library is not initialised. Leaves the error
/// state alone.
///
/// Returns: OK.
#[unsafe(no_mangle)]
pub extern "C" fn apl_ffi_cleanup() -> i32 {
    guard_unrecorded(|| {
        state::cleanup();
        Ok(APL_FFI_OK)
    })
}

/// Returns 1 if the library is initialised, else 0.
///
/// Never initialises the library and leaves the error state alone.
#[unsafe(no_mangle)]
pub extern "C" fn apl_ffi_ready() -> i32 {
    guard_unrecorded(|| Ok(i32::from(state::if_initialised().is_some())))
}

/// Describes the library and what it has chosen, as a JSON object.
///
/// Keys: `version`; `abi`; `backend`; `backend_reason`; `isa`; `isa_available`; `amx` (whether AMX
/// is used); `threads`; `cuda`: null, or of the first device in use `ordinal`, `name`,
/// `compute_capability`, `memory_total`, `memory_free`, `driver` and `image` (what its kernels were
/// loaded from); `devices`: the same of every device in use; `handles`: the live ones by kind.
/// Before initialisation, `backend`, `backend_reason`, `isa`, `amx` and `threads` are null.
///
/// Handles that other threads make can lengthen the text between two calls: allow some room, or ask
/// again. Never initialises the library and leaves the error state alone.
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_LENGTH (`capacity` < 0);
/// ERR_NULL.
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

/// Returns the message of the latest failed call.
///
/// This is the latest failure of the calling thread or, if it has had none since its latest
/// success, of any thread. Failures of other threads are included because a `⎕NA` call marked `&`
/// runs in another system thread. The text is empty if nothing has failed.
///
/// The message names the function, the argument, and what was found and expected: "apl_matmul_q:
/// x_len is 63, expected cols = 64". Leaves the error state alone, so asking for the size first and
/// then for the text is safe.
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_LENGTH (`capacity` < 0);
/// ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_ffi_last_error(text: *mut c_char, capacity: i32) -> i32 {
    guard_unrecorded(|| {
        last_error::with_message(|message| {
            // SAFETY: the contract of `abi`.
            unsafe { fill("text", text, capacity, message) }
        })
    })
}

/// Returns the text of a status, for C: static, never NULL, even if `status` is not a status.
///
/// Never initialises the library and leaves the error state alone.
#[unsafe(no_mangle)]
pub extern "C" fn apl_ffi_status_text(status: i32) -> *const c_char {
    guard_or(c"".as_ptr(), || status::text(status).as_ptr())
}

/// Writes the text of a status to a buffer, for APL, which cannot use the pointer.
///
/// Never initialises the library and leaves the error state alone.
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_LENGTH (`capacity` < 0);
/// ERR_NULL.
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

/// Describes every function as JSON: its C prototype, its `⎕NA` declaration and its summary.
///
/// `{"abi":1, "version":"…", "functions":[{"name":"…", "c":"…", "na":"…", "doc":"…"},
/// …]}`, in the order of this header. In `na`, `%P` stands for the path of the library. Never
/// initialises the library and leaves the error state alone.
///
/// Returns: the length in bytes of the whole text, excluding the NUL; ERR_LENGTH (`capacity` < 0);
/// ERR_NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn apl_ffi_describe(json: *mut c_char, capacity: i32) -> i32 {
    guard_unrecorded(|| {
        let description = describe();
        // SAFETY: the contract of `abi`.
        unsafe { fill("json", json, capacity, &description) }
    })
}

/// A function of the committed header.
struct Function {
    name: &'static str,
    /// Its prototype.
    c: &'static str,
    /// Its `⎕NA` declaration, with `%P` for the path of the library.
    na: &'static str,
    /// The first paragraph of its comment.
    doc: &'static str,
}

fn describe() -> String {
    // `build.rs` reads the committed header, so the header and this description cannot disagree.
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
