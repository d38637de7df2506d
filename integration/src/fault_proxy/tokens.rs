//! Credentials that end: bearer tokens, which a service gives to everybody, or passwords, as a cloud's registry has them.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode};

use super::{Answer, plain, refuse};

/// Whose passwords they are: the name that ECR has.
pub const USER: &str = "AWS";
/// What a service says of a token's life. It may end earlier: keys are replaced, clocks differ.
const CLAIMED_SECONDS: u64 = 3600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CredentialKind {
    /// For the asking.
    Bearer,
    /// One at a time, each in the place of the one before.
    Password,
}

#[derive(Debug)]
pub(super) struct Tokens {
    kind: CredentialKind,
    /// When each was given.
    issued: Mutex<Vec<Instant>>,
    /// How long each is good.
    life: Mutex<Option<Duration>>,
    /// The last one that has expired, however long it was to be good.
    expired: AtomicU64,
    /// How those are refused.
    refusal: AtomicU16,
    refused: AtomicU64,
}

impl Tokens {
    pub(super) fn new(kind: CredentialKind) -> Self {
        let tokens = Self {
            kind,
            issued: Mutex::default(),
            life: Mutex::default(),
            expired: AtomicU64::new(0),
            refusal: AtomicU16::new(401),
            refused: AtomicU64::new(0),
        };
        if kind == CredentialKind::Password {
            tokens.issue();
        }
        tokens
    }

    fn issue(&self) -> u64 {
        let mut issued = lock(&self.issued);
        issued.push(Instant::now());
        issued.len() as u64
    }

    pub(super) fn issued(&self) -> u64 {
        lock(&self.issued).len() as u64
    }

    /// Requests that came with one that had expired.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    /// The password that is good now.
    pub(super) fn password(&self) -> String {
        name(self.issued())
    }

    /// All so far have expired.
    pub(super) fn expire(&self, refusal: u16) {
        self.refusal.store(refusal, Ordering::SeqCst);
        self.expired.store(self.issued(), Ordering::SeqCst);
        if self.kind == CredentialKind::Password {
            self.issue();
        }
    }

    /// Each is good for so long, those that were given before included.
    pub(super) fn live(&self, life: Duration) {
        *lock(&self.life) = Some(life);
    }

    /// How the credentials of that number are refused; `None` if they are good.
    fn refusal(&self, number: u64) -> Option<u16> {
        if number <= self.expired.load(Ordering::SeqCst) {
            return Some(self.refusal.load(Ordering::SeqCst));
        }
        let issued =
            usize::try_from(number - 1).ok().and_then(|index| lock(&self.issued).get(index).copied());
        let life = *lock(&self.life);
        match (issued, life) {
            (None, _) => Some(401),
            // By either of what registries say, in turn.
            (Some(issued), Some(life)) if issued.elapsed() >= life => {
                Some(if number % 2 == 1 { 401 } else { 403 })
            }
            _ => None,
        }
    }

    /// The answer to a request that is for the token service, or has no credentials that are good.
    pub(super) fn answer<B>(&self, request: &Request<B>) -> Option<Result<Answer>> {
        if self.kind == CredentialKind::Bearer && request.uri().path() == "/token" {
            let body = format!(r#"{{"token":"{}","expires_in":{CLAIMED_SECONDS}}}"#, name(self.issue()));
            return Some(plain(StatusCode::OK, body));
        }
        let Some(number) = self.number(request.headers()) else { return Some(self.challenge(request)) };
        let status = self.refusal(number)?;
        self.refused.fetch_add(1, Ordering::SeqCst);
        Some(if status == 401 { self.challenge(request) } else { refuse(status) })
    }

    fn number(&self, headers: &HeaderMap) -> Option<u64> {
        let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
        match self.kind {
            CredentialKind::Bearer => number(header.strip_prefix("Bearer ")?),
            CredentialKind::Password => {
                let decoded = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
                let decoded = String::from_utf8(decoded).ok()?;
                number(decoded.strip_prefix(USER)?.strip_prefix(':')?)
            }
        }
    }

    fn challenge<B>(&self, request: &Request<B>) -> Result<Answer> {
        let text = match self.kind {
            CredentialKind::Bearer => bearer(request),
            CredentialKind::Password => "Basic realm=\"proxy\"".to_owned(),
        };
        let mut answer = refuse(401)?;
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_str(&text)?);
        Ok(answer)
    }
}

fn name(number: u64) -> String {
    format!("token-{number}")
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix("token-")?.parse().ok()
}

fn bearer<B>(request: &Request<B>) -> String {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let path = request.uri().path().strip_prefix("/v2/").unwrap_or_default();
    let name = path.split_once("/blobs/").or_else(|| path.split_once("/manifests/")).map(|(name, _)| name);
    let scope = name.map(|name| format!(",scope=\"repository:{name}:pull\"")).unwrap_or_default();
    format!("Bearer realm=\"http://{host}/token\",service=\"proxy\"{scope}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
