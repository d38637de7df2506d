//! Authentication: what to put into `Authorization`, learnt from a registry's challenges.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;

use super::challenge::{Challenge, Scopes};
use super::credentials::{CredentialStore, Credentials, Found};
use super::error::{Error, Target};
use super::keyring::{Keyring, TokenRequest};
use super::transport::{Exchange, Transport};

/// What the token specification says a token without `expires_in` lasts.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);

/// A token is renewed this long before its end, so that no request arrives with a dead one.
const RENEWAL_MARGIN: Duration = Duration::from_secs(10);

/// How many headers of a host are kept before old ones are looked for.
const SLOTS_BEFORE_SWEEP: usize = 1024;

/// The longest answer read from a token service.
const TOKEN_ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// Who asks for what: one host's API on behalf of one repository.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) host: &'a str,
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
type Slot = tokio::sync::Mutex<Option<Known>>;

struct Known {
    header: HeaderValue,
    /// When it must be renewed.
    expires: Option<Instant>,
    /// Whether the registry has taken it: only then does a refusal with 403 mean that it has ended since.
    worked: bool,
    /// Whether a keyring's holder fetched it: if it is no good, that need not be for want of credentials.
    fetched: bool,
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|at| at > Instant::now())
    }
}

impl Host {
    fn challenge(&self) -> Option<Challenge> {
        lock(&self.challenge).clone()
    }

