//! Is there a usable driver?
//!
//! cudarc panics if the library or a symbol is missing, and reads an unknown status as an
//! enumeration. The driver is therefore probed first, without cudarc: it is opened with every
//! import bound at once (otherwise an import that cannot be bound would end the process at its
//! first call), every symbol that will be used is looked up, and the three calls that tell whether
//! it works are made with plain integers.

/// The driver that was found.
#[derive(Debug)]
pub(super) struct Driver {
    /// The CUDA version that it supports: 1000 times the major number plus 10 times the minor one.
    pub version: i32,
    /// The number of devices, at least 1.
    pub devices: i32,
}

/// The oldest driver that accepts the embedded images: 12.0, which is R525.
#[cfg(unix)]
pub(super) const OLDEST: i32 = 12000;

/// Every symbol of the driver that this backend calls, as cudarc spells it.
#[cfg(unix)]
const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// Probes the driver; an error is the reason why it cannot be used, as a sentence.
#[cfg(unix)]
pub(super) fn look() -> Result<Driver, String> {
    use std::ffi::{CStr, c_char, c_int, c_uint};

    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    const NAME: &str = "libcuda.so.1";
    /// A function of the driver.
    fn symbol<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
        // SAFETY: the type is that of the driver's manual, as given by the callers below; the
        // library stays open (see `forget`).
        unsafe { library.get::<F>(name.as_bytes()) }
            .map(|f| *f)
            .map_err(|_| format!("the CUDA driver {NAME} has no {name}"))
    }

    // SAFETY: loading runs the initialisers of the library that the system, or the user's
    // LD_LIBRARY_PATH, provides as the CUDA driver.
    let library = unsafe { Library::open(Some(NAME), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|e| format!("no CUDA driver: {}", said(&e)))?;
    for name in SYMBOLS {
        symbol::<unsafe extern "C" fn()>(&library, name)?;
    }
    type Words = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
    type Number = unsafe extern "C" fn(*mut c_int) -> c_int;
    let words = symbol::<Words>(&library, "cuGetErrorString")?;
    let check = |status: c_int, what: &str| {
        if status == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: as in the manual: a status, and a place for the address of its text, which is
        // static or NULL.
        let known = unsafe { words(status, &mut text) } == 0 && !text.is_null();
        let text = match known {
            // SAFETY: the driver returned the address of a text.
            true => unsafe { CStr::from_ptr(text) }.to_string_lossy(),
            false => "an unknown error".into(),
        };
        Err(format!(
            "the CUDA driver does not work: {what} gives {status}, {text}"
        ))
    };
    let number = |name: &str| {
        let mut value = 0;
        let ask = symbol::<Number>(&library, name)?;
        // SAFETY: as in the manual: a place for a number.
        check(unsafe { ask(&mut value) }, name)?;
        Ok::<i32, String>(value)
    };
    let init = symbol::<unsafe extern "C" fn(c_uint) -> c_int>(&library, "cuInit")?;
    // SAFETY: as in the manual: no flags.
    check(unsafe { init(0) }, "cuInit")?;
    let version = number("cuDriverGetVersion")?;
    if version < OLDEST {
        return Err(format!(
            "the CUDA driver serves CUDA {}.{}, expected 12.0 or newer",
            version / 1000,
            version % 1000 / 10
        ));
    }
    let devices = number("cuDeviceGetCount")?;
    if devices < 1 {
        return Err("the CUDA driver sees no device".to_owned());
    }
    let ours: usize = init as usize;
    // The driver has started and may have threads, so it is never unloaded.
    std::mem::forget(library);
    same_library(ours)?;
    Ok(Driver { version, devices })
}

/// cudarc looks for `libcuda.so` before `libcuda.so.1`; a toolkit's stub with that name would be a
/// different library.
#[cfg(unix)]
fn same_library(init: usize) -> Result<(), String> {
    // SAFETY: opens a library by the driver's names, one of which is already loaded.
    let theirs = unsafe { cudarc::driver::sys::culib().get::<unsafe extern "C" fn()>(b"cuInit") };
    match theirs {
        Ok(theirs) if *theirs as usize == init => Ok(()),
        _ => Err("libcuda.so is another library than the CUDA driver libcuda.so.1".to_owned()),
    }
}

/// The loader's message, without the surrounding words.
#[cfg(unix)]
fn said(e: &libloading::Error) -> String {
    match std::error::Error::source(e) {
        Some(source) => source.to_string(),
        None => e.to_string(),
    }
}

/// Other systems are not supported.
#[cfg(not(unix))]
pub(super) fn look() -> Result<Driver, String> {
    Err("CUDA is looked for on Linux only".to_owned())
}
