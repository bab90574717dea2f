//! The table of live handles of each kind, for the functions on handles and for `apl_ffi_cleanup`.

use std::sync::{Arc, Mutex, MutexGuard};

use super::handles::{Kind, Table};
use crate::error::{Error, Result};
use crate::matmul::Weights;
use crate::model::{Canceller, Model, Session};

/// The live weight handles.
pub(super) static WEIGHTS: Table<Weights> = Table::new(Kind::Weights);

/// The live model handles. A session keeps its model alive after the handle is closed.
pub(super) static MODELS: Table<Arc<Model>> = Table::new(Kind::Model);

/// The live session handles.
pub(super) static SESSIONS: Table<SessionEntry> = Table::new(Kind::Session);

/// A session, and what cancels the call that is using it.
pub(super) struct SessionEntry {
    session: Mutex<Session>,
    canceller: Canceller,
}

impl SessionEntry {
    /// The entry of a new session.
    pub fn new(session: Session) -> SessionEntry {
        SessionEntry {
            canceller: session.canceller(),
            session: Mutex::new(session),
        }
    }

    /// What cancels the call that is using the session.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// The session; waits for the call that is using it.
    ///
    /// # Errors
    /// `ERR_STATE` if a panic ended an earlier call, which may have left the session inconsistent.
    pub fn take(&self) -> Result<MutexGuard<'_, Session>> {
        self.session.lock().map_err(|_| {
            Error::state(
                "a panic ended an earlier call on this session and left its state unknown: close it",
            )
        })
    }
}

/// Frees every handle, sessions before models.
pub(super) fn clear() {
    SESSIONS.clear();
    MODELS.clear();
    WEIGHTS.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::model::{ModelOptions, SessionOptions};
    use crate::runtime::{Config, Runtime};

    #[test]
    fn a_session_that_a_panic_left_is_refused() {
        let rt = Runtime::new(Config::default()).unwrap();
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");
        let model = Model::open(&rt, demo.as_ref(), &ModelOptions::default()).unwrap();
        let session = Session::new(&rt, Arc::new(model), &SessionOptions::default()).unwrap();
        let shared = Arc::new(SessionEntry::new(session));
        assert!(shared.take().is_ok());
        let with = shared.clone();
        let bug = std::thread::spawn(move || {
            let _session = with.take();
            std::panic::resume_unwind(Box::new("a bug"))
        });
        assert!(bug.join().is_err());
        let refused = shared.take().err().unwrap();
        assert_eq!(refused.status(), Status::State);
        assert!(refused.message().contains("close it"), "{refused}");
    }
}