    fn slot(&self, request: Request<'_>) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        if slots.len() >= SLOTS_BEFORE_SWEEP {
            // In use, or locked by a fetch: stays. What else is thrown away is fetched again when it is needed.
            let fresh = |slot: &Arc<Slot>| {
                slot.try_lock().is_ok_and(|known| known.as_ref().is_some_and(Known::is_fresh))
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
    pub(super) fn new(store: Option<CredentialStore>, keyring: Option<Arc<dyn Keyring>>) -> Self {
        Self { store, keyring, hosts: Mutex::default() }
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
        let header = self.satisfy(transport, &host, request, &challenge, rejected).await?;
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
        let header = self.satisfy(transport, &host, request, &challenge, Some(rejected)).await?;
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
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Error> {
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
        let found = self.find(request, is_refused, failure).await?;
        *lock(&host.origin) = found.origin;
        if is_refused && found.credentials == Credentials::Anonymous {
            return Ok(None);
        }
        let known = match (challenge, found.credentials) {
            (_, Credentials::RegistryToken(token)) => {
                // Read again for every request: whoever hands it out renews it in the file.
                let header = secret_header(&format!("Bearer {token}"), request)?;
                Known { header, expires: Some(Instant::now()), worked: true, fetched: false }
            }
            (Challenge::Basic, Credentials::Basic { user, password }) => Known {
                header: basic_header(&user, &password, request)?,
                expires: None,
                worked: false,
                fetched: false,
            },
            (Challenge::Basic, _) => {
                *slot = None;
                return Ok(None);
            }
            (Challenge::Bearer { realm, service, scopes }, credentials) => {
                let wanted = request.scopes.clone().and(scopes);
                let question =
                    Question { request, realm, service: service.as_deref(), scopes: wanted, credentials };
                question.ask(transport).await?
            }
        };
        let header = known.header.clone();
        *slot = Some(known);
        Ok(Some(header))
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

/// A token that the holder of `keyring` fetches, if it does that.
async fn fetched(
    keyring: &dyn Keyring,
    request: Request<'_>,
    realm: &str,
    service: Option<&str>,
    scopes: &Scopes,
) -> Result<Option<Known>, Error> {
    // Whoever is on the way would read what the holder shows the token service; asking it ourselves fails for that.
    if request.secure && !realm.starts_with("https://") {
        return Ok(None);
    }
    let question = TokenRequest {
        host: request.host.to_owned(),
        realm: realm.to_owned(),
        service: service.unwrap_or_default().to_owned(),
        scopes: scopes.iter().map(|scope| scope.to_string()).collect(),
    };
    let Some(token) = keyring.token(question).await? else { return Ok(None) };
    let header = secret_header(&format!("Bearer {}", token.token), request)?;
    Ok(Some(Known {
        header,
        expires: Some(end_of(Instant::now(), token.life)),
        worked: false,
        fetched: true,
    }))
}

/// When a token must be renewed that was asked for at `started` and lasts `life`.
fn end_of(started: Instant, life: Duration) -> Instant {
    // A short-lived token keeps half of its life; a later 401 renews it anyway.
    let usable = life.saturating_sub(RENEWAL_MARGIN).max(life / 2);
    started.checked_add(usable).unwrap_or(started + DEFAULT_TOKEN_LIFE)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A request to a token service.
struct Question<'a> {
    request: Request<'a>,
    realm: &'a str,
    service: Option<&'a str>,
    scopes: Scopes,
    credentials: Credentials,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

impl Question<'_> {
    async fn ask(&self, transport: &Transport) -> Result<Known, Error> {
        let mut target = Target {
            method: Method::GET,
            host: self.request.host.to_owned(),
            repository: self.request.repository.to_owned(),
            item: format!("token for {} from {}", self.scopes, self.realm),
            redirected_to: None,
        };
        let realm = Url::parse(self.realm)
            .map_err(|e| Error::protocol(&target, format!("the registry's token realm is no URL: {e}")))?;
        if self.request.secure && realm.scheme() != "https" {
            let reason = "the registry is reached by HTTPS and names a token realm without it: refused, credentials \
                          would travel in the clear";
            return Err(Error::protocol(&target, reason));
        }
        let exchange = match &self.credentials {
            Credentials::IdentityToken(token) => {
                self.post(&realm, &[("grant_type", "refresh_token"), ("refresh_token", token)])
            }
            Credentials::Basic { user, password } => {
                self.get(&realm, Some((user, basic_header(user, password, self.request)?)))
            }
            _ => self.get(&realm, None),
        };
        target.method = exchange.method.clone();
        let started = Instant::now();
        let mut response = transport.exchange_retrying(&target, &exchange).await?;
        if let Credentials::Basic { user, password } = &self.credentials
            && matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
        {
            let form =
                [("grant_type", "password"), ("username", user.as_str()), ("password", password.as_str())];
            let exchange = self.post(&realm, &form);
            target.method = Method::POST;
            response = transport.exchange_retrying(&target, &exchange).await?;
        }
        let response = response.expect(&[StatusCode::OK], "").await?;
        let body = response.body(TOKEN_ANSWER_LIMIT_BYTES).await?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|e| Error::protocol(&target, format!("the token service's answer: {e}")))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token =
            token.ok_or_else(|| Error::protocol(&target, "the token service's answer has no token"))?;
        let life =
            answer.expires_in.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(DEFAULT_TOKEN_LIFE);
        let expires = end_of(started, life);
        let header = secret_header(&format!("Bearer {token}"), self.request)?;
        Ok(Known { header, expires: Some(expires), worked: false, fetched: false })
    }

    fn get(&self, realm: &Url, basic: Option<(&str, HeaderValue)>) -> Exchange {
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(self.service.map(|service| ("service", service)));
            query.extend_pairs(self.scopes.iter().map(|scope| ("scope", scope)));
            query.extend_pairs(basic.as_ref().map(|(user, _)| ("account", *user)));
        }
        let mut exchange = Exchange::new(Method::GET, url);
        exchange.headers.extend(basic.map(|(_, header)| (AUTHORIZATION, header)));
        exchange
    }

    fn post(&self, realm: &Url, secret: &[(&str, &str)]) -> Exchange {
        // A URL's query has the form encoding that the body needs.
        let mut form = realm.clone();
        form.set_query(None);
        {
            let mut pairs = form.query_pairs_mut();
            pairs.extend_pairs(secret);
            pairs.append_pair("client_id", "nydus-cluster");
            pairs.extend_pairs(self.service.map(|service| ("service", service)));
            pairs.append_pair("scope", &self.scopes.to_string());
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let body = form.query().unwrap_or_default().to_owned().into();
        Exchange { headers, body: Some(body), ..Exchange::new(Method::POST, realm.clone()) }
    }
}

fn basic_header(user: &str, password: &str, request: Request<'_>) -> Result<HeaderValue, Error> {
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))), request)
}

fn secret_header(text: &str, request: Request<'_>) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(text).map_err(|_| Error::Config {
        what: format!("credentials for {}", request.host),
        reason: "they cannot be put into a header".to_owned(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}
