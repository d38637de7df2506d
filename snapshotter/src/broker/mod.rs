//! The node's broker of registries: it has what they are read with, and hands it out by value.
//!
//! ```text
//!   hosts.toml, config.json, helpers ──┐
//!   pull secrets of the node's pods ───┴──> resolve ──HEAD where there are several──> values ──> the daemon
//!                                              ^                                                   │
//!                                              └────────────── refused, or a file changed ─────────┘
//! ```
//!
//! The daemon needs no file and no credentials of its own then. Values are in memory alone, here and there.

mod files;
mod hand_out;
mod trial;

pub(crate) use hand_out::repositories;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use registry::client::{AccessSource, Client, ClientConfig, Credentials, Found, Place, RepositoryAccess};
use registry::digest::Digest;
use registry::reference::Repository;
use tracing::{debug, warn};

use crate::daemon::describe;
use crate::kubernetes::Kubernetes;

/// How long finding out may take: an API server, a helper and the registry may each have to answer.
const DEADLINE: Duration = Duration::from_secs(12);

/// What is known of all repositories that are read on this node.
pub(crate) struct Broker {
    config: ClientConfig,
    /// For trials and for what is no registry. Its own files are not looked at.
    client: Client,
    kubernetes: Option<Kubernetes>,
    known: Mutex<HashMap<Repository, Arc<KnownRepository>>>,
}

/// What is known of one repository.
#[derive(Default)]
struct KnownRepository {
    values: Mutex<Values>,
    /// Held by who finds out.
    finding: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Values {
    access: Option<Arc<RepositoryAccess>>,
    /// When it began to be found out, the last time that this came to an end.
    began: Option<Instant>,
    /// Something that it has, to try credentials with.
    blob: Option<Digest>,
    /// Why credentials for it could not be read, if they could not.
    failure: Option<String>,
}

impl Broker {
    /// Registries are reached by `config`. Nothing is read yet.
    ///
    /// # Errors
    ///
    /// The settings are not valid.
    pub(crate) fn new(
        config: ClientConfig,
        kubernetes: impl FnOnce(Client) -> Option<Kubernetes>,
    ) -> Result<Self, registry::client::Error> {
        let client = Client::new(config.clone())?;
        let kubernetes = kubernetes(client.clone());
        Ok(Self { config, client, kubernetes, known: Mutex::default() })
    }

    /// A client that reads as this broker says.
    pub(crate) fn reader(self: &Arc<Self>) -> Client {
        self.client.with_access(Arc::clone(self) as Arc<dyn AccessSource>)
    }

    /// Finds out how a repository is read; `blob` is something that it should have. Of many who want that at once one does
    /// it, for all that came before it began.
    pub(crate) async fn find_out(&self, repository: &Repository, blob: Option<&Digest>) {
        let known = self.known(repository);
        if let Some(blob) = blob {
            known.lock().blob = Some(blob.clone());
        }
        self.find_out_for_all(repository, &known, Instant::now()).await;
    }

    /// Finds out how repositories are read of which nothing is known, and gives up soon.
    pub(crate) async fn find_out_new(&self, repositories: &[Repository], blob: Option<&Digest>) {
        let is_new = |repository: &&Repository| self.values(repository).is_none();
        let found = repositories.iter().filter(is_new).map(|new| self.find_out(new, blob));
        futures::future::join_all(found).await;
    }

    /// The values for a repository, as far as they are known.
    pub(crate) fn values(&self, repository: &Repository) -> Option<Arc<RepositoryAccess>> {
        let known = self.all().get(repository).map(Arc::clone)?;
        known.lock().access.clone()
    }

    /// Why credentials for a repository could not be read, if they could not: then a refusal says nothing.
    pub(crate) fn failure(&self, repository: &Repository) -> Option<String> {
        let known = self.all().get(repository).map(Arc::clone)?;
        known.lock().failure.clone()
    }

