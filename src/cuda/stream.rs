//! Streams, on which work is enqueued and runs in order, while the host continues; marks, which are
//! positions in a stream to wait for; and graphs, which are sequences captured once and replayed as
//! a whole.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result::{self, event, graph, stream};
use cudarc::driver::sys::{
    self, CUevent, CUevent_flags, CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstream,
    CUstreamCaptureMode,
};

use super::device::Device;
use super::kernels::{Arguments, Kernel};
use super::memory::{Part, Pinned};
use super::status::Tried;
use crate::error::{Error, Result};
use crate::signals::Blocked;

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks: at most 2^31 - 1 along x and 65535 along y.
    pub blocks: (u32, u32),
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory per block, in bytes.
    pub shared: u32,
}

/// A sequence of work on a device.
///
/// Its methods may be called from any thread; work that several threads enqueue at once is in no
/// particular order. Dropping it lets enqueued work finish.
pub struct Stream {
    device: Arc<Device>,
    raw: CUstream,
}

// SAFETY: a handle of the driver, which takes calls from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not synchronise with any other.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND`.
    pub fn new(device: &Arc<Device>) -> Result<Stream> {
        let _signals = Blocked::all();
        let _current = device.enter()?;
        let raw = stream::create(stream::StreamKind::NonBlocking)
            .tried(|| "making a stream".to_owned())?;
        Ok(Stream {
            device: Arc::clone(device),
            raw,
        })
    }

    /// The device of the stream.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Enqueues a kernel. `args` is read before this returns.
    ///
    /// # Errors
    /// `ERR_BACKEND` if the driver refuses the launch; a failure of the kernel itself is reported
    /// by [`Stream::synchronize`].
    ///
    /// # Safety
    /// `A` is the parameter of this kernel, the grid is that of its contract (`kernels/README.md`),
    /// and each address in `args` is that of device memory of at least the size that the contract
    /// requires, which lives until the kernel has run.
    pub unsafe fn launch<A: Arguments>(&self, kernel: Kernel, grid: Grid, args: &A) -> Result<()> {
        let _current = self.device.enter()?;
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the function belongs to a module that the device keeps loaded, the stream to its
        // context; the driver copies as many bytes of `args` as the kernel's parameter has. The
        // rest is this function's own contract.
        unsafe {
            result::launch_kernel(
                self.device.function(kernel),
                (grid.blocks.0, grid.blocks.1, 1),
                (grid.threads, 1, 1),
                grid.shared,
                self.raw,
                &mut parameters,
            )
        }
        .tried(|| format!("launching {}", kernel.name()))
    }

    /// Enqueues zeros.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn zero(&self, to: Part<'_>) -> Result<()> {
        if to.bytes() == 0 {
            return Ok(());
        }
        let _current = self.device.enter()?;
        // SAFETY: a part of an allocation on this device, which waits for the device before it is
        // freed.
        unsafe { result::memset_d8_async(to.address(), 0, to.bytes(), self.raw) }
            .tried(|| "clearing device memory".to_owned())
    }

    /// Enqueues a copy on the device between parts that do not overlap.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Panics
    /// If their lengths differ.
    pub fn copy(&self, to: Part<'_>, from: Part<'_>) -> Result<()> {
        assert_eq!(to.bytes(), from.bytes());
        if to.bytes() == 0 {
            return Ok(());
        }
        let _current = self.device.enter()?;
        // SAFETY: parts of allocations on this device, of equal length, which wait for the device
        // before they are freed.
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), to.bytes(), self.raw) }
            .tried(|| "copying on the device".to_owned())
    }

    /// Enqueues a copy of the first bytes of `from` to all of `to`.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Panics
    /// If `from` is shorter than `to`.
    ///
    /// # Safety
    /// `from` is neither written nor dropped until the copy is complete.
    pub unsafe fn upload(&self, to: Part<'_>, from: &Pinned) -> Result<()> {
        let from = &from.bytes()[..to.bytes()];
        // SAFETY: this function's own contract.
        unsafe { self.send(to, from) }
    }

    /// # Safety
    /// As [`Stream::upload`].
    unsafe fn send(&self, to: Part<'_>, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        let _current = self.device.enter()?;
        // SAFETY: `to` is a part of an allocation on this device, as long as `from`; the rest is
        // this function's own contract.
        unsafe { result::memcpy_htod_async(to.address(), from, self.raw) }
            .tried(|| "copying to the device".to_owned())
    }

    /// Enqueues a copy of all of `from` to the first bytes of `to`.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Panics
    /// If `to` is shorter than `from`.
    ///
    /// # Safety
    /// `to` is neither read, written nor dropped until the copy is complete.
    pub unsafe fn download(&self, to: &mut Pinned, from: Part<'_>) -> Result<()> {
        let to = &mut to.bytes_mut()[..from.bytes()];
        // SAFETY: this function's own contract.
        unsafe { self.fetch(to, from) }
    }

    /// # Safety
    /// As [`Stream::download`].
    unsafe fn fetch(&self, to: &mut [u8], from: Part<'_>) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        let _current = self.device.enter()?;
        // SAFETY: `from` is a part of an allocation on this device, as long as `to`; the rest is
        // this function's own contract.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.raw) }
            .tried(|| "copying from the device".to_owned())
    }

    /// Copies to the device, and waits until that and all earlier work is complete.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Panics
    /// If their lengths differ.
    pub fn write(&self, to: Part<'_>, from: &[u8]) -> Result<()> {
        assert_eq!(to.bytes(), from.len());
        // SAFETY: whether it was enqueued or refused, nothing reads `from` after the stream has
        // been waited for.
        let sent = unsafe { self.send(to, from) };
        self.synchronize().and(sent)
    }

    /// Copies from the device, after all earlier work, and waits.
    ///
    /// # Errors
    /// `ERR_BACKEND`; `to` may then hold anything.
    ///
    /// # Panics
    /// If their lengths differ.
    pub fn read(&self, to: &mut [u8], from: Part<'_>) -> Result<()> {
        assert_eq!(to.len(), from.bytes());
        // SAFETY: whether it was enqueued or refused, nothing writes `to` after the stream has been
        // waited for.
        let fetched = unsafe { self.fetch(to, from) };
        self.synchronize().and(fetched)
    }

    /// Waits until all enqueued work is complete.
    ///
    /// # Errors
    /// `ERR_BACKEND` if any of it failed.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: the stream is alive.
        unsafe { stream::synchronize(self.raw) }.tried(|| "the work on the device".to_owned())
    }

    /// Enqueues a mark: [`Mark::wait`] then waits for all work enqueued before it. The mark must
    /// have been made for this stream's device.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn mark(&self, mark: &Mark) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: both are alive.
        unsafe { event::record(mark.raw, self.raw) }.tried(|| "recording an event".to_owned())
    }

    /// Captures the work that `work` enqueues on this stream, without running it.
    ///
    /// `work` must not wait, allocate or free on any stream of this thread. The graph uses the
    /// memory that the work refers to, which the owner of the graph has to keep alive.
    ///
    /// # Errors
    /// Those of `work`; `ERR_BACKEND` if the driver cannot capture it.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let _signals = Blocked::all();
        let _current = self.device.enter()?;
        // For this thread only: what other threads do on their streams must not affect the capture.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        unsafe { stream::begin_capture(self.raw, mode) }
            .tried(|| "capturing a graph".to_owned())?;
        let worked = work();
        // SAFETY: as above; the capture was begun here. It is ended whether or not `work`
        // succeeded.
        let captured =
            unsafe { stream::end_capture(self.raw) }.tried(|| "capturing a graph".to_owned());
        let captured = captured.map(Captured);
        worked?;
        let captured = captured?;
        if captured.0.is_null() {
            return Err(Error::backend("CUDA: capturing a graph gave none"));
        }
        // SAFETY: the graph has just been captured.
        let raw = unsafe { graph::instantiate(captured.0, CUgraphInstantiate_flags(0)) }
            .tried(|| "instantiating a graph".to_owned())?;
        Ok(Graph {
            device: Arc::clone(&self.device),
            raw,
        })
    }

    /// Enqueues all the work of a graph.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Safety
    /// All memory that the captured work refers to lives until it has run.
    pub unsafe fn replay(&self, graph: &mut Graph) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: both are alive; `&mut` because the driver does not allow concurrent calls on a
        // graph. The rest is this function's own contract.
        unsafe { graph::launch(graph.raw, self.raw) }.tried(|| "launching a graph".to_owned())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: it was created in this context and is destroyed once.
            let _ = unsafe { stream::destroy(self.raw) };
        }
    }
}

