//! Streams: what is enqueued on one happens in order, while the host goes on. Marks: places in that order, to wait for. And graphs:
//! a sequence captured once, replayed as a whole.

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
    /// Threads a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory a block.
    pub shared: u32,
}

/// A sequence of work on a device.
///
/// Its methods may be called from any thread; what they enqueue from several at once is in no particular order. Dropping it lets
/// what is enqueued finish.
pub struct Stream {
    device: Arc<Device>,
    raw: CUstream,
}

// SAFETY: a handle of the driver, which takes calls from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that waits for no other.
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

    /// The device that it runs on.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Enqueues a kernel. `args` is read before this returns.
    ///
    /// # Errors
    /// `ERR_BACKEND` if the driver refuses the launch; what fails while it runs is noticed by [`Stream::synchronize`].
    ///
    /// # Safety
    /// `A` is what this kernel takes, the grid is what its contract (`kernels/README.md`) says, and each address in `args` is of
    /// device memory that holds as much as the contract says, and lives until the kernel has run.
    pub unsafe fn launch<A: Arguments>(&self, kernel: Kernel, grid: Grid, args: &A) -> Result<()> {
        let _current = self.device.enter()?;
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the function is of a module that the device keeps loaded, the stream of its context; the driver copies as many
        // bytes of `args` as the kernel's parameter has. The rest is this function's own contract.
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
        // SAFETY: a part of an allocation on this device, which waits for the device before it is freed.
        unsafe { result::memset_d8_async(to.address(), 0, to.bytes(), self.raw) }
            .tried(|| "clearing device memory".to_owned())
    }

    /// Enqueues a copy on the device; the two do not overlap.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Panics
    /// If they are of different lengths.
    pub fn copy(&self, to: Part<'_>, from: Part<'_>) -> Result<()> {
        assert_eq!(to.bytes(), from.bytes());
        if to.bytes() == 0 {
            return Ok(());
        }
        let _current = self.device.enter()?;
        // SAFETY: parts of allocations on this device, each as long, which wait for the device before they are freed.
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), to.bytes(), self.raw) }
            .tried(|| "copying on the device".to_owned())
    }

    /// Enqueues a copy of the first bytes of `from`, as many as `to` has.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Panics
    /// If `from` has fewer.
    ///
    /// # Safety
    /// `from` is neither written nor dropped until the copy has happened.
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
        // SAFETY: `to` is a part of an allocation on this device, as long as `from`; the rest is this function's own contract.
        unsafe { result::memcpy_htod_async(to.address(), from, self.raw) }
            .tried(|| "copying to the device".to_owned())
    }

    /// Enqueues a copy to the first bytes of `to`, as many as `from` has.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Panics
    /// If `to` has fewer.
    ///
    /// # Safety
    /// `to` is neither read, written nor dropped until the copy has happened.
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
        // SAFETY: `from` is a part of an allocation on this device, as long as `to`; the rest is this function's own contract.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.raw) }
            .tried(|| "copying from the device".to_owned())
    }

    /// Copies to the device and waits until that and all before it has happened.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Panics
    /// If they are of different lengths.
    pub fn write(&self, to: Part<'_>, from: &[u8]) -> Result<()> {
        assert_eq!(to.bytes(), from.len());
        // SAFETY: whether it is enqueued or refused, nothing reads `from` after the stream was waited for.
        let sent = unsafe { self.send(to, from) };
        self.synchronize().and(sent)
    }

    /// Copies from the device, after all before it, and waits.
    ///
    /// # Errors
    /// `ERR_BACKEND`; `to` may then hold anything.
    ///
    /// # Panics
    /// If they are of different lengths.
    pub fn read(&self, to: &mut [u8], from: Part<'_>) -> Result<()> {
        assert_eq!(to.len(), from.bytes());
        // SAFETY: whether it is enqueued or refused, nothing writes `to` after the stream was waited for.
        let fetched = unsafe { self.fetch(to, from) };
        self.synchronize().and(fetched)
    }

    /// Waits until all that was enqueued has happened.
    ///
    /// # Errors
    /// `ERR_BACKEND` if any of it failed.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: the stream lives.
        unsafe { stream::synchronize(self.raw) }.tried(|| "the work on the device".to_owned())
    }

    /// Enqueues a mark: [`Mark::wait`] then waits for all that was enqueued before. It was made for this stream's device.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn mark(&self, mark: &Mark) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: both live.
        unsafe { event::record(mark.raw, self.raw) }.tried(|| "recording an event".to_owned())
    }

    /// Records what `work` enqueues on this stream, instead of doing it.
    ///
    /// `work` must not wait, allocate or free on any stream of this thread. The graph uses the memory that the enqueued work named:
    /// whoever keeps the graph keeps that.
    ///
    /// # Errors
    /// Those of `work`; `ERR_BACKEND` if the driver cannot capture it.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let _signals = Blocked::all();
        let _current = self.device.enter()?;
        // Of this thread only: what other threads do meanwhile on their streams is no concern of the capture.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { stream::begin_capture(self.raw, mode) }
            .tried(|| "capturing a graph".to_owned())?;
        let worked = work();
        // SAFETY: as above; the capture was begun here. It is ended whatever `work` came to.
        let captured =
            unsafe { stream::end_capture(self.raw) }.tried(|| "capturing a graph".to_owned());
        let captured = captured.map(Captured);
        worked?;
        let captured = captured?;
        if captured.0.is_null() {
            return Err(Error::backend("CUDA: capturing a graph gave none"));
        }
        // SAFETY: a graph that was captured just now.
        let raw = unsafe { graph::instantiate(captured.0, CUgraphInstantiate_flags(0)) }
            .tried(|| "instantiating a graph".to_owned())?;
        Ok(Graph {
            device: Arc::clone(&self.device),
            raw,
        })
    }

    /// Enqueues everything that a graph has recorded.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    ///
    /// # Safety
    /// All memory that the recorded work names lives until it has run.
    pub unsafe fn replay(&self, graph: &mut Graph) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: both live; `&mut`: the driver wants no two calls on a graph at once. The rest is this function's own contract.
        unsafe { graph::launch(graph.raw, self.raw) }.tried(|| "launching a graph".to_owned())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: it was made in this context and is destroyed once.
            let _ = unsafe { stream::destroy(self.raw) };
        }
    }
}

