//! Credentials as Docker keeps them: `config.json` and credential helpers.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};
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
    /// Whoever holds the credentials failed.
    #[error("{holder}: credentials for registry {host}: {reason}")]
    Keyring {
        /// The holder.
        holder: String,
        /// The registry asked for.
        host: String,
        /// What it said.
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
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
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
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// The credentials.
    pub credentials: Credentials,
    /// Where they were looked for, as part of a sentence.
    pub origin: String,
}

/// The file in which credentials are looked up, read again each time: they may rotate while we run.
#[derive(Clone, Debug)]
pub struct CredentialStore {
    path: Option<PathBuf>,
    helper_deadline: Duration,
}

/// `config.json`. Docker writes it and everybody edits it: `null` and empty text stand for nothing everywhere.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DockerConfig {
    #[serde(deserialize_with = "or_default")]
    pub(super) auths: BTreeMap<String, Option<DockerAuth>>,
    #[serde(deserialize_with = "or_default")]
    cred_helpers: BTreeMap<String, Option<String>>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct DockerAuth {
    #[serde(deserialize_with = "or_default")]
    auth: String,
    #[serde(deserialize_with = "or_default")]
    username: String,
    #[serde(deserialize_with = "or_default")]
    password: String,
    #[serde(deserialize_with = "or_default")]
    identitytoken: String,
    #[serde(deserialize_with = "or_default")]
    registrytoken: String,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

impl DockerConfig {
    pub(super) fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        Ok(serde_json::from_slice::<Option<Self>>(text)?.unwrap_or_default())
    }

    /// The helper to ask about `host`: its own, else the one for all.
    pub(super) fn helper(&self, host: &str, repository: &str) -> Option<&str> {
        let own = best_match(&self.cred_helpers, host, repository).and_then(Option::as_deref);
        // An empty name says that this host's credentials are in the file.
        own.or(self.creds_store.as_deref()).filter(|name| !name.is_empty())
    }

    /// The credentials that the file itself has for `repository` of `host`.
    pub(super) fn entry(&self, host: &str, repository: &str) -> Option<Result<Credentials, String>> {
        best_match(&self.auths, host, repository).and_then(Option::as_ref).map(decode)
    }
}

/// What came of asking a helper.
enum Asked {
    Found(Found),
    /// It has no entry.
    Nothing,
    /// There is no such program.
    Missing,
}

impl CredentialStore {
    /// The store in `path`; `None`: nobody knows where it would be.
    pub fn new(path: Option<PathBuf>, helper_deadline: Duration) -> Self {
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
        let config = DockerConfig::parse(&text)
            .map_err(|e| CredentialsError::File { path: path.clone(), reason: e.to_string() })?;
        // As with Docker and skopeo, the file's own entry serves where the helper does not.
        let mut without = format!("no credentials for {host} in {}", path.display());
        let mut failure = None;
        if let Some(name) = config.helper(host, repository) {
            let program = format!("docker-credential-{name}");
            match self.ask_helper(path, &program, host).await {
                Ok(Asked::Found(found)) => return Ok(found),
                Ok(Asked::Nothing) => without.push_str(&format!(", and {program} has none")),
                Ok(Asked::Missing) => {
                    tracing::warn!(program, host, config = %path.display(), "the credential helper is not installed");
                    without.push_str(&format!(", and {program}, which it names, is not installed"));
                }
                Err(error) => failure = Some(error),
            }
        }
        let entry = config.entry(host, repository);
        match (entry, failure) {
            (Some(entry), failure) => {
                let credentials = entry.map_err(|reason| CredentialsError::File {
                    path: path.clone(),
                    reason: format!("entry for {host}: {reason}"),
                })?;
                let origin = match &credentials {
                    Credentials::Anonymous => match failure {
                        // An empty entry is what `docker login` leaves in the file where a helper has the rest.
                        Some(error) => return Err(error),
                        None => format!("{without}: the entry there is empty"),
                    },
                    Credentials::Basic { user, .. } => {
                        format!("credentials of user {user} from {}", path.display())
                    }
                    _ => format!("a token from {}", path.display()),
                };
                Ok(Found { credentials, origin })
            }
            (None, Some(error)) => Err(error),
            (None, None) => anonymous(without),
        }
    }

    /// What the helper `program`, named in `path`, knows of `host`.
    async fn ask_helper(&self, path: &Path, program: &str, host: &str) -> Result<Asked, CredentialsError> {
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
        let output = match tokio::time::timeout(self.helper_deadline, run).await {
            Err(_) => return Err(failed(format!("no answer within {:?}", self.helper_deadline))),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Asked::Missing),
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Ok(Ok(output)) => output,
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
            // The texts that Docker's helper protocol prescribes for a missing entry, and for one without a user.
            let nothing = ["credentials not found", "no credentials username", "no credentials server URL"];
            if nothing.iter().any(|text| said.contains(text)) {
                return Ok(Asked::Nothing);
            }
            return Err(failed(format!("{}: {said}", output.status)));
        }
        if output.stdout.trim_ascii().is_empty() {
            return Ok(Asked::Nothing);
        }
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "PascalCase")]
        struct Answer {
            #[serde(deserialize_with = "or_default")]
            username: String,
            #[serde(deserialize_with = "or_default")]
            secret: String,
        }
        let answer: Option<Answer> =
            serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("its answer: {e}")))?;
        let Answer { username, secret } = answer.unwrap_or_default();
        let credentials = match username.as_str() {
            _ if secret.is_empty() => return Ok(Asked::Nothing),
            IDENTITY_TOKEN_USER => Credentials::IdentityToken(secret),
            _ => Credentials::Basic { user: username, password: secret },
        };
        let origin = format!("credentials from {program}, named in {}", path.display());
        Ok(Asked::Found(Found { credentials, origin }))
    }
}

/// The entry whose key names `host` and the longest prefix of `repository`.
fn best_match<'a, T>(entries: &'a BTreeMap<String, T>, host: &str, repository: &str) -> Option<&'a T> {
    let full = format!("{host}/{repository}/");
    let matching = entries.iter().map(|(key, value)| (normalised(key), value));
    let (_, value) = matching
        .filter(|(key, _)| !key.is_empty() && full.starts_with(&format!("{key}/")))
        .max_by_key(|(key, _)| key.len())?;
    Some(value)
}

/// `HOST[/PATH]` of a key as people write it.
pub(super) fn normalised(key: &str) -> String {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => key.to_owned(),
    }
}

pub(super) fn decode(auth: &DockerAuth) -> Result<Credentials, String> {
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
    if text == ":" {
        return Ok(Credentials::Anonymous);
    }
    // Docker pads some entries with NUL bytes.
    Ok(Credentials::Basic { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

#[cfg(test)]
mod tests;
