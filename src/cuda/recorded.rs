//! Captured graphs, each with the memory that it uses.

use std::sync::Arc;

use super::stream::{Graph, Stream};
use crate::error::Result;

/// A captured graph, and the owner of all memory that the work in it refers to.
pub struct Recorded<K: Send + Sync + 'static> {
    // Dropped first.
    graph: Graph,
    kept: Arc<K>,
}

impl<K: Send + Sync + 'static> Recorded<K> {
    /// Captures the work that `work` enqueues on the given stream, without running it.
    ///
    /// `work` is a function rather than a closure, so that all memory it can refer to belongs to
    /// `kept`, which lives as long as the graph. `kept` must not free any of it while it lives.
    /// `work` must not wait, allocate or free.
    ///
    /// # Errors
    /// Those of `work`; `ERR_BACKEND` if the driver cannot capture it.
    pub fn new(
        stream: &Stream,
        kept: &Arc<K>,
        work: fn(&Stream, &K) -> Result<()>,
    ) -> Result<Recorded<K>> {
        Ok(Recorded {
            graph: stream.capture(|| work(stream, kept))?,
            kept: Arc::clone(kept),
        })
    }

    /// Enqueues the graph on a stream.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn replay(&mut self, stream: &Stream) -> Result<()> {
        let _kept = &self.kept;
        // SAFETY: the work refers only to memory of `kept`, which this keeps alive, and memory
        // waits for the device before it is freed.
        unsafe { stream.replay(&mut self.graph) }
    }
}