/// A place in the order of a stream ([`Stream::mark`]), to wait for while the stream goes on behind it.
pub struct Mark {
    device: Arc<Device>,
    raw: CUevent,
}

// SAFETY: a handle of the driver, which takes calls from any thread.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Mark {
    /// A mark that is nowhere yet: waiting for it is over at once.
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

    /// Waits for what was enqueued before it.
    ///
    /// # Errors
    /// `ERR_BACKEND` if any of it failed.
    pub fn wait(&self) -> Result<()> {
        let _current = self.device.enter()?;
        // SAFETY: the event lives.
        unsafe { sys::cuEventSynchronize(self.raw) }
            .result()
            .tried(|| "the work on the device".to_owned())
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: it was made in this context and is destroyed once.
            let _ = unsafe { event::destroy(self.raw) };
        }
    }
}

/// What a capture recorded; only an executable made of it lasts.
struct Captured(CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: captured once, destroyed once.
            let _ = unsafe { graph::destroy(self.0) };
        }
    }
}

/// Recorded work, ready to be enqueued as a whole ([`Stream::replay`]).
pub struct Graph {
    device: Arc<Device>,
    raw: CUgraphExec,
}

// SAFETY: a handle of the driver, used through `&mut` only.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(_current) = self.device.enter() {
            // SAFETY: it was made in this context and is destroyed once.
            let _ = unsafe { graph::exec_destroy(self.raw) };
        }
    }
}
