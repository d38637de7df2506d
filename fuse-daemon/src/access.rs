//! How repositories are read: as the broker has said, or where nobody has as our own files say.
//!
//! The broker is the snapshotter, which has the credentials of the node's pods. It hands out values, and asks all the time
//! which of them were refused. If it is gone, what it has handed out stays in use.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use registry::Repository;
use registry::client::{AccessSource, Client, Connection, RepositoryAccess};
use tokio::sync::watch;

/// How long whoever was refused waits for the broker: it may have to ask an API server, a helper and the registry.
const RENEWAL_DEADLINE: Duration = Duration::from_secs(15);

/// After a renewal that brought nothing, the next one: programs that retry at once do not have all these asked each time.
const FRUITLESS_PAUSE: Duration = Duration::from_secs(2);

/// A broker that does not ask again within this is gone: less than it takes to start again would fail reads for its crash.
const BROKER_PAUSE: Duration = RENEWAL_DEADLINE;

/// The values for all repositories.
pub(crate) struct Accesses {
    own: Client,
    inner: Mutex<AccessState>,
    /// Counts what happens to them.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct AccessState {
    known: HashMap<Name, Known>,
    /// Brokers that wait for something to do.
    waiting: usize,
    /// When the last one went, with something to do or without; or when one was said to come.
    left: Option<Instant>,
}

/// A repository: its registry, and its name there.
type Name = (String, String);

struct Known {
    access: Arc<RepositoryAccess>,
    /// Out of our own files, which are read again when it is refused.
    own: bool,
    renewal: Renewal,
    /// How often the values were given.
    given: u64,
    /// When the values last became others.
    changed: Option<Instant>,
    /// When a renewal last brought nothing.
    fruitless: Option<Instant>,
}

/// Whether other values are wanted.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Renewal {
    No,
    Wanted,
    /// And the broker knows.
    Told,
}

