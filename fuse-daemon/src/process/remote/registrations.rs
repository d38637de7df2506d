//! Which blobs are read from which backends: what the process that works is told, and again each that takes its place.

use std::collections::BTreeMap;
use std::sync::Weak;

use super::RemoteState;
use crate::control::{BackendSpec, BlobId};
use crate::process::connection::WorkerConnection;
use crate::process::given::{self, Given};
use crate::process::hosts::{HostCount, Hosts};
use crate::process::message::ToWorker;
use crate::worker::{Place, before_digits};

/// What the next process is to know as well.
pub(super) struct Registered {
    pub(super) blobs: Vec<BlobId>,
    pub(super) backend: BackendSpec,
    place: Place,
}

/// Keeps a backend known for some blobs.
pub struct RemoteRegistration {
    shared: Weak<RemoteState>,
    pub(super) number: u64,
}

impl Drop for RemoteRegistration {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.lock();
        let Some(gone) = state.registrations.remove(&self.number) else { return };
        shared.tell(&ToWorker::Forget { number: self.number });
        // Whatever they call it: a repository has several names.
        let repository = given::repository(&gone.backend);
        let mut others = state.registrations.values();
        let is_used = others.any(|other| given::repository(&other.backend) == repository);
        if let (false, Some(connection)) = (is_used, shared.current()) {
            state.given.take_back(&gone.backend, &connection.sender);
        }
    }
}

impl RemoteState {
    /// Makes a backend known for some blobs: to the process that works now, and to each after it.
    pub(super) fn register(
        &self,
        blobs: &[BlobId],
        backend: &BackendSpec,
        place: Place,
    ) -> RemoteRegistration {
        let mut state = self.lock();
        let number = state.number();
        let registered = Registered { blobs: blobs.to_vec(), backend: backend.clone(), place };
        // Under the lock, so that a process which just starts hears of it once.
        if let Some(connection) = self.current() {
            let state = &mut *state;
            self.introduce(&mut state.given, &mut state.hosts, number, &registered, &connection);
        }
        state.registrations.insert(number, registered);
        RemoteRegistration { shared: Weak::clone(&self.me), number }
    }

    /// Tells a process of a registration, and how its backend is read.
    pub(super) fn introduce(
        &self,
        given: &mut Given,
        hosts: &mut Hosts,
        number: u64,
        registered: &Registered,
        connection: &WorkerConnection,
    ) {
        given.give(&registered.backend, &self.accesses, &connection.sender);
        let message = ToWorker::Register {
            number,
            blobs: registered.blobs.clone(),
            backend: registered.backend.clone(),
            place: registered.place,
            host: hosts.number(&registered.backend),
            connection: given::connection(&registered.backend, &self.accesses),
        };
        connection.sender.send(&message, None);
    }

    /// Tells the process of what has changed in how its backends are read.
    pub(in crate::process) fn give_all(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(connection) = self.current() else { return };
        for registered in state.registrations.values() {
            state.given.give(&registered.backend, &self.accesses, &connection.sender);
        }
    }

    /// The backends that blobs are read from, with a number that each is registered by.
    pub(in crate::process) fn backends(&self) -> BTreeMap<BackendSpec, u64> {
        let state = self.lock();
        let known = state.registrations.iter().filter(|(_, known)| !known.blobs.is_empty());
        known.map(|(number, known)| (canonical(&known.backend), *number)).collect()
    }

    /// What was counted of hosts, with the place of each backend's host there.
    pub(in crate::process) fn counts(&self, backends: &[BackendSpec]) -> (Vec<HostCount>, Vec<usize>) {
        let mut state = self.lock();
        let places = backends.iter().map(|backend| state.hosts.number(backend) as usize).collect();
        (state.hosts.counts(), places)
    }
}

/// A specification in the form that its backend names itself by.
pub(super) fn canonical(spec: &BackendSpec) -> BackendSpec {
    match spec {
        BackendSpec::Registry { repository } => match registry::Repository::parse(repository) {
            Ok(repository) => BackendSpec::Registry { repository: repository.to_string() },
            Err(_) => spec.clone(),
        },
        BackendSpec::Directory { .. } => spec.clone(),
        BackendSpec::HttpDirectory { url } => BackendSpec::HttpDirectory { url: before_digits(url) },
    }
}
