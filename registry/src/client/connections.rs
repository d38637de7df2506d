//! HTTP clients, each with its connections: by what makes these differ, and whose they are.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use reqwest::Url;
use rustls::RootCertStore;

use super::access::{Connection, Pem};
use super::error::{Error, Target};
use super::lane::{Lane, Lanes};
use super::mirrors::MirrorState;
use super::sockets::Sockets;
use super::tls;
use super::transport::{Transport, authority};
use crate::reference::is_loopback;

/// Connections without use are closed after this: shorter than the idle limits of common registries
/// and load balancers, so that a request seldom meets a connection that is just being closed.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Connections that differ are kept up to this number: those to one host differ when its certificates are replaced.
const CLIENTS_KEPT: usize = 256;

/// What is known about registries, whoever asks.
#[derive(Default)]
pub(super) struct KnownRegistries {
    clients: Mutex<HashMap<ClientKey, HttpClient>>,
    /// Which clients are uploads' own.
    pub(super) lanes: Lanes,
    pub(super) mirrors: MirrorState,
    system_roots: OnceLock<RootCertStore>,
    /// Files of certificates that our own settings name, and when they were read.
    pub(super) pems: Mutex<HashMap<PathBuf, (Instant, Pem)>>,
}

/// An HTTP client.
#[derive(Clone)]
pub(super) struct HttpClient {
    pub(super) client: reqwest::Client,
    /// Its connections, where it is an upload's own.
    pub(super) sockets: Option<Sockets>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    secure: bool,
    loopback: bool,
    connection: Arc<Connection>,
    /// The number of the lane that it belongs to.
    lane: Option<usize>,
}

impl Transport {
    /// A client for what is no registry.
    pub(super) fn http(&self, host: &str, secure: bool) -> Result<reqwest::Client, Error> {
        let found = self.client(&Target::host(host), host, secure, self.connection_to(host), None);
        found.map(|found| found.client)
    }

    pub(super) fn http_over(&self, url: &str, connection: Connection) -> Result<reqwest::Client, Error> {
        let invalid = |reason: String| Error::Config { what: format!("URL {url}"), reason };
        let parsed = Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        let (host, secure) = (authority(&parsed), parsed.scheme() == "https");
        let found = self.client(&Target::host(&host), &host, secure, Arc::new(connection), None);
        found.map(|found| found.client)
    }

    /// Reads what the system trusts now rather than when it is needed first.
    pub(super) fn load_system_roots(&self) {
        self.system_roots();
    }

    fn system_roots(&self) -> RootCertStore {
        self.known.system_roots.get_or_init(tls::system_roots).clone()
    }

    /// The client for `host`: that of all, or of `lane`.
    pub(super) fn client(
        &self,
        target: &Target,
        host: &str,
        secure: bool,
        connection: Arc<Connection>,
        lane: Option<&Lane>,
    ) -> Result<HttpClient, Error> {
        // Without HTTPS no certificate is looked at: reading the system's can be left out.
        let any = || Arc::new(Connection { skip_verify: true, ..Connection::default() });
        let connection = if secure { connection } else { any() };
        let lane = lane.map(|lane| lane.number);
        let key = ClientKey { secure, loopback: is_loopback(host), connection, lane };
        let mut clients = self.known.clients.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("nydus-cluster/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls::config(&key.connection, || self.system_roots())?)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(self.config.timeouts.connect)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_nodelay(true);
        if key.loopback {
            builder = builder.no_proxy();
        }
        if let Some(resolver) = &self.resolver {
            builder = builder.dns_resolver(Arc::clone(resolver));
        }
        let sockets = lane.map(|_| Sockets::default());
        if let Some(sockets) = &sockets {
            builder = builder.connector_layer(sockets.clone());
        }
        let client = builder.build().map_err(|e| Error::connection(target, e))?;
        if clients.len() >= CLIENTS_KEPT {
            clients.clear();
        }
        let client = HttpClient { client, sockets };
        clients.insert(key, client.clone());
        Ok(client)
    }
}