impl Accesses {
    /// Nothing has been handed out; `own` reads files.
    pub(crate) fn new(own: Client) -> Self {
        Self { own, inner: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// Tells that something has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// How a host is reached that is no registry, by our own settings.
    pub(crate) fn connection(&self, host: &str) -> Connection {
        self.own.connection(host)
    }

    /// Takes what the broker hands out.
    pub(crate) fn hand_out(&self, repository: &Repository, access: RepositoryAccess) {
        self.put(name_of(repository), access, false);
        tracing::debug!(%repository, "the broker says how it is read");
    }

    /// Somebody has a broker, which is about to ask: what is refused until then waits for it.
    pub(crate) fn expect_broker(&self) {
        self.lock().left = Some(Instant::now());
    }

    /// Reads our own files for repositories that nothing is known of.
    pub(crate) async fn ensure(&self, repository: &Repository) {
        let name = name_of(repository);
        if self.lock().known.contains_key(&name) {
            return;
        }
        let access = self.of_files(repository).await;
        if !self.lock().known.contains_key(&name) {
            self.put(name, access, true);
        }
    }

    /// The repositories that the broker is to renew, as soon as there are some; none after `wait`.
    pub(crate) async fn renewals(&self, wait: Duration) -> Vec<String> {
        let _waits = Waits::new(self);
        let mut changes = self.changes.subscribe();
        let until = tokio::time::Instant::now() + wait;
        loop {
            changes.borrow_and_update();
            let wanted = self.take_wanted();
            if !wanted.is_empty() {
                return wanted;
            }
            match tokio::time::timeout_at(until, changes.changed()).await {
                Ok(Ok(())) => {}
                // The sender lives as long as `self`.
                Ok(Err(_)) | Err(_) => return Vec::new(),
            }
        }
    }

    fn take_wanted(&self) -> Vec<String> {
        let mut inner = self.lock();
        let wanted = inner.known.iter_mut().filter(|(_, known)| known.renewal == Renewal::Wanted);
        let told = wanted.map(|((registry, repository), known)| {
            known.renewal = Renewal::Told;
            format!("{registry}/{repository}")
        });
        told.collect()
    }

    fn put(&self, name: Name, access: RepositoryAccess, own: bool) {
        let mut inner = self.lock();
        let before = inner.known.remove(&name);
        let (given, was_asked) =
            before.as_ref().map_or((0, false), |known| (known.given, known.renewal != Renewal::No));
        let is_same = before.as_ref().is_some_and(|known| *known.access == access);
        let changed = match before {
            Some(known) if is_same => known.changed,
            before => before.map(|_| Instant::now()),
        };
        // Just after a change, what was refused may be what there was before it: then there is nothing else to find.
        let is_settled = changed.is_none_or(|at| at.elapsed() >= FRUITLESS_PAUSE);
        let fruitless = (is_same && was_asked && is_settled).then(Instant::now);
        let (access, given) = (Arc::new(access), given + 1);
        let known = Known { access, own, renewal: Renewal::No, given, changed, fruitless };
        inner.known.insert(name, known);
        drop(inner);
        self.changed();
    }

    async fn of_files(&self, repository: &Repository) -> RepositoryAccess {
        let (access, failure) = self.own.access(repository).await;
        if let Some(error) = failure {
            tracing::warn!(%repository, error = crate::describe(&error), "credentials cannot be read");
        }
        access
    }

    /// Reads our own files for a repository that was read by them: whether there is something else to try now.
    async fn read_files_again(&self, name: &Name) -> bool {
        let (registry, path) = name;
        let Ok(repository) = Repository::parse(&format!("{registry}/{path}")) else { return true };
        let access = self.of_files(&repository).await;
        let is_same = match self.lock().known.get(name) {
            Some(known) if known.own => *known.access == access,
            // What the broker has said meanwhile.
            _ => return true,
        };
        self.put(name.clone(), access, true);
        !is_same
    }

    /// Asks the broker for other values, unless there is none, and waits for them.
    async fn renew_through_broker(&self, name: &Name) {
        let mut changes = self.changes.subscribe();
        let given = {
            let mut inner = self.lock();
            let is_there = inner.waiting > 0 || inner.left.is_some_and(|at| at.elapsed() < BROKER_PAUSE);
            let Some(known) = inner.known.get_mut(name).filter(|_| is_there) else {
                tracing::debug!(registry = name.0, repository = name.1, "no broker to renew credentials");
                return;
            };
            if known.renewal == Renewal::No {
                known.renewal = Renewal::Wanted;
            }
            known.given
        };
        self.changed();
        let is_given = |_: &u64| self.lock().known.get(name).is_none_or(|known| known.given != given);
        if tokio::time::timeout(RENEWAL_DEADLINE, changes.wait_for(is_given)).await.is_err() {
            tracing::warn!(
                registry = name.0,
                repository = name.1,
                "the broker did not renew credentials in time"
            );
            if let Some(known) = self.lock().known.get_mut(name) {
                known.renewal = Renewal::No;
                known.fruitless = Some(Instant::now());
            }
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn lock(&self) -> MutexGuard<'_, AccessState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessSource for Accesses {
    fn access(&self, registry: &str, repository: &str) -> Option<Arc<RepositoryAccess>> {
        let name = (registry.to_owned(), repository.to_owned());
        self.lock().known.get(&name).map(|known| Arc::clone(&known.access))
    }

    fn renew<'a>(&'a self, registry: &'a str, repository: &'a str) -> BoxFuture<'a, ()> {
        let renew = async move {
            let name = (registry.to_owned(), repository.to_owned());
            let own = match self.lock().known.get(&name) {
                Some(known) if known.fruitless.is_some_and(|at| at.elapsed() < FRUITLESS_PAUSE) => return,
                Some(known) => known.own,
                None => return,
            };
            if own && self.read_files_again(&name).await {
                return;
            }
            // Where it came before the broker, whose pods may have what our files lack.
            self.renew_through_broker(&name).await;
        };
        renew.boxed()
    }
}

fn name_of(repository: &Repository) -> Name {
    (repository.host().to_owned(), repository.name().to_owned())
}

/// A broker that waits for something to do.
struct Waits<'a>(&'a Accesses);

impl<'a> Waits<'a> {
    fn new(accesses: &'a Accesses) -> Self {
        accesses.lock().waiting += 1;
        Self(accesses)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.waiting -= 1;
        inner.left = Some(Instant::now());
    }
}
