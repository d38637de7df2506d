//! One request and its answer: connections, deadlines, authentication, redirects.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Url;
use reqwest::dns::Resolve;
use tokio_util::task::TaskTracker;

use super::access::{AccessSource, Connection};
use super::auth::{Authenticator, Request};
use super::certs_dir::CertsDir;
use super::challenge::{Challenge, Scopes};
use super::config::ClientConfig;
use super::connections::{HttpClient, KnownRegistries};
use super::credentials::CredentialStore;
use super::endpoint::Endpoint;
use super::error::{Error, Target};
use super::keyring::Keyring;
use super::lane::Lane;
use super::outgoing::{Progress, Watched};
use super::places::headers_of;
use super::redirects::Redirects;
use super::response::Response;
use super::retry::Retry;

/// How many redirects are followed: registries use one, to an object store.
const REDIRECTS_LIMIT: usize = 5;

/// How often a request is repeated with new credentials after a 401.
const CHALLENGES_LIMIT: usize = 2;

/// A request as it goes out, without credentials.
pub(super) struct Exchange {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    /// How long the answer may take when all is sent, where that is more than the idle deadline.
    pub(super) patience: Option<Duration>,
    /// How the host is reached, where that is not what the settings say of it.
    pub(super) connection: Option<Arc<Connection>>,
    /// On which connections it goes, where it is an upload's.
    pub(super) lane: Option<Arc<Lane>>,
}

impl Exchange {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
            patience: None,
            connection: None,
            lane: None,
        }
    }
}

/// Clients by what makes their TLS differ, and what is known about authentication.
pub(super) struct Transport {
    pub(super) config: ClientConfig,
    pub(super) certs: Option<Arc<CertsDir>>,
    /// Who says how repositories are read, in the place of files.
    pub(super) source: Option<Arc<dyn AccessSource>>,
    /// Who finds the addresses of hosts, in the place of the system.
    pub(super) resolver: Option<Arc<dyn Resolve>>,
    auth: Authenticator,
    /// Where blobs were redirected to with these credentials: whoever has others asks the registry, which may refuse.
    redirects: Redirects,
    /// Uploads that are open or are being given up.
    pub(super) uploads: TaskTracker,
    pub(super) known: Arc<KnownRegistries>,
}

impl Transport {
    pub(super) fn new(config: ClientConfig) -> Self {
        let store = CredentialStore::new(config.docker_config_file(), config.timeouts.credential_helper);
        let certs = Some(config.certs_dirs()).filter(|roots| !roots.is_empty());
        let certs = certs.map(|roots| Arc::new(CertsDir::new(roots)));
        let auth = Authenticator::new(Some(store), None, None);
        let (redirects, uploads) = (Redirects::default(), TaskTracker::new());
        Self { config, certs, source: None, resolver: None, auth, redirects, uploads, known: Arc::default() }
    }

    /// Connections of its own, by other settings.
    pub(super) fn with_config(&self, config: ClientConfig) -> Self {
        Self { uploads: self.uploads.clone(), ..Self::new(config) }
    }

    /// The same connections, for what `source` says and no file.
    pub(super) fn with_source(&self, source: Arc<dyn AccessSource>) -> Self {
        let auth = Authenticator::new(None, None, Some(Arc::clone(&source)));
        Self {
            config: self.config.clone(),
            certs: None,
            source: Some(source),
            resolver: self.resolver.clone(),
            auth,
            redirects: Redirects::default(),
            uploads: self.uploads.clone(),
            known: Arc::clone(&self.known),
        }
    }

    /// Connections of its own, to addresses that `resolver` finds.
    pub(super) fn with_resolver(&self, resolver: Arc<dyn Resolve>) -> Self {
        Self { resolver: Some(resolver), ..self.with_config(self.config.clone()) }
    }

    /// The same connections, used with the credentials of `keyring`; where it has none, with the files' if `fall_back`.
    pub(super) fn with_keyring(&self, keyring: Arc<dyn Keyring>, fall_back: bool) -> Self {
        let config = self.config.clone();
        let store = CredentialStore::new(config.docker_config_file(), config.timeouts.credential_helper);
        let auth = Authenticator::new(fall_back.then_some(store), Some(keyring), None);
        Self {
            config,
            certs: self.certs.clone(),
            source: None,
            resolver: self.resolver.clone(),
            auth,
            redirects: Redirects::default(),
            uploads: self.uploads.clone(),
            known: Arc::clone(&self.known),
        }
    }

