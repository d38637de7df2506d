//! Bearer tokens, as registries that are services ask for: given to everybody, and refused once they have expired.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use anyhow::Result;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, StatusCode};

use super::{Answer, plain, refuse};

/// What a service says of a token's life. It may end earlier: keys are replaced, clocks differ.
const CLAIMED_SECONDS: u64 = 3600;

#[derive(Debug)]
pub(super) struct Tokens {
    issued: AtomicU64,
    /// The last token that has expired.
    expired: AtomicU64,
    /// How an expired token is refused.
    refusal: AtomicU16,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { issued: AtomicU64::new(0), expired: AtomicU64::new(0), refusal: AtomicU16::new(401) }
    }

    pub(super) fn issued(&self) -> u64 {
        self.issued.load(Ordering::SeqCst)
    }

    /// All tokens so far have expired.
    pub(super) fn expire(&self, refusal: u16) {
        self.refusal.store(refusal, Ordering::SeqCst);
        self.expired.store(self.issued(), Ordering::SeqCst);
    }

    /// The answer to a request that is for the token service or has no token that is good.
    pub(super) fn answer<B>(&self, request: &Request<B>) -> Option<Result<Answer>> {
        if request.uri().path() == "/token" {
            let number = self.issued.fetch_add(1, Ordering::SeqCst) + 1;
            let body = format!(r#"{{"token":"token-{number}","expires_in":{CLAIMED_SECONDS}}}"#);
            return Some(plain(StatusCode::OK, body));
        }
        match number(request.headers()) {
            Some(number) if number > self.expired.load(Ordering::SeqCst) => None,
            Some(_) if self.refusal.load(Ordering::SeqCst) != 401 => {
                Some(refuse(self.refusal.load(Ordering::SeqCst)))
            }
            _ => Some(challenge(request)),
        }
    }
}

fn number(headers: &HeaderMap) -> Option<u64> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer token-")?.parse().ok()
}

fn challenge<B>(request: &Request<B>) -> Result<Answer> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let path = request.uri().path().strip_prefix("/v2/").unwrap_or_default();
    let name = path.split_once("/blobs/").or_else(|| path.split_once("/manifests/")).map(|(name, _)| name);
    let scope = name.map(|name| format!(",scope=\"repository:{name}:pull\"")).unwrap_or_default();
    let text = format!("Bearer realm=\"http://{host}/token\",service=\"proxy\"{scope}");
    let mut answer = refuse(401)?;
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_str(&text)?);
    Ok(answer)
}
