//! Authentication: what to put into `Authorization`, learnt from a registry's challenges.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use http::HeaderValue;

use super::access::{AccessSource, Connection, Place};
use super::challenge::{Challenge, Scopes};
use super::credentials::{CredentialStore, Credentials, Found};
use super::error::Error;
use super::keyring::Keyring;
use super::token::{KnownHeader, fetched, make};
use super::transport::Transport;

/// How many headers of a host are kept before old ones are looked for.
const SLOTS_BEFORE_SWEEP: usize = 1024;

/// Who asks for what: one host's API on behalf of one repository.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    /// The registry that the repository is in, for which the host may stand in.
    pub(super) registry: &'a str,
    pub(super) host: &'a str,
    /// How a token service is reached, where settings of it are not looked at.
    pub(super) connection: Option<&'a Arc<Connection>>,
    /// Where the registry is reached: its scheme decides whether a token may be fetched in the clear.
    pub(super) secure: bool,
    pub(super) repository: &'a str,
    pub(super) scopes: &'a Scopes,
}

/// Knows, host by host, how to authenticate.
pub(super) struct Authenticator {
    /// Asked last.
    store: Option<CredentialStore>,
    /// Asked first.
    keyring: Option<Arc<dyn Keyring>>,
    /// Asked alone.
    source: Option<Arc<dyn AccessSource>>,
    hosts: Mutex<HashMap<String, Arc<Host>>>,
}

/// What is known about one host. No lock here is held over a wait.
#[derive(Default)]
struct Host {
    challenge: Mutex<Option<Challenge>>,
    /// Where the credentials last used came from.
    origin: Mutex<String>,
    slots: Mutex<HashMap<Purpose, Arc<Slot>>>,
}

/// What one header is good for: a repository has its own credentials, and a token its scopes.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Purpose {
    repository: String,
    scopes: Scopes,
}

/// The header for one purpose. Locked while it is fetched, so that requests which need the same one wait for one
/// fetch, and no others.
type Slot = tokio::sync::Mutex<Option<KnownHeader>>;

impl Host {
    fn challenge(&self) -> Option<Challenge> {
        lock(&self.challenge).clone()
    }

    fn slot(&self, request: Request<'_>) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        if slots.len() >= SLOTS_BEFORE_SWEEP {
            // In use, or locked by a fetch: stays. What else is thrown away is fetched again when it is needed.
            let fresh = |slot: &Arc<Slot>| {
                slot.try_lock().is_ok_and(|known| known.as_ref().is_some_and(KnownHeader::is_fresh))
            };
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || fresh(slot));
        }
        if slots.len() >= 2 * SLOTS_BEFORE_SWEEP {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(Purpose::of(request)).or_default().clone()
    }
}

impl Purpose {
    fn of(request: Request<'_>) -> Self {
        Self { repository: request.repository.to_owned(), scopes: request.scopes.clone() }
    }
}

impl Authenticator {
    pub(super) fn new(
        store: Option<CredentialStore>,
        keyring: Option<Arc<dyn Keyring>>,
        source: Option<Arc<dyn AccessSource>>,
    ) -> Self {
        Self { store, keyring, source, hosts: Mutex::default() }
    }

    fn host(&self, host: &str) -> Arc<Host> {
        lock(&self.hosts).entry(host.to_owned()).or_default().clone()
    }

    /// The header to send first: what worked before, nothing on the first contact.
    pub(super) async fn authorization(
        &self,
        transport: &Transport,
        request: Request<'_>,
    ) -> Result<Option<HeaderValue>, Error> {
        let host = self.host(request.host);
        match host.challenge() {
            None => Ok(None),
            Some(challenge) => self.satisfy(transport, &host, request, &challenge, None).await,
        }
    }