    /// Notes that the mirror `mirror` failed to serve `target` with `error`.
    pub(super) fn mirror_failed(&self, mirror: &str, target: &Target, error: &Error) {
        self.known.mirrors.failed(mirror, target, error);
    }

    /// Sends `exchange` once, without credentials of its own, and waits for the head of the answer.
    async fn exchange(&self, target: &Target, exchange: &Exchange) -> Result<Response, Error> {
        let idle = self.config.timeouts.idle;
        let patience = exchange.patience.unwrap_or(idle);
        let url = &exchange.url;
        let host = authority(url);
        let connection = exchange.connection.clone().unwrap_or_else(|| self.connection_to(&host));
        let lane = exchange.lane.as_deref();
        let HttpClient { client, sockets } =
            self.client(target, &host, url.scheme() == "https", connection, lane)?;
        let is_sent = exchange.body.as_ref().is_none_or(Bytes::is_empty);
        let progress = Arc::new(Progress::begin(is_sent, exchange.lane.clone()));
        let mut request =
            client.request(exchange.method.clone(), url.clone()).headers(exchange.headers.clone());
        match &exchange.body {
            Some(data) => {
                let body = Watched { data: data.clone(), progress: progress.clone() };
                request = request.header(CONTENT_LENGTH, data.len()).body(reqwest::Body::wrap(body));
            }
            None if exchange.method != Method::GET && exchange.method != Method::HEAD => {
                // Some servers in front of registries answer a POST or PUT without it with 411 (Length Required).
                request = request.header(CONTENT_LENGTH, 0);
            }
            None => {}
        }
        // A deadline for the whole would fail a large upload over a slow line. What ends it is silence: a while in which not
        // a byte moved.
        let answer = progress.watch(request.send(), sockets.as_ref(), idle, patience).await;
        let stalled = |after| Error::Stalled { target: Box::new(target.clone()), after };
        let inner = answer.map_err(stalled)?.map_err(|e| Error::connection(target, e))?;
        Ok(Response::new(inner, target.clone(), idle))
    }

