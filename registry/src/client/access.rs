//! How a repository is read, as values: what somebody with files and credentials at hand gives to somebody without.
//!
//! ```text
//!   broker: Client::access ──> RepositoryAccess ──(any way)──> AccessSource ──> Client::with_access: reader
//! ```

use std::fmt;
use std::fs;
use std::path::Path;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::credentials::Found;

/// No file with certificates or a key is larger.
const FILE_LIMIT_BYTES: u64 = 4 << 20;

/// Where a repository is read, and what is shown there.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryAccess {
    /// Who is asked, in this order: mirrors, and the registry itself last. None: nobody may be asked.
    pub places: Vec<Place>,
}

/// One place to read a repository from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// What people call it, and credentials are looked up by: `HOST[:PORT]`.
    pub host: String,
    /// Scheme and authority of its API: `https://HOST[:PORT]`.
    pub base: String,
    /// Path of its API: `/v2`, unless it is overridden.
    pub api: String,
    /// Whether it stands in for the registry, and is told whose content it is asked for.
    pub mirror: bool,
    /// How it is reached.
    pub connection: Connection,
    /// What it is shown.
    pub credentials: Found,
}

/// What is particular to the connections to a host.
#[derive(Clone, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connection {
    /// Certificate authorities that are trusted in addition to the system's.
    pub authorities: Vec<Pem>,
    /// Trust those alone.
    pub without_system: bool,
    /// What is shown to who asks for a certificate.
    pub client: Option<ClientCertificate>,
    /// Accept any certificate.
    pub skip_verify: bool,
    /// Sent with every request to the host itself: names and values.
    pub headers: Vec<(String, String)>,
}

/// A certificate to show, and its key.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// The certificate and those that lead to its authority.
    pub chain: Pem,
    /// The key; `None`: it is with the chain.
    pub key: Option<Pem>,
}

/// The text of a PEM file.
#[derive(Clone, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Pem {
    /// Where it comes from, for messages.
    pub name: String,
    /// The text, or why it cannot be read.
    pub text: Result<String, String>,
}

impl Pem {
    /// Reads a file. One that cannot be read is an error for who needs it.
    pub fn read(path: &Path) -> Self {
        let text = match fs::metadata(path) {
            Ok(metadata) if metadata.len() > FILE_LIMIT_BYTES => {
                Err(format!("{} bytes; expected no more than {FILE_LIMIT_BYTES}", metadata.len()))
            }
            Ok(_) => fs::read_to_string(path).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        Self { name: path.display().to_string(), text }
    }

    /// A text that is no file's; `name` says where it comes from.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: Ok(text.into()) }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Connection")
            .field("authorities", &self.authorities)
            .field("client", &self.client)
            .field("skip_verify", &self.skip_verify)
            .field("headers", &headers)
            .finish()
    }
}

/// Somebody who knows how repositories are read, and is asked before every request: what it says may change at any time.
pub trait AccessSource: Send + Sync {
    /// How `repository` of `registry` is read. `None`: nobody has said it, and nothing is asked.
    fn access(&self, registry: &str, repository: &str) -> Option<std::sync::Arc<RepositoryAccess>>;

    /// The credentials that [`Self::access`] says are refused: looks for others, and returns when there are some, or will be
    /// none. Several may ask for one repository at once.
    fn renew<'a>(&'a self, registry: &'a str, repository: &'a str) -> BoxFuture<'a, ()>;
}
