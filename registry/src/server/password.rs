//! Basic authentication against a file made by `htpasswd -B`, read again when it changes.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use tokio::sync::Semaphore;

use super::blocking;
use super::error::{Code, Failure, ServerError};
use super::request::Head;
use crate::digest::{self, Digest};

/// How often the file is looked at: a user that was taken out may go on for so long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many passwords are checked at a time: bcrypt takes a core for a tenth of a second, by intention.
const CHECKS: usize = 4;

/// How long a password waits for its turn: who sends many wrong ones keeps others from coming in, and from hanging.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// How many headers that were right are kept. A header that is as right with another space in it is another one.
const KEPT_HEADERS: usize = 4096;

/// What a password of an unknown user is checked against, so that the time taken does not tell who is known.
const NOBODY: &str = "$2b$10$7EqJtq98hPqEX7fNZaFWoOhi5BWX4Z3Z2M1o8b8v7x6C5vYdGtQ4W";

/// Users and passwords, as the file had them last.
pub(super) struct Passwords {
    path: PathBuf,
    current: Mutex<Current>,
    checks: Semaphore,
    patience: Duration,
}

struct Current {
    users: Arc<Users>,
    version: Option<Version>,
    looked_at: Instant,
}

/// By this a changed file is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    modified: Option<SystemTime>,
    size: u64,
    inode: u64,
}

/// Users and the bcrypt hashes of their passwords.
#[derive(Default)]
struct Users {
    hashes: HashMap<String, String>,
    /// Digests of headers that were right: bcrypt is slow by intention, once per user is enough.
    accepted: Mutex<HashSet<Digest>>,
}

impl Passwords {
    /// The users in `path`: lines `USER:HASH`, empty ones and comments aside.
    pub(super) fn read(path: &Path) -> Result<Self, ServerError> {
        let version = Version::of(path);
        let users = Arc::new(Users::read(path)?);
        let current = Mutex::new(Current { users, version, looked_at: Instant::now() });
        let checks = Semaphore::new(CHECKS);
        Ok(Self { path: path.to_owned(), current, checks, patience: TURN_PATIENCE })
    }

    /// Whether the request names a user and the right password.
    pub(super) async fn check(self: &Arc<Self>, head: &Head) -> Result<(), Failure> {
        let refused = || Failure::new(Code::Unauthorized, "user or password is missing or wrong");
        let header = head.header(AUTHORIZATION).ok_or_else(refused)?;
        let users = self.users().await?;
        let known = digest::sha256(header.as_bytes());
        if lock(&users.accepted).contains(&known) {
            return Ok(());
        }
        let encoded = header.strip_prefix("Basic ").ok_or_else(refused)?;
        let decoded = STANDARD.decode(encoded.trim()).map_err(|_| refused())?;
        let text = String::from_utf8(decoded).map_err(|_| refused())?;
        let (user, password) = text.split_once(':').ok_or_else(refused)?;
        let hash = users.hashes.get(user);
        let (exists, hash) = (hash.is_some(), hash.cloned().unwrap_or_else(|| NOBODY.to_owned()));
        let password = password.to_owned();
        let turn = tokio::time::timeout(self.patience, self.checks.acquire()).await;
        let waited = self.patience.as_secs();
        let late = |_| {
            Failure::new(
                Code::Unavailable,
                format!("so many passwords wait to be checked that this one was not within {waited} s"),
            )
        };
        let _turn = turn.map_err(late)?.map_err(|_| refused())?;
        let verified = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash));
        if !matches!(verified.await, Ok(Ok(true))) || !exists {
            return Err(refused());
        }
        let mut accepted = lock(&users.accepted);
        if accepted.len() >= KEPT_HEADERS {
            accepted.clear();
        }
        accepted.insert(known);
        Ok(())
    }

    /// The users, read again if the file has changed. One that cannot be read leaves the users before it.
    async fn users(self: &Arc<Self>) -> Result<Arc<Users>, Failure> {
        {
            let mut current = lock(&self.current);
            if current.looked_at.elapsed() < LOOK_AGAIN {
                return Ok(current.users.clone());
            }
            // This request looks; others go on with what there is.
            current.looked_at = Instant::now();
        }
        let this = self.clone();
        blocking(move || {
            let version = Version::of(&this.path);
            if lock(&this.current).version != version {
                let read = Users::read(&this.path);
                let mut current = lock(&this.current);
                current.version = version;
                match read {
                    Ok(users) => {
                        tracing::info!(path = %this.path.display(), users = users.hashes.len(), "htpasswd was read again");
                        current.users = Arc::new(users);
                    }
                    Err(error) => tracing::error!(%error, "htpasswd has changed and cannot be read: the users before stay"),
                }
            }
            Ok(lock(&this.current).users.clone())
        })
        .await
    }
}

impl Version {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self { modified: found.modified().ok(), size: found.len(), inode: found.ino() })
    }
}

impl Users {
    fn read(path: &Path) -> Result<Self, ServerError> {
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
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_nobody_is_one_that_can_be_checked() {
        assert!(!bcrypt::verify("x", NOBODY).unwrap());
    }

    #[tokio::test]
    async fn who_waits_for_too_many_passwords_is_told_to_come_again_and_who_is_known_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        super::super::htpasswd::set_password(&path, "alice", "one").unwrap();
        super::super::htpasswd::set_password(&path, "bob", "two").unwrap();
        let mut passwords = Passwords::read(&path).unwrap();
        passwords.patience = Duration::from_millis(100);
        let passwords = Arc::new(passwords);
        let check = async |user: &str| {
            let request =
                http::Request::builder().header(AUTHORIZATION, format!("Basic {}", STANDARD.encode(user)));
            passwords.check(&Head::new(request.body(()).unwrap().into_parts().0)).await
        };
        check("alice:one").await.unwrap();
        let all = passwords.checks.acquire_many(CHECKS as u32).await.unwrap();
        let refused = check("bob:two").await.unwrap_err();
        assert_eq!(refused.code().parts().2, http::StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.to_string().contains("passwords wait"), "{refused}");
        check("alice:one").await.unwrap();
        drop(all);
        check("bob:two").await.unwrap();
        assert_eq!(check("bob:three").await.unwrap_err().code(), Code::Unauthorized);
    }

    #[tokio::test]
    async fn half_a_file_as_while_somebody_writes_it_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        std::fs::write(&path, format!("alice:{NOBODY}\n")).unwrap();
        let passwords = Arc::new(Passwords::read(&path).unwrap());
        let names = async || {
            lock(&passwords.current).looked_at -= LOOK_AGAIN;
            let mut names: Vec<String> = passwords.users().await.unwrap().hashes.keys().cloned().collect();
            names.sort_unstable();
            names.join(" ")
        };
        for (text, expected) in [
            (format!("alice:{NOBODY}\nbob"), "alice"),
            (format!("alice:{NOBODY}\nbob:{NOBODY}\n"), "alice bob"),
            ("alice:plain\n".to_owned(), "alice bob"),
            (format!("bob:{NOBODY}\n"), "bob"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(names().await, expected);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(names().await, "bob");
    }
}
