//! A client of OCI registries: pull, ranged reads, streaming push.
//!
//! [`Client`] is cheap to clone and shares connections, tokens and what it knows about each registry.
//! Every wait has a deadline ([`Timeouts`]); what may go away by itself is retried ([`Retries`]); reads
//! go to mirrors first; content is verified against its digest.

mod access;
mod auth;
mod blobs;
mod certs_dir;
mod challenge;
mod config;
mod connections;
mod copy;
mod credentials;
mod docker_auths;
mod endpoint;
mod error;
#[cfg(test)]
mod hostile;
mod keyring;
mod lane;
mod manifests;
mod mirrors;
mod outgoing;
mod placed;
mod places;
mod reader;
mod redirects;
mod referrers;
mod response;
mod retry;
mod silence;
mod sockets;
mod tls;
mod token;
mod transport;
mod upload;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub use access::{AccessSource, ClientCertificate, Connection, Pem, Place, RepositoryAccess};
pub use config::{ClientConfig, HostConfig, Retries, Timeouts, UploadConfig};
pub use copy::Copied;
pub use credentials::{CredentialStore, Credentials, CredentialsError, Found};
pub use docker_auths::DockerAuths;
pub use error::{Error, RegistryMessage, Target};
pub use keyring::{Keyring, Token, TokenRequest};
pub use manifests::MANIFEST_LIMIT_BYTES;
pub use oci_spec::image::Descriptor;
pub use placed::{PlacedBlobs, Placing, Turn};
pub use reader::BlobReader;
pub use silence::SilenceLimit;
pub use upload::Upload;

use bytes::Bytes;
use endpoint::Endpoint;
use http::{HeaderMap, StatusCode};
use response::Response;
use transport::{Exchange, Transport};

use challenge::Scopes;
use reader::{ReadFrom, Reading};
use retry::Retry;

use crate::reference::Repository;

/// A client of any number of registries.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
    /// See [`Self::with_retry_counter`].
    retries: Option<Arc<AtomicU64>>,
    /// See [`Self::with_silence_limit`].
    silence: Option<SilenceLimit>,
}

impl Client {
    /// A client with `config`. Nothing is connected, and no credentials are read, before they are needed.
    pub fn new(config: ClientConfig) -> Result<Self, Error> {
        config.check()?;
        Ok(Self { transport: Arc::new(Transport::new(config)), retries: None, silence: None })
    }

    /// A client with `config` instead, and connections of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Config`]: the settings are wrong.
    pub fn with_config(&self, config: ClientConfig) -> Result<Self, Error> {
        config.check()?;
        Ok(Self { transport: Arc::new(self.transport.with_config(config)), ..self.clone() })
    }

    /// Waits until no upload is open any more, of this client and of all that were made of it: those that were left without a
    /// word have been given up at their registries then, as far as these answer. For a process that is about to end.
    pub async fn uploads_ended(&self) {
        self.transport.uploads.close();
        self.transport.uploads.wait().await;
    }

    /// The same client with the credentials of `keyring`, which are never used for anybody else. Where it has none, those
    /// of files are used if `fall_back`.
    pub fn with_keyring(&self, keyring: Arc<dyn Keyring>, fall_back: bool) -> Self {
        Self { transport: Arc::new(self.transport.with_keyring(keyring, fall_back)), ..self.clone() }
    }

    /// The same client for repositories as `source` says that they are read: it reads no files of registries, without
    /// which a process without a file system can use it. It is for reads alone.
    pub fn with_access(&self, source: Arc<dyn AccessSource>) -> Self {
        Self { transport: Arc::new(self.transport.with_source(source)), ..self.clone() }
    }

    /// How a repository is read now: by our settings and containerd's, with the credentials of Docker's file and helpers.
    /// Where those for the registry itself cannot be read it is without any, and with the reason.
    pub async fn access(&self, repository: &Repository) -> (RepositoryAccess, Option<CredentialsError>) {
        self.transport.access(repository).await
    }

    /// The same client, which finds the addresses of hosts by `resolver` instead of by the system's files. Its connections are
    /// its own.
    pub fn with_resolver(&self, resolver: Arc<dyn reqwest::dns::Resolve>) -> Self {
        Self { transport: Arc::new(self.transport.with_resolver(resolver)), ..self.clone() }
    }

    /// The same client, which counts in `counter` how often it sends a request for a blob's bytes or size again: after a failure that
    /// may go away, and to the next host after a mirror that failed. What answers a challenge is the same request.
    pub fn with_retry_counter(&self, counter: Arc<AtomicU64>) -> Self {
        Self { retries: Some(counter), ..self.clone() }
    }

