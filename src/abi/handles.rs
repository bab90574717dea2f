//! Handles: positive integers that are checked, never trusted.
//!
//! ```text
//! bit 31   30..29   28..16       15..0
//!     0    kind     generation   index
//! ```
//!
//! A handle names a slot (`index`) and how often that slot had been emptied when the handle was
//! made (`generation`), so a stale handle does not match. Generations wrap after 2^13 uses of a
//! slot. Freed slots are reused first in, first out, and only while more than [`REST`] of them are
//! free, so a stale handle equals a live one only after 2^13 * REST = 2^23 later handles (while
//! fewer than 2^16 - REST are live). Kinds start at 1, so 0 is never a handle.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Error, Result};

const INDEX_BITS: u32 = 16;
const GENERATION_BITS: u32 = 13;
const KIND_SHIFT: u32 = INDEX_BITS + GENERATION_BITS;
const CAPACITY: usize = 1 << INDEX_BITS;
const GENERATIONS: u32 = 1 << GENERATION_BITS;

/// The generation at which slots start. It is random per process, so that a handle of another
/// process, for example in a saved workspace, is almost certainly refused.
fn first_generation() -> u32 {
    static FIRST: OnceLock<u32> = OnceLock::new();
    *FIRST.get_or_init(|| RandomState::new().hash_one(std::process::id()) as u32 % GENERATIONS)
}

/// How many slots stay free before one is reused.
const REST: usize = 1024;

/// The kind of object behind a handle. The number is part of the handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// A weight matrix.
    Weights = 1,
    /// A language model.
    Model = 2,
    /// A conversation with a language model.
    Session = 3,
}

const _: () = assert!((Kind::Session as u32) < 1 << (31 - KIND_SHIFT));

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Weights => "weights",
            Kind::Model => "model",
            Kind::Session => "session",
        }
    }
}

/// The live objects of one kind.
///
/// Calls clone the [`Arc`] and release the lock, so freeing a handle during another thread's call
/// is safe: the object lives until that call ends.
pub(super) struct Table<T> {
    kind: Kind,
    slots: RwLock<Slots<T>>,
}

struct Slots<T> {
    all: Vec<Slot<T>>,
    /// Indices of empty slots, the longest empty first. Its capacity is at least `all.len()`.
    free: VecDeque<u32>,
}

struct Slot<T> {
    generation: u32,
    object: Option<Arc<T>>,
}

impl<T> Table<T> {
    pub(super) const fn new(kind: Kind) -> Table<T> {
        Table {
            kind,
            slots: RwLock::new(Slots {
                all: Vec::new(),
                free: VecDeque::new(),
            }),
        }
    }

    /// Stores an object and returns its handle.
    ///
    /// # Errors
    /// `ERR_STATE` if 65536 are live, `ERR_MEMORY`.
    pub(super) fn insert(&self, object: T) -> Result<i32> {
        let mut slots = self.write();
        let index = slots.take_free(self.kind)?;
        let slot = &mut slots.all[index as usize];
        slot.object = Some(Arc::new(object));
        let handle = (self.kind as u32) << KIND_SHIFT | slot.generation << INDEX_BITS | index;
        Ok(handle as i32)
    }

    /// The object of a live handle.
    ///
    /// # Errors
    /// `ERR_HANDLE`.
    pub(super) fn get(&self, handle: i32) -> Result<Arc<T>> {
        let slots = self.read();
        slots
            .find(self.kind, handle)
            .and_then(|index| slots.all[index].object.clone())
            .ok_or_else(|| self.not_live(handle))
    }

    /// Calls `f` with the object of a live handle, under the lock, without cloning the [`Arc`].
    ///
    /// # Errors
    /// `ERR_HANDLE`.
    pub(super) fn look<R>(&self, handle: i32, f: impl FnOnce(&T) -> R) -> Result<R> {
        let slots = self.read();
        let index = slots.find(self.kind, handle);
        let object = index.and_then(|index| slots.all[index].object.as_deref());
        object.map(f).ok_or_else(|| self.not_live(handle))
    }

    /// Frees a handle and returns its object.
    ///
    /// # Errors
    /// `ERR_HANDLE`.
    pub(super) fn remove(&self, handle: i32) -> Result<Arc<T>> {
        let mut slots = self.write();
        slots
            .find(self.kind, handle)
            .and_then(|index| slots.empty(index))
            .ok_or_else(|| self.not_live(handle))
    }

    /// Frees every handle. Generations continue, so none of them becomes valid again.
    pub(super) fn clear(&self) {
        let mut slots = self.write();
        for index in 0..slots.all.len() {
            slots.empty(index);
        }
    }