/// A position in a stream ([`Stream::mark`]) to wait for, while the stream continues after it.
pub struct Mark {
    device: Arc<Device>,
    raw: CUevent,
}

// SAFETY: a handle of the driver, which takes calls from any thread.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Mark {
    /// A mark that is not yet in a stream: waiting for it returns immediately.
    ///
    /// # Errors
    /// `ERR_MEMORY`, `ERR_BACKEND`.
    pub fn new(device: &Arc<Device>) -> Result<Mark> {
        let _signals = Blocked::all();
        let _current = device.enter()?;
        let raw = event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .tried(|| "making an event".to_owned())?;
        Ok(Mark {
            device: Arc::clone(device),
            raw,
        })
    }

    /// Waits for the work enqueued before it.
    ///
    /// # Errors
    /// `ERR_BACKEND` if any of it failed.
    pub fn wait(&self) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: the event is alive.
        unsafe { sys::cuEventSynchronize(self.raw) }
            .result()
            .tried(|| "the work on the device".to_owned())
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: it was created in this context and is destroyed once.
            let _ = unsafe { event::destroy(self.raw) };
        }
    }
}

/// A graph as captured; only the executable made from it is kept.
struct Captured(CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: captured once, destroyed once.
            let _ = unsafe { graph::destroy(self.0) };
        }
    }
}

/// Captured work, ready to be enqueued as a whole ([`Stream::replay`]).
pub struct Graph {
    device: Arc<Device>,
    raw: CUgraphExec,
}

// SAFETY: a handle of the driver, used through `&mut` only.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: it was created in this context and is destroyed once.
            let _ = unsafe { graph::exec_destroy(self.raw) };
        }
    }
}
