//! One device: its primary context, the module of the kernels, and its properties.

use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::result::{self, ctx, primary_ctx};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUfunction, CUmodule};
use serde_json::{Value, json};

use super::images::{Capability, Image, LEAST, PTX};
use super::kernels::{KERNELS, Kernel};
use super::probe::Driver;
use super::status::{Tried, words};
use crate::error::Result;

/// The properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The ordinal by which it was selected.
    pub ordinal: u32,
    /// The driver's name for it.
    pub name: String,
    /// Its compute capability, major and minor.
    pub capability: (i32, i32),
    /// The number of its multiprocessors.
    pub multiprocessors: u32,
    /// The size of its memory, in bytes.
    pub memory_total: usize,
    /// The CUDA version that the driver supports: 1000 times the major number plus 10 times the
    /// minor one.
    pub driver: i32,
    /// The image that its kernels were loaded from: `sm_90`, or `compute_75`, which the driver has
    /// compiled.
    pub image: &'static str,
}

/// A device ready for use: a context on it, and the kernels.
///
/// The context is the device's primary one, which the host process may be using as well; it is
/// retained, and released when this is dropped. Everything in the context holds an [`Arc`] of this.
pub struct Device {
    about: About,
    handle: CUdevice,
    context: CUcontext,
    module: CUmodule,
    /// In the order of [`KERNELS`].
    functions: Vec<CUfunction>,
}

// SAFETY: handles of the driver, which may be used from any thread on which the context is current
// (`enter`); nothing here changes after `open`.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// The primary context of a device, retained.
struct Retained(CUdevice);

impl Drop for Retained {
    fn drop(&mut self) {
        // SAFETY: it was retained once. If the driver is already gone, there is nothing to release.
        let _ = unsafe { primary_ctx::release(self.0) };
    }
}

impl Device {
    /// Retains the primary context of device `ordinal` and loads the kernels; an error is the
    /// reason why the device cannot be used, as a sentence.
    pub(super) fn open(driver: &Driver, ordinal: u32) -> std::result::Result<Arc<Device>, String> {
        if i64::from(ordinal) >= i64::from(driver.devices) {
            return Err(match driver.devices {
                1 => format!("there is no CUDA device {ordinal}: the only one is 0"),
                n => format!("there is no CUDA device {ordinal}: they are 0 to {}", n - 1),
            });
        }
        let refused = |what: &'static str| {
            move |e| format!("the CUDA driver does not work: {what} gives {}", words(e))
        };
        let handle = result::device::get(ordinal as i32).map_err(refused("cuDeviceGet"))?;
        let attribute = |attribute| {
            // SAFETY: `handle` is that of a device.
            unsafe { result::device::get_attribute(handle, attribute) }
                .map_err(refused("cuDeviceGetAttribute"))
        };
        let capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let name = result::device::get_name(handle).map_err(refused("cuDeviceGetName"))?;
        if capability < LEAST {
            return Err(format!(
                "the CUDA device {name} has compute capability {}.{}, expected {}.{} or more",
                capability.0, capability.1, LEAST.0, LEAST.1
            ));
        }
        let multiprocessors =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // SAFETY: as above.
        let memory_total =
            unsafe { result::device::total_mem(handle) }.map_err(refused("cuDeviceTotalMem"))?;