    /// The header to send after a 401 to `rejected`; `None` if there is nothing else to try.
    pub(super) async fn challenged(
        &self,
        transport: &Transport,
        request: Request<'_>,
        challenge: Challenge,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Error> {
        let host = self.host(request.host);
        *lock(&host.challenge) = Some(challenge.clone());
        let refusal = rejected.map(|header| Refusal { header, is_forbidden: false });
        let header = self.satisfy(transport, &host, request, &challenge, refusal).await?;
        Ok(header.filter(|header| Some(header) != rejected))
    }

    /// The header to send after a 403 to `rejected`, by which some registries (ECR) say that it has ended: only if it
    /// was taken before, else 403 means what it says.
    pub(super) async fn forbidden(
        &self,
        transport: &Transport,
        request: Request<'_>,
        rejected: &HeaderValue,
    ) -> Result<Option<HeaderValue>, Error> {
        let host = self.host(request.host);
        let Some(challenge) = host.challenge() else { return Ok(None) };
        let slot = host.slot(request);
        // One that was renewed meanwhile is not the rejected one: that is tried.
        let never_worked = slot
            .lock()
            .await
            .as_ref()
            .is_some_and(|known| known.header == *rejected && !known.worked && !known.fetched);
        if never_worked {
            return Ok(None);
        }
        let refusal = Refusal { header: rejected, is_forbidden: true };
        let header = self.satisfy(transport, &host, request, &challenge, Some(refusal)).await?;
        Ok(header.filter(|header| header != rejected))
    }

    /// Notes that the registry took `header`.
    pub(super) async fn accepted(&self, request: Request<'_>, header: &HeaderValue) {
        let slot = self.host(request.host).slot(request);
        // A slot that is locked is being fetched: its next header is another one.
        if let Ok(mut known) = slot.try_lock()
            && let Some(known) = known.as_mut().filter(|known| known.header == *header)
        {
            known.worked = true;
        }
    }

    /// Where credentials for `host` came from, to say when they are refused.
    pub(super) fn advice(&self, host: &str) -> String {
        let host = self.host(host);
        let origin = lock(&host.origin);
        if origin.is_empty() { String::new() } else { format!("; {origin}") }
    }

    async fn satisfy(
        &self,
        transport: &Transport,
        host: &Host,
        request: Request<'_>,
        challenge: &Challenge,
        refusal: Option<Refusal<'_>>,
    ) -> Result<Option<HeaderValue>, Error> {
        let rejected = refusal.map(|refusal| refusal.header);
        let slot = host.slot(request);
        let mut slot = slot.lock().await;
        if let Some(known) = slot.as_ref().filter(|known| known.is_fresh() && Some(&known.header) != rejected)
        {
            return Ok(Some(known.header.clone()));
        }
        // Fetched by the holder, and refused before it ever worked: another one would be refused alike.
        let is_refused = slot
            .as_ref()
            .is_some_and(|known| known.fetched && !known.worked && Some(&known.header) == rejected);
        let mut failure = None;
        if let (Some(keyring), Challenge::Bearer { realm, service, scopes }, false) =
            (&self.keyring, challenge, is_refused)
        {
            let scopes = request.scopes.clone().and(scopes);
            match fetched(keyring.as_ref(), request, realm, service.as_deref(), &scopes).await {
                Ok(Some(known)) => {
                    *lock(&host.origin) = keyring.name();
                    let header = known.header.clone();
                    *slot = Some(known);
                    return Ok(Some(header));
                }
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        let made = match &self.source {
            Some(source) => {
                let never_worked = |known: &KnownHeader| Some(&known.header) == rejected && !known.worked;
                let hopeless = refusal.is_some_and(|refusal| refusal.is_forbidden)
                    || slot.as_ref().is_some_and(never_worked);
                // Without its type: what calls this is deep in others already.
                let answer = |credentials| make(transport, request, challenge, credentials).boxed();
                supplied(source.as_ref(), host, request, answer, rejected, hopeless).await?
            }
            None => {
                let found = self.find(request, is_refused, failure).await?;
                lock(&host.origin).clone_from(&found.origin);
                if is_refused && found.credentials == Credentials::Anonymous {
                    return Ok(None);
                }
                make(transport, request, challenge, found.credentials).boxed().await?
            }
        };
        let header = made.as_ref().map(|known| known.header.clone());
        *slot = made;
        Ok(header)
    }

    /// The credentials to use: the keyring's, or where it has none those of files. `failure` is why the keyring's holder
    /// fetched no token, and `is_refused` that the one it fetched is no good.
    async fn find(
        &self,
        request: Request<'_>,
        is_refused: bool,
        failure: Option<Error>,
    ) -> Result<Found, Error> {
        let nobody = |origin| Found { credentials: Credentials::Anonymous, origin };
        let mut origin = "no credentials are configured".to_owned();
        if let Some(keyring) = &self.keyring {
            let credentials = keyring.credentials(request.host).await?;
            match (failure, credentials) {
                (_, Credentials::Anonymous) => {}
                (Some(error), _) => return Err(error),
                // The holder has credentials, and they are not enough: nobody else's are used instead.
                (None, _) if is_refused => return Ok(nobody(keyring.name())),
                (None, credentials) => return Ok(Found { credentials, origin: keyring.name() }),
            }
            origin = format!("no credentials in {}", keyring.name());
        }
        match &self.store {
            Some(store) => Ok(store.find(request.host, request.repository).await?),
            None => Ok(nobody(origin)),
        }
    }
}

/// What is made of the credentials that `source` has, of others if these are refused. `hopeless`: what was made of them last
/// has been refused in a way that says that.
async fn supplied<F: Future<Output = Result<Option<KnownHeader>, Error>>>(
    source: &dyn AccessSource,
    host: &Host,
    request: Request<'_>,
    make: impl Fn(Credentials) -> F,
    rejected: Option<&HeaderValue>,
    hopeless: bool,
) -> Result<Option<KnownHeader>, Error> {
    let find = || {
        let access = source.access(request.registry, request.repository);
        let is_asked = |place: &&Place| place.host == request.host;
        let found = access.iter().flat_map(|access| &access.places).find(is_asked);
        let nobody = "no credentials were handed out".to_owned();
        let found = found.map(|place| place.credentials.clone());
        let found = found.unwrap_or(Found { credentials: Credentials::Anonymous, origin: nobody });
        lock(&host.origin).clone_from(&found.origin);
        found.credentials
    };
    if hopeless {
        source.renew(request.registry, request.repository).await;
    }
    let found = find();
    let made = make(found.clone()).await;
    let is_no_good = match &made {
        Ok(known) => known.as_ref().is_none_or(|known| Some(&known.header) == rejected),
        Err(error) => error.is_denied(),
    };
    if hopeless || !is_no_good {
        return made;
    }
    source.renew(request.registry, request.repository).await;
    let others = find();
    // The same ones again would be refused again, and count as another wrong password where accounts are locked after some.
    if others == found { made } else { make(others).await }
}

/// A header that was refused.
#[derive(Clone, Copy)]
struct Refusal<'a> {
    header: &'a HeaderValue,
    /// By 403: another token for the same credentials would be refused alike.
    is_forbidden: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