    /// The number of live handles.
    pub(super) fn live(&self) -> usize {
        let slots = self.read();
        slots.all.len() - slots.free.len()
    }

    /// The error for a handle that is not live.
    pub(super) fn not_live(&self, handle: i32) -> Error {
        Error::handle(format!(
            "handle is {handle}, expected a live {} handle",
            self.kind.name()
        ))
    }

    fn read(&self) -> RwLockReadGuard<'_, Slots<T>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Slots<T>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Slots<T> {
    fn take_free(&mut self, kind: Kind) -> Result<u32> {
        if self.free.len() > REST || self.all.len() == CAPACITY {
            return self.free.pop_front().ok_or_else(|| {
                Error::state(format!(
                    "{CAPACITY} {} handles are live already",
                    kind.name()
                ))
            });
        }
        let refused = |_| Error::memory(format!("no memory for another {} handle", kind.name()));
        self.all.try_reserve(1).map_err(refused)?;
        // Reserved now because freeing must not fail.
        self.free
            .try_reserve(self.all.len() + 1 - self.free.len())
            .map_err(refused)?;
        self.all.push(Slot {
            generation: first_generation(),
            object: None,
        });
        Ok(self.all.len() as u32 - 1)
    }

    /// The slot of a handle, if kind and generation match. It may be empty.
    fn find(&self, kind: Kind, handle: i32) -> Option<usize> {
        let bits = u32::try_from(handle).ok()?;
        let index = bits as usize % CAPACITY;
        let generation = bits >> INDEX_BITS & (GENERATIONS - 1);
        let slot = self.all.get(index)?;
        (bits >> KIND_SHIFT == kind as u32 && slot.generation == generation).then_some(index)
    }

    fn empty(&mut self, index: usize) -> Option<Arc<T>> {
        let slot = &mut self.all[index];
        let object = slot.object.take()?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        self.free.push_back(index as u32);
        Some(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn table() -> Table<u64> {
        Table::new(Kind::Weights)
    }

    #[test]
    fn a_handle_lives_until_it_is_removed() {
        let t = table();
        let a = t.insert(1).unwrap();
        let b = t.insert(2).unwrap();
        assert!(a > 0 && b > 0 && a != b);
        assert_eq!((*t.get(a).unwrap(), *t.get(b).unwrap()), (1, 2));
        assert_eq!(t.live(), 2);
        let held = t.get(a).unwrap();
        assert_eq!(*t.remove(a).unwrap(), 1);
        assert_eq!(*held, 1);
        assert_eq!(t.get(a).unwrap_err().status(), Status::Handle);
        assert_eq!(t.remove(a).unwrap_err().status(), Status::Handle);
        assert_eq!(*t.get(b).unwrap(), 2);
        assert_eq!(t.live(), 1);
    }

    #[test]
    fn made_up_handles_are_refused() {
        let t = table();
        let h = t.insert(1).unwrap();
        for bad in [
            0,
            1,
            -1,
            i32::MIN,
            i32::MAX,
            -h,
            h + 1,
            h ^ 1 << INDEX_BITS,
            h ^ 1 << 30,
        ] {
            assert_eq!(t.get(bad).unwrap_err().status(), Status::Handle, "{bad:#x}");
        }
        assert_eq!(
            t.get(7).unwrap_err().message(),
            "handle is 7, expected a live weights handle"
        );
    }

    #[test]
    fn clearing_ends_handles_for_good() {
        let t = table();
        let old: Vec<i32> = (0..10).map(|i| t.insert(i).unwrap()).collect();
        t.clear();
        assert_eq!(t.live(), 0);
        let new: Vec<i32> = (0..3000).map(|i| t.insert(i).unwrap()).collect();
        for h in old {
            assert!(t.get(h).is_err() && !new.contains(&h));
        }
    }

    #[test]
    fn a_stale_handle_stays_stale_for_as_long_as_promised() {
        let t = table();
        let stale = t.insert(0).unwrap();
        t.remove(stale).unwrap();
        let promised = REST as u32 * GENERATIONS;
        for i in 0..promised {
            let h = t.insert(u64::from(i)).unwrap();
            assert_ne!(h, stale, "after {i} handles");
            t.remove(h).unwrap();
        }
        assert!(t.read().all.len() <= REST + 2);
    }

    #[test]
    fn a_full_table_says_so_and_recovers() {
        let t = table();
        let handles: Vec<i32> = (0..CAPACITY).map(|_| t.insert(0).unwrap()).collect();
        assert_eq!(t.insert(0).unwrap_err().status(), Status::State);
        t.remove(handles[77]).unwrap();
        let again = t.insert(0).unwrap();
        assert!(again != handles[77] && t.get(again).is_ok());
    }
}
