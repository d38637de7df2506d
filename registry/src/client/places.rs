//! Where a repository is read, by the settings or as somebody else says, and how these hosts are reached.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::access::{AccessSource, Connection, Pem, Place, RepositoryAccess};
use super::certs_dir::{KNOWN_FOR, ListedHost};
use super::credentials::{CredentialStore, Credentials, CredentialsError, Found};
use super::endpoint::Endpoint;
use super::error::{Error, Target};
use super::transport::Transport;
use crate::reference::{Repository, api_host};

impl Transport {
    /// The registry itself.
    pub(super) fn origin(&self, host: &str) -> Endpoint {
        Endpoint {
            host: host.to_owned(),
            base: self.config.base_url(host),
            api: "/v2".to_owned(),
            mirrored: None,
            has_next: false,
            connection: self.connection_to(host),
        }
    }

    /// Where to read `target` from: mirrors in their order, then the registry. Left out are mirrors that failed, or
    /// did not have this, a short time ago.
    pub(super) fn readers(&self, target: &Target) -> Result<Vec<Endpoint>, Error> {
        let mut endpoints = match &self.source {
            None => self.configured(&target.host),
            Some(source) => supplied(source.as_ref(), target)?,
        };
        let last = endpoints.pop();
        for endpoint in &mut endpoints {
            endpoint.has_next = true;
        }
        endpoints.retain(|endpoint| self.known.mirrors.is_asked(&endpoint.host, target));
        Ok(endpoints.into_iter().chain(last).collect())
    }

    /// Where the settings say that repositories of `host` are read.
    fn configured(&self, host: &str) -> Vec<Endpoint> {
        match self.certs_of(host) {
            Some(listed) if !listed.is_empty() => listed.iter().map(|at| self.listed(host, at)).collect(),
            _ => {
                let mirrors = self.config.host(host).mirrors.into_iter();
                mirrors.map(|mirror| self.mirror(host, mirror)).chain([self.origin(host)]).collect()
            }
        }
    }

    /// How a repository is read, by the settings and with the credentials of files.
    pub(super) async fn access(
        &self,
        repository: &Repository,
    ) -> (RepositoryAccess, Option<CredentialsError>) {
        let store =
            CredentialStore::new(self.config.docker_config_file(), self.config.timeouts.credential_helper);
        let (mut places, mut failure) = (Vec::new(), None);
        for endpoint in self.configured(repository.host()) {
            let found = store.find(&endpoint.host, repository.name()).await;
            let credentials = found.unwrap_or_else(|error| {
                let origin = error.to_string();
                // Another place may do without a mirror's.
                failure = Some(error).filter(|_| endpoint.mirrored.is_none());
                Found { credentials: Credentials::Anonymous, origin }
            });
            places.push(Place {
                mirror: endpoint.mirrored.is_some(),
                host: endpoint.host,
                base: endpoint.base,
                api: endpoint.api,
                connection: Arc::unwrap_or_clone(endpoint.connection),
                credentials,
            });
        }
        (RepositoryAccess { places }, failure)
    }

    /// A mirror of `host` out of our own settings.
    fn mirror(&self, host: &str, mirror: String) -> Endpoint {
        let mirrored = Some(host.to_owned());
        match mirror.split_once("://") {
            Some((_, rest)) => {
                let host = rest.trim_end_matches('/');
                Endpoint { base: mirror.trim_end_matches('/').to_owned(), mirrored, ..self.origin(host) }
            }
            None => Endpoint { mirrored, ..self.origin(&mirror) },
        }
    }

    /// A place that containerd's settings of `host` list.
    fn listed(&self, host: &str, at: &ListedHost) -> Endpoint {
        let api = at.api.clone();
        match &at.base {
            None => Endpoint { connection: Arc::clone(&at.connection), api, ..self.origin(host) },
            Some(base) => {
                let authority = base.split_once("://").map_or(base.as_str(), |(_, authority)| authority);
                let mirrored = (authority != api_host(host)).then(|| host.to_owned());
                // Credentials are those of the registry, also where its API is elsewhere.
                let named = if mirrored.is_some() { authority } else { host };
                let connection = self.with_own(authority, &at.connection);
                Endpoint { base: base.clone(), api, mirrored, connection, ..self.origin(named) }
            }
        }
    }

    /// containerd's settings of `host`, where ours do not name it.
    fn certs_of(&self, host: &str) -> Option<Arc<Vec<ListedHost>>> {
        if self.config.hosts.contains_key(host) {
            return None;
        }
        self.certs.as_ref().map(|certs| certs.hosts(host))
    }

    /// How `host` itself is reached, as far as settings of it say that.
    pub(super) fn connection_to(&self, host: &str) -> Arc<Connection> {
        let listed = self.certs_of(host).and_then(|hosts| Self::itself(host, &hosts));
        listed.unwrap_or_else(|| self.with_own(host, &Arc::default()))
    }

    /// A connection with our own settings of `host`.
    fn with_own(&self, host: &str, connection: &Arc<Connection>) -> Arc<Connection> {
        let Some(own) = self.config.hosts.get(host) else { return Arc::clone(connection) };
        let mut merged = Connection::clone(connection);
        merged.authorities.extend(own.ca_file.iter().map(|path| self.pem(path)));
        merged.skip_verify |= own.insecure_skip_verify;
        Arc::new(merged)
    }

    /// A file of certificates, read again after a while.
    fn pem(&self, path: &PathBuf) -> Pem {
        let mut pems = self.known.pems.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match pems.get(path) {
            Some((read, pem)) if read.elapsed() < KNOWN_FOR => pem.clone(),
            _ => {
                let pem = Pem::read(path);
                pems.insert(path.clone(), (Instant::now(), pem.clone()));
                pem
            }
        }
    }

    /// Which of the places that containerd's settings of `host` list is that host.
    fn itself(host: &str, hosts: &[ListedHost]) -> Option<Arc<Connection>> {
        let is_itself = |at: &&ListedHost| {
            at.base
                .as_ref()
                .is_none_or(|base| base.split_once("://").is_some_and(|(_, at)| at == api_host(host)))
        };
        hosts.iter().find(is_itself).map(|at| Arc::clone(&at.connection))
    }
}

/// Where `source` says that a repository is read.
fn supplied(source: &dyn AccessSource, target: &Target) -> Result<Vec<Endpoint>, Error> {
    let access = source.access(&target.host, &target.repository);
    let endpoints = access.iter().flat_map(|access| &access.places).map(|place| Endpoint {
        host: place.host.clone(),
        base: place.base.clone(),
        api: place.api.clone(),
        mirrored: place.mirror.then(|| target.host.clone()),
        has_next: false,
        connection: Arc::new(place.connection.clone()),
    });
    let endpoints: Vec<_> = endpoints.collect();
    if endpoints.is_empty() {
        let reason = "nobody has said how this repository is read".to_owned();
        return Err(Error::Config {
            what: format!("repository {}/{}", target.host, target.repository),
            reason,
        });
    }
    Ok(endpoints)
}

/// The headers that go with a connection; what cannot be one is left out, as whoever read them has said before.
pub(super) fn headers_of(connection: &Connection) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &connection.headers {
        let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
            continue;
        };
        // It may be a credential.
        value.set_sensitive(true);
        headers.append(name, value);
    }
    headers
}
