//! What is put into `Authorization`: made of credentials, or given out by a token service for them.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;

use super::auth::Request;
use super::challenge::{Challenge, Scopes};
use super::credentials::Credentials;
use super::error::{Error, Target};
use super::keyring::{Keyring, TokenRequest};
use super::transport::{Exchange, Transport};

/// What the token specification says a token without `expires_in` lasts.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);

/// A token is renewed this long before its end, so that no request arrives with a dead one.
const RENEWAL_MARGIN: Duration = Duration::from_secs(10);

/// The longest answer read from a token service.
const TOKEN_ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// A header, and what is known of it.
pub(super) struct KnownHeader {
    pub(super) header: HeaderValue,
    /// When it must be renewed.
    pub(super) expires: Option<Instant>,
    /// Whether the registry has taken it: only then does a refusal with 403 mean that it has ended since.
    pub(super) worked: bool,
    /// Whether a keyring's holder fetched it: if it is no good, credentials need not be missing.
    pub(super) fetched: bool,
}

impl KnownHeader {
    pub(super) fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|at| at > Instant::now())
    }
}

/// What answers a challenge with these credentials; `None`: nothing does.
pub(super) async fn make(
    transport: &Transport,
    request: Request<'_>,
    challenge: &Challenge,
    credentials: Credentials,
) -> Result<Option<KnownHeader>, Error> {
    let known = match (challenge, credentials) {
        (_, Credentials::RegistryToken(token)) => {
            // Read again for every request: whoever hands it out renews it in the file.
            let header = secret_header(&format!("Bearer {token}"), request)?;
            KnownHeader { header, expires: Some(Instant::now()), worked: true, fetched: false }
        }
        (Challenge::Basic, Credentials::Basic { user, password }) => KnownHeader {
            header: basic_header(&user, &password, request)?,
            expires: None,
            worked: false,
            fetched: false,
        },
        (Challenge::Basic, _) => return Ok(None),
        (Challenge::Bearer { realm, service, scopes }, credentials) => {
            let scopes = request.scopes.clone().and(scopes);
            let question = Question { request, realm, service: service.as_deref(), scopes, credentials };
            question.ask(transport).await?
        }
    };
    Ok(Some(known))
}

/// A token that the holder of `keyring` fetches, if it does that.
pub(super) async fn fetched(
    keyring: &dyn Keyring,
    request: Request<'_>,
    realm: &str,
    service: Option<&str>,
    scopes: &Scopes,
) -> Result<Option<KnownHeader>, Error> {
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
    Ok(Some(KnownHeader {
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
    async fn ask(&self, transport: &Transport) -> Result<KnownHeader, Error> {
        let mut target = Target {
            method: Method::GET,
            host: self.request.host.to_owned(),
            repository: self.request.repository.to_owned(),
            item: format!("token for {} from {}", self.scopes, self.realm),
            redirected_to: None,
        };
        let realm = Url::parse(self.realm)
            .map_err(|e| Error::protocol(&target, format!("the registry's token realm is no URL: {e}")))?;
        // Before anything is sent: whoever answers in the registry's place must not get credentials in the clear.
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
        // Docker's services take GET, which is therefore tried first; some know OAuth2's POST alone.
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
        // From the moment of the question on: what was under way since counts as used up.
        let expires = end_of(started, life);
        let header = secret_header(&format!("Bearer {token}"), self.request)?;
        Ok(KnownHeader { header, expires: Some(expires), worked: false, fetched: false })
    }

    fn get(&self, realm: &Url, basic: Option<(&str, HeaderValue)>) -> Exchange {
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(self.service.map(|service| ("service", service)));
            query.extend_pairs(self.scopes.iter().map(|scope| ("scope", scope)));
            query.extend_pairs(basic.as_ref().map(|(user, _)| ("account", *user)));
        }
        let mut exchange = self.exchange(Method::GET, url);
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
        Exchange { headers, body: Some(body), ..self.exchange(Method::POST, realm.clone()) }
    }

    fn exchange(&self, method: Method, url: Url) -> Exchange {
        Exchange { connection: self.request.connection.cloned(), ..Exchange::new(method, url) }
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
