//! Work that is captured once and replayed, and what it needs to stay alive.

use std::sync::Arc;

use super::stream::{Graph, Stream};
use crate::error::Result;

/// A graph, and the owner of everything that the work in it names.
pub struct Recorded<K: Send + Sync + 'static> {
    // Dropped first.
    graph: Graph,
    kept: Arc<K>,
}

impl<K: Send + Sync + 'static> Recorded<K> {
    /// Captures what `work` enqueues on the stream that it gets, instead of doing it.
    ///
    /// A function, and not a closure: all memory that it can name is then of `kept`, which lives as long as the graph. `kept` must not
    /// let go of any of that while it lives. `work` must not wait, allocate or free.
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

    /// Enqueues it on a stream.
    ///
    /// # Errors
    /// `ERR_BACKEND`.
    pub fn replay(&mut self, stream: &Stream) -> Result<()> {
        let _kept = &self.kept;
        // SAFETY: the work names memory of `kept` only, which this keeps; and memory waits for the device before it is freed.
        unsafe { stream.replay(&mut self.graph) }
    }
}