    /// Like [`Self::exchange`], with retries under the deadline of small operations.
    pub(super) async fn exchange_retrying(
        &self,
        target: &Target,
        exchange: &Exchange,
    ) -> Result<Response, Error> {
        let mut retry = Retry::within(&self.config.retries, target, self.config.timeouts.operation);
        loop {
            let attempt = async {
                let response = self.exchange(target, exchange).await?;
                if response.is_transient_failure() {
                    return Err(response.into_error("").await);
                }
                Ok(response)
            };
            match retry.bound(attempt).await {
                Ok(response) => return Ok(response),
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    /// Sends `exchange` once with whatever credentials the registry asks for, following redirects.
    /// The answer may have any status.
    pub(super) async fn call(
        &self,
        target: &Target,
        endpoint: &Endpoint,
        scopes: &Scopes,
        mut exchange: Exchange,
    ) -> Result<Response, Error> {
        let first = exchange.url.clone();
        let base = Url::parse(&endpoint.base)
            .map_err(|e| Error::protocol(target, format!("registry address {}: {e}", endpoint.base)))?;
        let secure = base.scheme() == "https";
        let headers = headers_of(&endpoint.connection);
        let request = Request {
            registry: endpoint.registry(),
            host: &endpoint.host,
            connection: self.source.as_ref().map(|_| &endpoint.connection),
            secure,
            repository: &target.repository,
            scopes,
        };
        // Boxed: asking for credentials is rare, and would make the future of every request as large as itself.
        let mut header = Box::pin(self.auth.authorization(self, request)).await?;
        let mut tries = Tries::default();
        // Signed URLs are good for the method they were given for.
        let mut shortcut = if exchange.method == Method::GET { self.redirects.get(&first) } else { None };
        loop {
            exchange.url = shortcut.as_ref().unwrap_or(&exchange.url).clone();
            exchange.headers.remove(AUTHORIZATION);
            let at_registry = exchange.url.origin() == base.origin();
            // Without settings of its own, where it is redirected to is reached as the registry is, as containerd does.
            let alike = at_registry || self.source.is_some();
            exchange.connection = alike.then(|| Arc::clone(&endpoint.connection));
            for name in headers.keys() {
                exchange.headers.remove(name);
            }
            if at_registry {
                exchange.headers.extend(headers.clone());
            }
            let response = if at_registry {
                exchange.headers.extend(header.clone().map(|header| (AUTHORIZATION, header)));
                self.exchange(target, &exchange).await
            } else {
                // An object store must not see the registry's credentials.
                self.exchange(&target.redirected(authority(&exchange.url)), &exchange).await
            };
            if shortcut.take().is_some()
                && !response.as_ref().is_ok_and(|response| response.status().is_success())
            {
                self.redirects.forget(&first);
                exchange.url = first.clone();
                continue;
            }
            let response = response?;
            if at_registry
                && let Some(header) = &header
                && proves_credentials(response.status())
            {
                self.auth.accepted(request, header).await;
            }
            if let Some(url) = response.redirect(&exchange) {
                tries.redirects += 1;
                if tries.redirects > REDIRECTS_LIMIT {
                    return Err(Error::protocol(target, format!("more than {REDIRECTS_LIMIT} redirects")));
                }
                exchange.url = url?;
                continue;
            }
            if at_registry {
                match Box::pin(self.renewed(request, &response, header.as_ref(), &mut tries)).await? {
                    Some(new) => header = Some(new),
                    None => return Ok(response),
                }
            } else if exchange.method == Method::GET && response.status().is_success() {
                self.redirects.remember(&first, &exchange.url);
                return Ok(response);
            } else if exchange.method == Method::GET && has_ended(response.status()) && !tries.asked_again {
                // A signed URL that ended on its way here, or came out of a cache: the registry makes a new one.
                tries.asked_again = true;
            } else {
                return Ok(response);
            }
            exchange.url = first.clone();
        }
    }

    /// The credentials to try after the registry's answer `response` to `sent`; `None`: the answer stands.
    async fn renewed(
        &self,
        request: Request<'_>,
        response: &Response,
        sent: Option<&HeaderValue>,
        tries: &mut Tries,
    ) -> Result<Option<HeaderValue>, Error> {
        let challenge = match response.status() {
            StatusCode::UNAUTHORIZED => Challenge::from_headers(response.headers()),
            StatusCode::FORBIDDEN => None,
            _ => return Ok(None),
        };
        match (challenge, sent) {
            (Some(challenge), _) if tries.challenges < CHALLENGES_LIMIT => {
                tries.challenges += 1;
                self.auth.challenged(self, request, challenge, sent).await
            }
            (None, Some(sent)) if !tries.renewed => {
                tries.renewed = true;
                self.auth.forbidden(self, request, sent).await
            }
            _ => Ok(None),
        }
    }

    /// [`Self::call`], with every status not among `good` an error.
    pub(super) async fn call_expecting(
        &self,
        target: &Target,
        endpoint: &Endpoint,
        scopes: &Scopes,
        exchange: Exchange,
        good: &[StatusCode],
    ) -> Result<Response, Error> {
        let response = self.call(target, endpoint, scopes, exchange).await?;
        let advice = match response.status() {
            // Another host was shown no credentials.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !response.is_redirected() => {
                self.auth.advice(&endpoint.host)
            }
            _ => String::new(),
        };
        response.expect(good, &advice).await
    }
}

/// What one call has tried.
#[derive(Default)]
struct Tries {
    challenges: usize,
    redirects: usize,
    /// Credentials were renewed without a challenge.
    renewed: bool,
    /// The registry was asked again where to go.
    asked_again: bool,
}

/// Whether an answer with `status` is one that a registry gives only to credentials that it takes.
fn proves_credentials(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection() || status == StatusCode::NOT_FOUND
}

/// Whether object stores answer so to a signed URL that has ended: S3 and Azure with 403, others with 400 or 401.
fn has_ended(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// `HOST[:PORT]` of `url`, the form in which hosts are configured.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// A header's value from text that this module composed.
pub(super) fn header_value(target: &Target, text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text)
        .map_err(|_| Error::protocol(target, format!("{text:?} cannot be put into a header")))
}