        // SAFETY: as above.
        let context =
            unsafe { primary_ctx::retain(handle) }.map_err(refused("cuDevicePrimaryCtxRetain"))?;
        let retained = Retained(handle);
        let _current = Current::of(context).map_err(refused("cuCtxSetCurrent"))?;
        let (image, module, functions) = load(capability)
            .map_err(|e| format!("the kernels cannot be loaded on the CUDA device {name}: {e}"))?;
        std::mem::forget(retained);
        Ok(Arc::new(Device {
            about: About {
                ordinal,
                name,
                capability,
                multiprocessors: multiprocessors.max(1) as u32,
                memory_total,
                driver: driver.version,
                image,
            },
            handle,
            context,
            module,
            functions,
        }))
    }

    /// Its properties.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Its properties, as `apl_ffi_info` shows them; the free memory is null if the driver does not
    /// report it.
    pub fn describe(&self) -> Value {
        let a = &self.about;
        let version = |major, minor| format!("{major}.{minor}");
        json!({
            "ordinal": a.ordinal,
            "name": a.name,
            "compute_capability": version(a.capability.0, a.capability.1),
            "memory_total": a.memory_total,
            "memory_free": self.memory_free().ok(),
            "driver": version(a.driver / 1000, a.driver % 1000 / 10),
            "image": a.image,
        })
    }

    /// The free memory in bytes, which others may allocate at any time.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn memory_free(&self) -> Result<usize> {
        let _current = self.enter()?;
        let (free, _) = result::mem_get_info().tried(|| "asking for free memory".to_owned())?;
        Ok(free)
    }

    /// Makes its context the current one of this thread, until the value is dropped.
    ///
    /// All further calls of the driver need that, and each method here does it itself. If the
    /// context is already current, this costs one look at a thread-local of the driver; a caller of
    /// several methods can hold the value to avoid the switches in between.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn enter(&self) -> Result<Current<'_>> {
        Current::of(self.context).tried(|| "making the context current".to_owned())
    }

    /// The loaded function for a kernel.
    pub(super) fn function(&self, kernel: Kernel) -> CUfunction {
        self.functions[kernel.index()]
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _released_last = Retained(self.handle);
        if let Ok(_current) = self.enter() {
            // SAFETY: the module was loaded in this context, and nothing runs in it, because every
            // stream, and all memory that a kernel uses, holds the device.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// Keeps a context current on this thread; when it is dropped, the host's own context is current
/// again.
#[must_use = "the context is left when this is dropped"]
pub struct Current<'a> {
    /// `None` if it was current already.
    before: Option<CUcontext>,
    // Not `Send`, because it belongs to this thread; borrows the device, which must live as long.
    here: PhantomData<(*const (), &'a Device)>,
}

impl Current<'_> {
    fn of(context: CUcontext) -> std::result::Result<Self, result::DriverError> {
        let before = ctx::get_current()?.unwrap_or(std::ptr::null_mut());
        let before = (before != context).then_some(before);
        if before.is_some() {
            // SAFETY: the context is retained.
            unsafe { ctx::set_current(context)? };
        }
        Ok(Current {
            before,
            here: PhantomData,
        })
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: the context that was current before, or none.
            let _ = unsafe { ctx::set_current(before) };
        }
    }
}

/// Loads the kernels into the current context: from the image for this capability or, if the driver
/// refuses it (it may be configured to compile everything), from the PTX.
fn load(
    capability: Capability,
) -> std::result::Result<(&'static str, CUmodule, Vec<CUfunction>), String> {
    let image = Image::for_device(capability);
    match load_image(image) {
        Err(why) if !image.ptx => {
            load_image(PTX).map_err(|e| format!("{}: {why}; {}: {e}", image.name, PTX.name))
        }
        loaded => loaded,
    }
}

fn load_image(
    image: Image,
) -> std::result::Result<(&'static str, CUmodule, Vec<CUfunction>), String> {
    let bytes = image.bytes();
    // SAFETY: the driver reads the image to its end, which it contains: an ELF file, or text with a
    // NUL.
    let module = unsafe { result::module::load_data(bytes.as_ptr().cast()) }.map_err(words)?;
    let functions: std::result::Result<Vec<_>, String> = KERNELS
        .into_iter()
        .map(|name| {
            let text = CString::new(name).expect("a name without NUL");
            // SAFETY: the module has just been loaded.
            unsafe { result::module::get_function(module, text) }
                .map_err(|e| format!("{name}: {}", words(e)))
        })
        .collect();
    match functions {
        Ok(functions) => Ok((image.name, module, functions)),
        Err(e) => {
            // SAFETY: as above, and nothing in it is in use.
            let _ = unsafe { result::module::unload(module) };
            Err(e)
        }
    }
}
