//! The overhead of a call through the C ABI, and the cost of loading the library.

#[cfg(unix)]
pub use unix::{load_once, run};

/// The argument with which a fresh process of this program loads the library once and prints the
/// microseconds.
pub const LOAD_ONCE: &str = "--load-once";

#[cfg(not(unix))]
pub fn run(_library: Option<&std::path::Path>) -> Result<(), String> {
    Err("--latency loads the library by dlopen, which this system does not have".into())
}

#[cfg(not(unix))]
pub fn load_once(library: &std::path::Path) -> Result<(), String> {
    run(Some(library))
}

#[cfg(unix)]
mod unix {
    use std::ffi::{CStr, CString, c_char, c_void};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Instant;

    use apl_ffi::matmul::{Activations, Weights};
    use apl_ffi::quant::{Bits, Codes, Packing, Per, ScaleValues, Shape};
    use apl_ffi::runtime::{BackendChoice, Config, Runtime};

    use super::LOAD_ONCE;
    use crate::stats::median;

    /// Rows and columns of the product that is called.
    const SIDE: usize = 64;
    /// Calls per sample.
    const CALLS: u32 = 2000;
    /// Samples, and processes that load the library.
    const SAMPLES: usize = 21;

    type Init = unsafe extern "C" fn(*const c_char) -> i32;
    type FromCodes = unsafe extern "C" fn(
        *const u8,
        i64,
        i32,
        i32,
        *const f32,
        i64,
        *const i32,
        i64,
        i64,
        i64,
        i32,
        *const c_char,
        *mut i32,
    ) -> i32;
    type Matmul = unsafe extern "C" fn(i32, *const f32, i64, *mut f32, i64, i64) -> i32;

    /// The shared library, loaded and initialised as a program in C would.
    struct Library {
        handle: *mut c_void,
    }

    impl Library {
        fn open(path: &Path) -> Result<Library, String> {
            let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
            // SAFETY: the name is NUL-terminated; the library's initialisers are our own.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if handle.is_null() {
                // SAFETY: dlopen has just failed on this thread, so dlerror returns a string.
                let why = unsafe { CStr::from_ptr(libc::dlerror()) };
                return Err(why.to_string_lossy().into_owned());
            }
            let library = Library { handle };
            let config = c"{\"backend\": \"cpu\", \"threads\": 1}";
            // SAFETY: the type is that of the header; the text is NUL-terminated.
            let status = unsafe { library.function::<Init>(c"apl_ffi_init")?(config.as_ptr()) };
            ok("apl_ffi_init", status)?;
            Ok(library)
        }

        /// A function by name.
        ///
        /// # Safety
        /// `F` is the function pointer type that the header declares for `name`.
        unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, String> {
            // SAFETY: the handle is open until the process ends; the name is NUL-terminated.
            let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
            if address.is_null() {
                return Err(format!("the library has no {name:?}"));
            }
            assert_eq!(size_of::<F>(), size_of_val(&address));
            // SAFETY: `address` is that of a function, and the caller vouches for its type.
            Ok(unsafe { std::mem::transmute_copy(&address) })
        }
    }

    fn ok(what: &str, status: i32) -> Result<(), String> {
        match status {
            0 => Ok(()),
            _ => Err(format!("{what} returned {status}")),
        }
    }

    /// Where cargo leaves the library: beside the folder of this program.
    fn default_library() -> Result<PathBuf, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let release = program
            .parent()
            .and_then(Path::parent)
            .ok_or("this program has no folder")?;
        Ok(release.join(format!(
            "{}apl_ffi{}",
            std::env::consts::DLL_PREFIX,
            std::env::consts::DLL_SUFFIX
        )))
    }

    /// Prints both latencies.
    pub fn run(library: Option<&Path>) -> Result<(), String> {
        let path = library.map_or_else(default_library, |p| Ok(p.to_owned()))?;
        load(&path)?;
        call(&path)
    }

    /// dlopen and `apl_ffi_init`, each time in a fresh process: a loaded library stays loaded.
    fn load(path: &Path) -> Result<(), String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut times = Vec::new();
        for _ in 0..SAMPLES {
            let output = Command::new(&program)
                .arg(LOAD_ONCE)
                .arg(path)
                .output()
                .map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            times.push(text.parse::<f64>().map_err(|_| {
                format!(
                    "loading: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                )
            })?);
        }
        println!(
            "dlopen and apl_ffi_init, 1 thread: {:.0} us (median of {SAMPLES} processes)",
            median(&mut times)
        );
        Ok(())
    }

    /// Loads the library and prints the microseconds that took.
    pub fn load_once(path: &Path) -> Result<(), String> {
        let start = Instant::now();
        Library::open(path)?;
        println!("{}", start.elapsed().as_secs_f64() * 1e6);
        Ok(())
    }

    /// `apl_matmul` beside the product it wraps, in alternating samples, one thread each.
    fn call(path: &Path) -> Result<(), String> {
        let library = Library::open(path)?;
        let (bytes, scales) = ([0x5au8; SIDE * SIDE / 2], [0.01f32; SIDE * SIDE / 32]);
        let x = [1.0f32; SIDE];
        let (mut y, mut z) = ([0.0f32; SIDE], [0.0f32; SIDE]);

        let mut handle = 0;
        // SAFETY: the types are those of the header, and every pointer comes with its length in
        // elements.
        let status = unsafe {
            library.function::<FromCodes>(c"apl_weights_from_codes")?(
                bytes.as_ptr(),
                bytes.len() as i64,
                4,
                1,
                scales.as_ptr(),
                scales.len() as i64,
                std::ptr::null(),
                0,
                SIDE as i64,
                SIDE as i64,
                32,
                c"{\"activations\": \"int8\"}".as_ptr(),
                &mut handle,
            )
        };
        ok("apl_weights_from_codes", status)?;
        // SAFETY: the type is that of the header.
        let matmul = unsafe { library.function::<Matmul>(c"apl_matmul")? };

        let text = |e: apl_ffi::error::Error| e.to_string();
        let rt = Runtime::new(Config {
            backend: BackendChoice::Cpu,
            threads: 1,
            ..Config::default()
        })
        .map_err(text)?;
        let codes = Codes {
            shape: Shape::new(SIDE, SIDE, 32),
            bits: Bits::Four,
            packing: Packing::Msb,
            bytes: &bytes,
            scales: ScaleValues::F32(&scales),
            scale_per: Per::Group,
            zero_points: None,
        };
        let weights = Weights::from_codes(&rt, &codes, Activations::Int8).map_err(text)?;

        let (mut through, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            let start = Instant::now();
            for _ in 0..CALLS {
                // SAFETY: x has SIDE elements and y has SIDE, as the lengths say.
                let status = unsafe {
                    matmul(
                        handle,
                        x.as_ptr(),
                        SIDE as i64,
                        y.as_mut_ptr(),
                        SIDE as i64,
                        1,
                    )
                };
                ok("apl_matmul", status)?;
            }
            through.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
            let start = Instant::now();
            for _ in 0..CALLS {
                weights.multiply(&rt, &x, &mut z, 1).map_err(text)?;
            }
            bare.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
        }
        if y != z {
            return Err(
                "the library and this program disagree: is the library an older build?".into(),
            );
        }
        let (through, bare) = (median(&mut through), median(&mut bare));
        println!(
            "{SIDE} x {SIDE}, 4 bits, int8, 1 thread: apl_matmul {through:.0} ns, the product alone {bare:.0} ns, \
             the call {:.0} ns",
            through - bare
        );
        Ok(())
    }
}
