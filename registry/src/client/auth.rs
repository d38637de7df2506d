//! Authentication: what to put into `Authorization`, learnt from a registry's challenges.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::challenge::{Challenge, Scopes};
use super::credentials::{CredentialStore, Credentials};
use super::error::{Error, Target};
use super::transport::{Exchange, Transport};

/// What the token specification says a token without `expires_in` lasts.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);

/// A token is renewed this long before its end, so that no request arrives with a dead one.
const RENEWAL_MARGIN: Duration = Duration::from_secs(10);

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
    store: CredentialStore,
    hosts: SyncMutex<HashMap<String, Arc<Mutex<HostState>>>>,
}

#[derive(Default)]
struct HostState {
    challenge: Option<Challenge>,
    tokens: HashMap<Scopes, Token>,
    basic: HashMap<String, HeaderValue>,
    origin: String,
}

struct Token {
    header: HeaderValue,
    expires: Instant,
}

impl Authenticator {
    pub(super) fn new(store: CredentialStore) -> Self {
        Self { store, hosts: SyncMutex::default() }
    }

    fn host(&self, host: &str) -> Arc<Mutex<HostState>> {
        let mut hosts = self.hosts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        hosts.entry(host.to_owned()).or_default().clone()
    }

    /// The header to send first: what worked before, nothing on the first contact.
    pub(super) async fn authorization(
        &self,
        transport: &Transport,
        request: Request<'_>,
    ) -> Result<Option<HeaderValue>, Error> {
        let state = self.host(request.host);
        // Held while a token is fetched: requests that need the same token wait for one fetch.
        let mut state = state.lock().await;
        match state.challenge.clone() {
            None => Ok(None),
            Some(challenge) => self.satisfy(transport, &mut state, request, &challenge, None).await,
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
        let state = self.host(request.host);
        let mut state = state.lock().await;
        state.challenge = Some(challenge.clone());
        let header = self.satisfy(transport, &mut state, request, &challenge, rejected).await?;
        Ok(header.filter(|header| Some(header) != rejected))
    }

    /// Where credentials for `host` came from, to say when they are refused.
    pub(super) async fn advice(&self, host: &str) -> String {
        let state = self.host(host);
        let state = state.lock().await;
        if state.origin.is_empty() { String::new() } else { format!("; {}", state.origin) }
    }

    async fn satisfy(
        &self,
        transport: &Transport,
        state: &mut HostState,
        request: Request<'_>,
        challenge: &Challenge,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Error> {
        let known = match challenge {
            Challenge::Basic => state.basic.get(request.repository),
            Challenge::Bearer { .. } => state
                .tokens
                .get(request.scopes)
                .filter(|token| token.expires > Instant::now())
                .map(|token| &token.header),
        };
        if let Some(header) = known.filter(|header| Some(*header) != rejected) {
            return Ok(Some(header.clone()));
        }
        let found = self.store.find(request.host, request.repository).await?;
        state.origin = found.origin;
        match (challenge, found.credentials) {
            (_, Credentials::RegistryToken(token)) => {
                Ok(Some(secret_header(&format!("Bearer {token}"), request)?))
            }
            (Challenge::Basic, Credentials::Basic { user, password }) => {
                let header = basic_header(&user, &password, request)?;
                state.basic.insert(request.repository.to_owned(), header.clone());
                Ok(Some(header))
            }
            (Challenge::Basic, _) => Ok(None),
            (Challenge::Bearer { realm, service, scopes }, credentials) => {
                let wanted = request.scopes.clone().and(scopes);
                let question =
                    Question { request, realm, service: service.as_deref(), scopes: wanted, credentials };
                let token = question.ask(transport).await?;
                let header = token.header.clone();
                state.tokens.retain(|_, token| token.expires > Instant::now());
                state.tokens.insert(request.scopes.clone(), token);
                Ok(Some(header))
            }
        }
    }
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
    async fn ask(&self, transport: &Transport) -> Result<Token, Error> {
        let mut target = Target {
            method: Method::GET,
            host: self.request.host.to_owned(),
            repository: self.request.repository.to_owned(),
            item: format!("token for {} from {}", self.scopes, self.realm),
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
        // A short-lived token keeps half of its life; a later 401 renews it anyway.
        let usable = life.saturating_sub(RENEWAL_MARGIN).max(life / 2);
        let expires = started.checked_add(usable).unwrap_or(started + DEFAULT_TOKEN_LIFE);
        Ok(Token { header: secret_header(&format!("Bearer {token}"), self.request)?, expires })
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