    /// The same client, with connections of its own, which gives up a push when its registry has been silent for so long, with all attempts:
    /// [`Error::Silent`]. What is longer of [`Timeouts::idle`] and [`Timeouts::operation`] is cut so that all attempts fit in.
    pub fn with_silence_limit(&self, limit: SilenceLimit) -> Self {
        let transport = self.transport.with_config(limit.applied_to(self.config()));
        Self { transport: Arc::new(transport), silence: Some(limit), ..self.clone() }
    }

    /// How `host` (`HOST[:PORT]`) itself is reached, by our settings and containerd's.
    pub fn connection(&self, host: &str) -> Connection {
        Connection::clone(&self.transport.connection_to(host))
    }

    /// Reads the certificate authorities of the system now, rather than when they are needed first. It is done once for a
    /// client and all that are made of it.
    pub fn load_system_roots(&self) {
        self.transport.load_system_roots();
    }

    /// The configuration in use.
    pub fn config(&self) -> &ClientConfig {
        &self.transport.config
    }

    /// An HTTP client with the connection settings of `host` (`HOST[:PORT]`), for what is no registry: it follows no
    /// redirects, sends no credentials and repeats nothing.
    ///
    /// # Errors
    ///
    /// [`Error`]: the settings are not valid.
    pub fn http(&self, host: &str, secure: bool) -> Result<reqwest::Client, Error> {
        self.transport.http(host, secure)
    }

    /// An HTTP client like that of [`Self::http`] for `url`, reached over `connection` alone, without its headers.
    ///
    /// # Errors
    ///
    /// [`Error`]: the connection's settings are not valid, or the URL is none.
    pub fn http_over(&self, url: &str, connection: Connection) -> Result<reqwest::Client, Error> {
        self.transport.http_over(url, connection)
    }

    /// Sends a small request to the registry itself, with retries under the deadline of small operations.
    async fn small(
        &self,
        target: &Target,
        scopes: &Scopes,
        good: &[StatusCode],
        exchange: impl Fn(&Endpoint) -> Result<Exchange, Error>,
    ) -> Result<Response, Error> {
        let config = self.config();
        let endpoint = self.transport.origin(&target.host);
        let mut retry = Retry::within(&config.retries, target, config.timeouts.operation);
        loop {
            let call = self.transport.call_expecting(target, &endpoint, scopes, exchange(&endpoint)?, good);
            match retry.bound(call).await {
                Ok(response) => return Ok(response),
                Err(error) => retry.pause(error).await?,
            }
        }
    }

    /// Sends a small read `from` where it may be, and returns what `accept` makes of the answer's head and its
    /// body of up to `limit_bytes`. A mirror whose answer is not accepted is passed over.
    async fn small_read<T>(
        &self,
        target: &Target,
        scopes: &Scopes,
        from: ReadFrom,
        limit_bytes: usize,
        exchange: impl Fn(&Endpoint) -> Result<Exchange, Error>,
        accept: impl Fn(&Target, HeaderMap, Bytes) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let config = self.config();
        let retry = Retry::within(&config.retries, target, config.timeouts.operation);
        let mut reading = Reading::new(self.transport.clone(), target.clone(), from, retry)?;
        loop {
            let attempt = async {
                let (endpoint, target) = (reading.endpoint(), reading.target());
                let exchange = exchange(endpoint)?;
                let call =
                    self.transport.call_expecting(&target, endpoint, scopes, exchange, &[StatusCode::OK]);
                let response = call.await?;
                let headers = response.headers().clone();
                accept(&target, headers, response.body(limit_bytes).await?)
            };
            match reading.retry.bound(attempt).await {
                Ok(answer) => return Ok(answer),
                Err(error) => reading.failed(error).await?,
            }
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", self.config()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_send<T: Send>(value: T) -> T {
        value
    }

    #[test]
    fn operations_can_run_in_spawned_tasks() {
        let client = Client::new(ClientConfig::default()).unwrap();
        let reference = crate::Reference::parse("localhost:1/x").unwrap();
        let repository = reference.repository();
        let digest = crate::digest::sha256(b"");
        drop(assert_send(client.manifest(&reference)));
        drop(assert_send(client.put_manifest(&reference, "", Bytes::new())));
        drop(assert_send(client.push_blob(repository, Bytes::new())));
        drop(assert_send(client.blob_range(repository, &digest, 0, 1)));
        drop(assert_send(client.blob_size(repository, &digest)));
        drop(assert_send(client.referrers(repository, &digest, None)));
        drop(assert_send(client.blob(repository, &digest).unwrap().into_stream()));
    }

    #[test]
    fn a_piece_size_of_zero_is_refused() {
        let upload = UploadConfig { piece_bytes: 0, ..UploadConfig::default() };
        let error = Client::new(ClientConfig { upload, ..ClientConfig::default() }).unwrap_err().to_string();
        assert!(error.contains("upload.piece_bytes"), "{error}");
    }
}
