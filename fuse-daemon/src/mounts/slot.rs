//! One id of the table: what is served under it, and whose turn it is to change that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Mounted;
use super::table::TableError;
use crate::control::{BackendSpec, MountRequest};
use crate::process::RemoteWorker;

/// See the module.
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
