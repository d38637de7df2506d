//! Basic authentication against a file made by `htpasswd -B`.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;

use super::error::{Code, Failure, ServerError};
use super::request::Head;
use crate::digest::{self, Digest};

/// Users and the bcrypt hashes of their passwords.
pub(super) struct Passwords {
    hashes: HashMap<String, String>,
    /// Digests of headers that were right: bcrypt is slow by intention, once per user is enough.
    accepted: Mutex<HashSet<Digest>>,
}

impl Passwords {
    /// The users in `path`: lines `USER:HASH`, empty ones and comments aside.
    pub(super) fn read(path: &Path) -> Result<Self, ServerError> {
        let text = std::fs::read_to_string(path).map_err(|source| ServerError::Path {
            what: "htpasswd",
            path: path.to_owned(),
            source,
        })?;
        let mut hashes = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let failed = |reason| ServerError::Htpasswd { path: path.to_owned(), line: index + 1, reason };
            let (user, hash) = line.split_once(':').ok_or_else(|| failed("expected USER:HASH"))?;
            if !hash.starts_with("$2") {
                return Err(failed("only bcrypt hashes are supported (htpasswd -B)"));
            }
            hashes.insert(user.to_owned(), hash.to_owned());
        }
        Ok(Self { hashes, accepted: Mutex::default() })
    }

    /// Whether the request names a user and the right password.
    pub(super) async fn check(self: &Arc<Self>, head: &Head) -> Result<(), Failure> {
        let refused = || Failure::new(Code::Unauthorized, "user or password is missing or wrong");
        let header = head.header(AUTHORIZATION).ok_or_else(refused)?;
        let known = digest::sha256(header.as_bytes());
        if self.accepted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).contains(&known) {
            return Ok(());
        }
        let encoded = header.strip_prefix("Basic ").ok_or_else(refused)?;
        let decoded = STANDARD.decode(encoded.trim()).map_err(|_| refused())?;
        let text = String::from_utf8(decoded).map_err(|_| refused())?;
        let (user, password) = text.split_once(':').ok_or_else(refused)?;
        let hash = self.hashes.get(user).cloned().ok_or_else(refused)?;
        let password = password.to_owned();
        let verified = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash));
        if !matches!(verified.await, Ok(Ok(true))) {
            return Err(refused());
        }
        self.accepted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(known);
        Ok(())
    }
}
