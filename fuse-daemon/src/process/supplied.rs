//! How repositories are read, as the front has said: the worker has no files with credentials.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use registry::client::{AccessSource, RepositoryAccess};

use super::ask::FrontClient;
use super::message::Question;

/// See the module.
pub(super) struct Supplied {
    asker: Arc<FrontClient>,
    /// By registry and repository.
    known: Mutex<HashMap<(String, String), Arc<RepositoryAccess>>>,
}

impl Supplied {
    pub(super) fn new(asker: Arc<FrontClient>) -> Self {
        Self { asker, known: Mutex::default() }
    }

    /// Reads a repository so from now on, or not at all.
    pub(super) fn set(&self, registry: String, repository: String, access: Option<RepositoryAccess>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match access {
            Some(access) => known.insert((registry, repository), Arc::new(access)),
            None => known.remove(&(registry, repository)),
        };
    }
}

impl AccessSource for Supplied {
    fn access(&self, registry: &str, repository: &str) -> Option<Arc<RepositoryAccess>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(registry.to_owned(), repository.to_owned())).cloned()
    }

    fn renew<'a>(&'a self, registry: &'a str, repository: &'a str) -> BoxFuture<'a, ()> {
        let question = Question::Renew { registry: registry.to_owned(), repository: repository.to_owned() };
        // What was found is said before the answer.
        async { drop(self.asker.ask(question).await) }.boxed()
    }
}