    async fn find_out_for_all(&self, repository: &Repository, known: &KnownRepository, wanted: Instant) {
        let _alone = known.finding.lock().await;
        let (blob, before) = {
            let values = known.lock();
            if values.began.is_some_and(|began| began >= wanted) {
                return;
            }
            (values.blob.clone(), values.access.clone())
        };
        let began = Instant::now();
        let resolve = self.resolve(repository, blob.as_ref(), before.as_deref());
        let resolved = tokio::time::timeout(DEADLINE, resolve).await;
        let mut values = known.lock();
        // Only now: who is given up before has done it for nobody.
        values.began = Some(began);
        let Ok((access, failure)) = resolved else {
            // What is known is old then: that a registry refuses it says nothing.
            values.failure = Some("it took too long to find out how the repository can be read".to_owned());
            drop(values);
            return warn!(%repository, "it takes too long to find out how a repository can be read");
        };
        if values.access.as_deref() != Some(&access) {
            debug!(%repository, ?access, "how a repository is read");
            values.access = Some(Arc::new(access));
        }
        values.failure = failure;
    }

    /// How a repository is read now, `before` being what was said last.
    async fn resolve(
        &self,
        repository: &Repository,
        blob: Option<&Digest>,
        before: Option<&RepositoryAccess>,
    ) -> (RepositoryAccess, Option<String>) {
        // A client of its own, which has read no file yet.
        let files = match Client::new(self.config.clone()) {
            Ok(client) => client,
            Err(error) => return (RepositoryAccess::default(), Some(describe(&error))),
        };
        let secrets = async {
            match &self.kubernetes {
                Some(kubernetes) => kubernetes.secrets().await,
                None => Arc::default(),
            }
        };
        let ((mut access, failure), secrets) = tokio::join!(files.access(repository), secrets);
        if let Some(error) = &failure {
            warn!(%repository, error = describe(error), "credentials cannot be read");
        }
        for place in &mut access.places {
            let mut candidates = secrets.of(&place.host, repository.name(), repository);
            candidates.push(place.credentials.clone());
            // Registries refuse credentials that they do not know, also for what everybody may read.
            candidates
                .push(Found { credentials: Credentials::Anonymous, origin: "no credentials".to_owned() });
            let last = before.and_then(|before| before.places.iter().find(|known| known.host == place.host));
            // What a file or a helper said last may well be right still, and they do not say it now.
            if let Some(last) = last.filter(|_| failure.is_some()) {
                candidates.push(trial::again(&last.credentials));
            }
            self.choose(repository, place, candidates, blob, last).await;
        }
        (access, failure.map(|error| describe(&error)).or_else(|| secrets.failure_of(repository)))
    }

    /// Gives a place those credentials that it takes.
    async fn choose(
        &self,
        repository: &Repository,
        place: &mut Place,
        mut candidates: Vec<Found>,
        blob: Option<&Digest>,
        last: Option<&Place>,
    ) {
        // What it took last is tried first, and kept if nothing can be tried; none at all come after all others.
        let kept = last.map(|last| &last.credentials.credentials);
        candidates.sort_by_key(|Found { credentials, .. }| {
            (*credentials == Credentials::Anonymous, Some(credentials) != kept)
        });
        let mut seen: Vec<Credentials> = Vec::new();
        candidates.retain(|candidate| {
            let is_new = !seen.contains(&candidate.credentials);
            seen.push(candidate.credentials.clone());
            is_new
        });
        place.credentials = match (blob, candidates.len()) {
            (Some(blob), 2..) => trial::best(&self.client, repository, place, candidates, blob).await,
            _ => candidates.swap_remove(0),
        };
    }

    fn known(&self, repository: &Repository) -> Arc<KnownRepository> {
        Arc::clone(self.all().entry(repository.clone()).or_default())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Repository, Arc<KnownRepository>>> {
        // A map stays whole whatever its user does.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownRepository {
    fn lock(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessSource for Broker {
    fn access(&self, registry: &str, repository: &str) -> Option<Arc<RepositoryAccess>> {
        self.values(&Repository::parse(&format!("{registry}/{repository}")).ok()?)
    }

    fn renew<'a>(&'a self, registry: &'a str, repository: &'a str) -> BoxFuture<'a, ()> {
        let renew = async move {
            let Ok(repository) = Repository::parse(&format!("{registry}/{repository}")) else { return };
            self.find_out(&repository, None).await;
        };
        renew.boxed()
    }
}
