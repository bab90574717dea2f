//! Cancelling a call from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const CANCELLED: u8 = 2;

/// Whether a call is running on a session, and whether it has been cancelled.
///
/// A cancellation applies to the running call: one that arrives before the call begins has no
/// effect on it, and one that arrives at any time after that is not lost.
#[derive(Debug, Default)]
pub struct Cancellation(AtomicU8);

impl Cancellation {
    /// Begins a call, which runs until the returned value is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.0.store(RUNNING, Ordering::Relaxed);
        Running(self.clone())
    }

    /// # Errors
    /// `ERR_STATE` if the running call was cancelled.
    pub(super) fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            CANCELLED => Err(Error::state("the call was cancelled")),
            _ => Ok(()),
        }
    }
}

/// A running call on a session.
#[must_use = "the call ends when this is dropped"]
pub(super) struct Running(Arc<Cancellation>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.store(IDLE, Ordering::Relaxed);
    }
}

/// Cancels the running call of a session from another thread.
#[derive(Clone)]
pub struct Canceller(Arc<Cancellation>);

impl Canceller {
    pub(super) fn new(of: &Arc<Cancellation>) -> Canceller {
        Canceller(of.clone())
    }

    /// Makes the running call fail with `ERR_STATE` at the next layer; on a device, where two
    /// layers are in flight, at the one after these. The step of a single token on a device runs to
    /// completion. Without a running call nothing happens.
    pub fn cancel(&self) {
        // A failure is fine: no call is running, or it has already been cancelled.
        let _ = self
            .0
            .0
            .compare_exchange(RUNNING, CANCELLED, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancellation_belongs_to_the_call_that_runs() {
        let of = Arc::new(Cancellation::default());
        let canceller = Canceller::new(&of);
        canceller.cancel();
        let running = of.begin();
        assert!(of.check().is_ok(), "it came before the call");
        canceller.cancel();
        assert!(of.check().is_err());
        drop(running);
        let _next = of.begin();
        assert!(of.check().is_ok(), "it was of the call before");
    }
}
