//! The ids of the table: what is served under each, and whose turn it is to change that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Mounted;
use super::table::TableError;
use crate::control::{BackendSpec, MountRequest};
use crate::process::RemoteWorker;

/// A slot, which whoever looks at it or changes it holds as well.
pub(super) type SharedSlot = Arc<Slot>;

/// The slots of all ids under which something is served, or somebody is about to serve it.
#[derive(Default)]
pub(super) struct SlotTable(Mutex<BTreeMap<String, SharedSlot>>);

impl SlotTable {
    /// The slot of an id, if it has one.
    pub(super) fn get(&self, id: &str) -> Option<SharedSlot> {
        self.lock().get(id).cloned()
    }

    /// The slot of an id, which is made if there is none.
    pub(super) fn get_or_make(&self, id: &str) -> SharedSlot {
        self.lock().entry(id.to_owned()).or_default().clone()
    }

    /// All of them by id, in order.
    pub(super) fn all(&self) -> Vec<(String, SharedSlot)> {
        self.lock().iter().map(|(id, slot)| (id.clone(), Arc::clone(slot))).collect()
    }

    /// How many mounts there are, with those that are just coming or going.
    pub(super) fn count(&self) -> usize {
        let slots = self.all();
        slots.iter().filter(|(_, slot)| !slot.is_settled() || slot.served().is_some()).count()
    }

    /// The slots, without those under which nothing is served. One that somebody holds stays: it may be about to be filled, and whoever
    /// comes next is to wait for that.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, SharedSlot>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody gets hold of one without this lock.
        slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.served().is_some());
        slots
    }
}

/// One id.
#[derive(Default)]
pub(super) struct Slot {
    /// Held by who mounts or unmounts, which may take a while.
    turn: Mutex<()>,
    /// Held for a moment, also by who only looks: what is being looked at is there.
    served: Mutex<Option<ServedMount>>,
}

/// A mount that is served.
#[derive(Clone)]
pub(super) struct ServedMount {
    pub(super) request: MountRequest,
    pub(super) mounted: Arc<Mounted<RemoteWorker>>,
    /// Somebody else can have it served after this process.
    pub(super) handed_over: bool,
}

impl Slot {
    /// The turn to change it; waits for others who do.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody is changing it.
    pub(super) fn is_settled(&self) -> bool {
        self.turn.try_lock().is_ok()
    }

    /// What is served. Not to be held while something blocks.
    pub(super) fn served(&self) -> MutexGuard<'_, Option<ServedMount>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mount that is served.
    pub(super) fn mounted(&self) -> Option<Arc<Mounted<RemoteWorker>>> {
        self.served().as_ref().map(|served| Arc::clone(&served.mounted))
    }
}

impl ServedMount {
    /// Whether a request means this mount, whatever it calls the image and whoever has its blobs.
    pub(super) fn is_same(&self, request: &MountRequest) -> bool {
        self.request.bootstrap == request.bootstrap && self.request.mountpoint == request.mountpoint
    }

    /// Adds the backends that are new.
    pub(super) fn add(&mut self, backends: &[BackendSpec]) -> Result<(), TableError> {
        for spec in backends {
            if !self.request.backends.contains(spec) {
                spec.check()?;
                self.mounted.add_backend(spec);
                self.request.backends.push(spec.clone());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_slot_does_not_count_and_goes_with_the_last_who_holds_it() {
        let slots = SlotTable::default();
        let (unmounts, looks) = (slots.get_or_make("a"), slots.get_or_make("a"));
        let turn = unmounts.turn();
        assert_eq!(slots.count(), 1, "somebody may be about to fill it");
        drop(turn);
        assert_eq!(slots.count(), 0);
        drop(unmounts);
        assert!(Arc::ptr_eq(&looks, &slots.get_or_make("a")), "as long as it is held there is no other");
        drop(looks);
        assert!(slots.all().is_empty());
    }
}
