//! Credentials as Docker keeps them: `config.json` and credential helpers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;

/// Docker Hub's key in `config.json` and in helpers.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The user name by which a helper says that the secret is an identity token.
const IDENTITY_TOKEN_USER: &str = "<token>";

/// Credentials could not be read.
#[derive(Clone, Debug, Error)]
pub enum CredentialsError {
    /// The file cannot be read or parsed.
    #[error("credentials in {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A helper failed.
    #[error("credential helper {program}, named in {} for registry {host}: {reason}", path.display())]
    Helper {
        /// The helper's program.
        program: String,
        /// The file that names it.
        path: PathBuf,
        /// The registry asked for.
        host: String,
        /// What it did.
        reason: String,
    },
}

/// What to show a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    Anonymous,
    /// User and password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token for the registry's token service.
    IdentityToken(String),
    /// A token for the registry itself.
    RegistryToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(…)",
            Self::IdentityToken(_) => "IdentityToken(…)",
            Self::RegistryToken(_) => "RegistryToken(…)",
        })
    }
}

/// Credentials and where they come from, for error messages.
#[derive(Clone, Debug)]
pub struct Found {
    /// The credentials.
    pub credentials: Credentials,
    /// Where they were looked for, as part of a sentence.
    pub origin: String,
}

/// The file in which credentials are looked up, read anew each time: they may rotate while we run.
#[derive(Clone, Debug)]
pub struct CredentialStore {
    path: Option<PathBuf>,
    helper_deadline: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl CredentialStore {
    /// The store in `path`, else `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub fn new(path: Option<PathBuf>, helper_deadline: Duration) -> Self {
        let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = path
            .or_else(|| env("DOCKER_CONFIG").map(|dir| dir.join("config.json")))
            .or_else(|| env("HOME").map(|home| home.join(".docker/config.json")));
        Self { path, helper_deadline }
    }

    /// The credentials for `host`'s repository `repository`.
    pub async fn find(&self, host: &str, repository: &str) -> Result<Found, CredentialsError> {
        let anonymous = |origin: String| Ok(Found { credentials: Credentials::Anonymous, origin });
        let Some(path) = &self.path else {
            return anonymous("no credentials: neither DOCKER_CONFIG nor HOME is set".to_owned());
        };
        let text = match tokio::fs::read(path).await {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return anonymous(format!("no credentials: {} does not exist", path.display()));
            }
            Err(e) => return Err(CredentialsError::File { path: path.clone(), reason: e.to_string() }),
        };
        let config: DockerConfig = serde_json::from_slice(&text)
            .map_err(|e| CredentialsError::File { path: path.clone(), reason: e.to_string() })?;
        let helper = best_match(&config.cred_helpers, host, repository).or(config.creds_store.as_ref());
        if let Some(name) = helper
            && let Some(found) = self.ask_helper(path, &format!("docker-credential-{name}"), host).await?
        {
            return Ok(found);
        }
        match best_match(&config.auths, host, repository) {
            Some(auth) => {
                let credentials = decode(auth).map_err(|reason| CredentialsError::File {
                    path: path.clone(),
                    reason: format!("entry for {host}: {reason}"),
                })?;
                let origin = match &credentials {
                    Credentials::Anonymous => format!("the entry for {host} in {} is empty", path.display()),
                    Credentials::Basic { user, .. } => {
                        format!("credentials of user {user} from {}", path.display())
                    }
                    _ => format!("a token from {}", path.display()),
                };
                Ok(Found { credentials, origin })
            }
            None => anonymous(format!("no credentials for {host} in {}", path.display())),
        }
    }

    /// What the helper `program` knows of `host`; `None` if it has no entry.
    async fn ask_helper(
        &self,
        path: &Path,
        program: &str,
        host: &str,
    ) -> Result<Option<Found>, CredentialsError> {
        let failed = |reason: String| CredentialsError::Helper {
            program: program.to_owned(),
            path: path.to_owned(),
            host: host.to_owned(),
            reason,
        };
        let key = if host == "docker.io" { DOCKER_HUB_KEY } else { host };
        let run = async {
            let mut child = tokio::process::Command::new(program)
                .arg("get")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // A helper that never reads its input closes it early: its answer says more than EPIPE.
                let _ = stdin.write_all(key.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(self.helper_deadline, run)
            .await
            .map_err(|_| failed(format!("no answer within {:?}", self.helper_deadline)))?
            .map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
            // The text that Docker's helper protocol prescribes for a missing entry.
            if said.contains("credentials not found") {
                return Ok(None);
            }
            return Err(failed(format!("{}: {said}", output.status)));
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            username: String,
            secret: String,
        }
        let answer: Answer =
            serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("its answer: {e}")))?;
        let origin = format!("credentials from {program}, named in {}", path.display());
        let credentials = if answer.username == IDENTITY_TOKEN_USER {
            Credentials::IdentityToken(answer.secret)
        } else {
            Credentials::Basic { user: answer.username, password: answer.secret }
        };
        Ok(Some(Found { credentials, origin }))
    }
}

/// The entry whose key names `host` and the longest prefix of `repository`.
fn best_match<'a, T>(entries: &'a BTreeMap<String, T>, host: &str, repository: &str) -> Option<&'a T> {
    let full = format!("{host}/{repository}/");
    let normalised = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
        match key {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            _ => key.to_owned(),
        }
    };
    let matching = entries.iter().map(|(key, value)| (normalised(key), value));
    let (_, value) = matching
        .filter(|(key, _)| !key.is_empty() && full.starts_with(&format!("{key}/")))
        .max_by_key(|(key, _)| key.len())?;
    Some(value)
}

fn decode(auth: &DockerAuth) -> Result<Credentials, String> {
    if !auth.registrytoken.is_empty() {
        return Ok(Credentials::RegistryToken(auth.registrytoken.clone()));
    }
    if !auth.identitytoken.is_empty() {
        return Ok(Credentials::IdentityToken(auth.identitytoken.clone()));
    }
    if auth.auth.is_empty() {
        if auth.username.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        return Ok(Credentials::Basic { user: auth.username.clone(), password: auth.password.clone() });
    }
    let decoded = STANDARD.decode(auth.auth.trim()).map_err(|e| format!("auth is not base64: {e}"))?;
    let text = String::from_utf8(decoded).map_err(|_| "auth is not UTF-8 text".to_owned())?;
    let (user, password) = text.split_once(':').ok_or("auth is not USER:PASSWORD in base64")?;
    // Docker pads some entries with NUL bytes.
    Ok(Credentials::Basic { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests;
