//! What a worker's process is given of how backends are read: values, as it has no files.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use registry::Repository;
use registry::client::{AccessSource, Connection, RepositoryAccess};
use reqwest::Url;

use super::message::ToWorker;
use super::remote::RemoteState;
use super::wire::Sender;
use crate::access::Accesses;
use crate::control::BackendSpec;
use crate::worker::host_of;

/// What a process was told last, by registry and repository.
#[derive(Default)]
pub(super) struct Given(HashMap<(String, String), Arc<RepositoryAccess>>);

impl Given {
    /// Says how a backend is read, unless it was said.
    pub(super) fn give(&mut self, backend: &BackendSpec, accesses: &Accesses, to: &Sender) {
        let Some(repository) = repository(backend) else { return };
        let Some(access) = accesses.access(repository.host(), repository.name()) else { return };
        let name = (repository.host().to_owned(), repository.name().to_owned());
        if self.0.get(&name).is_some_and(|given| Arc::ptr_eq(given, &access)) {
            return;
        }
        let (registry, repository) = name.clone();
        let message = ToWorker::Access { registry, repository, access: Some((*access).clone()) };
        to.send(&message, None);
        self.0.insert(name, access);
    }

    /// Has the process forget how a backend is read that nobody reads any longer.
    pub(super) fn take_back(&mut self, backend: &BackendSpec, from: &Sender) {
        let Some(repository) = repository(backend) else { return };
        let (registry, repository) = (repository.host().to_owned(), repository.name().to_owned());
        if self.0.remove(&(registry.clone(), repository.clone())).is_some() {
            from.send(&ToWorker::Access { registry, repository, access: None }, None);
        }
    }
}

/// The repository of a backend, if it is one.
pub(super) fn repository(backend: &BackendSpec) -> Option<Repository> {
    match backend {
        BackendSpec::Registry { repository } => Repository::parse(repository).ok(),
        BackendSpec::Directory { .. } | BackendSpec::HttpDirectory { .. } => None,
    }
}

/// How the host of an HTTP directory is reached.
pub(super) fn connection(backend: &BackendSpec, accesses: &Accesses) -> Option<Connection> {
    let BackendSpec::HttpDirectory { url } = backend else { return None };
    Some(accesses.connection(&host_of(&Url::parse(url).ok()?)?))
}

/// Tells the process of what changes, as long as there is a worker.
pub(super) async fn follow(shared: Weak<RemoteState>) {
    let Some(mut changes) = shared.upgrade().map(|shared| shared.accesses().changes()) else { return };
    while changes.changed().await.is_ok() {
        let Some(shared) = shared.upgrade() else { return };
        shared.give_all();
    }
}
