//! The configured library, and when it may be used.
//!
//! A call that needs the library holds a read guard until it ends; [`cleanup`] and the first
//! [`init`] take the write guard, so they wait for running calls. The library never calls its own
//! exported functions, so a thread holds at most one guard.

use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::tables;
use crate::error::{Error, Result};
use crate::runtime::{Config, Resolved, Runtime};

type State = Option<Arc<Runtime>>;

static STATE: RwLock<State> = RwLock::new(None);

/// The configured library, held: while this value lives, it is neither torn down nor replaced.
pub(super) struct Held {
    runtime: Arc<Runtime>,
    _state: RwLockReadGuard<'static, State>,
}

impl Deref for Held {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        &self.runtime
    }
}

/// The library, if it is configured.
pub(super) fn if_initialised() -> Option<Held> {
    let state = STATE.read().unwrap_or_else(PoisonError::into_inner);
    let runtime = state.clone()?;
    Some(Held {
        runtime,
        _state: state,
    })
}

/// The library; if it is not configured, it is with the defaults and the environment.
///
/// # Errors
/// Those of [`Config::from_json`] and [`Runtime::new`].
pub(super) fn runtime() -> Result<Held> {
    match if_initialised() {
        Some(held) => Ok(held),
        None => init_if_none(Config::from_json("")?.resolve(&[])?),
    }
}

/// Configures the library.
///
/// # Errors
/// `ERR_STATE` if it is already configured to other values; those of [`Config::resolve`] and
/// [`Runtime::from_resolved`].
pub(super) fn init(config: Config) -> Result<()> {
    let held = if_initialised();
    let open = held.as_ref().map_or(&[][..], |held| held.gpus());
    let wanted = config.resolve(open)?;
    let held = match held {
        Some(held) => held,
        None => init_if_none(wanted.clone())?,
    };
    if *held.resolved() == wanted {
        Ok(())
    } else {
        Err(Error::state(
            "the library is configured otherwise already, expected apl_ffi_cleanup first",
        ))
    }
}

/// Waits for running calls, frees every handle, and stops the threads.
pub(super) fn cleanup() {
    let mut state = write();
    tables::clear();
    *state = None;
}

fn init_if_none(resolved: Resolved) -> Result<Held> {
    let mut state = write();
    let runtime = match &*state {
        Some(runtime) => runtime.clone(),
        None => state
            .insert(Arc::new(Runtime::from_resolved(resolved)?))
            .clone(),
    };
    Ok(Held {
        runtime,
        _state: RwLockWriteGuard::downgrade(state),
    })
}

fn write() -> RwLockWriteGuard<'static, State> {
    STATE.write().unwrap_or_else(PoisonError::into_inner)
}
