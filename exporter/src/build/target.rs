//! Where an output goes, as far as that has to be found out: whether a registry that need not be secure speaks TLS.
//!
//! It is found out when the first layer comes and not before, because buildkitd has to hear of a build within three
//! seconds of its client's first call for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use registry::client::{Client, ClientConfig, Error, Keyring};
use registry::reference::Repository;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::keys::Attrs;
use image::destination::{Destination, InRegistry, Nowhere};

/// For finding out whether a registry speaks TLS.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Where an output goes.
pub(crate) struct Target {
    kind: TargetKind,
    /// How long its registry may take until it answers for the first time.
    answer_patience: Duration,
    destination: OnceCell<Arc<dyn Destination>>,
}

enum TargetKind {
    Nowhere,
    Registry { client: Client, repository: Repository },
    Insecure { client: Client, builder: Arc<dyn Keyring>, repository: Repository },
}

/// Why nothing can go there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error(transparent)]
    Registry(#[from] Error),
    #[error("registry {host} gave no usable answer within {} s, which is exporter.registry_answer_seconds", after.as_secs())]
    Silent { host: String, after: Duration },
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repository = match &self.kind {
            TargetKind::Nowhere => None,
            TargetKind::Registry { repository, .. } | TargetKind::Insecure { repository, .. } => {
                Some(repository)
            }
        };
        f.debug_struct("Target").field("repository", &repository).finish_non_exhaustive()
    }
}

impl Target {
    /// `repository` as the target that `attrs` ask for, or none; reached by `client` unless they ask for other ways. The credentials are those of
    /// `builder`, whoever builds; our own are used instead if it has none and `own_credentials`, and never where anybody
    /// could stand in the registry's place.
    pub(crate) fn new(
        attrs: &Attrs,
        repository: Option<&Repository>,
        client: &Client,
        builder: Arc<dyn Keyring>,
        own_credentials: bool,
        answer_patience: Duration,
    ) -> Self {
        let kind = match repository.filter(|_| attrs.push).cloned() {
            None => TargetKind::Nowhere,
            Some(repository) if attrs.insecure => {
                TargetKind::Insecure { client: client.clone(), builder, repository }
            }
            Some(repository) => {
                TargetKind::Registry { client: client.with_keyring(builder, own_credentials), repository }
            }
        };
        Self { kind, answer_patience, destination: OnceCell::new() }
    }

    /// A target that need not be found out.
    pub(crate) fn ready(destination: Arc<dyn Destination>) -> Self {
        Self {
            kind: TargetKind::Nowhere,
            answer_patience: Duration::ZERO,
            destination: OnceCell::new_with(Some(destination)),
        }
    }

    /// The destination.
    pub(crate) async fn destination(&self) -> Result<&Arc<dyn Destination>, TargetError> {
        self.destination.get_or_try_init(|| self.find_out()).await
    }

    async fn find_out(&self) -> Result<Arc<dyn Destination>, TargetError> {
        let found = self.reach().await?;
        let Some((client, repository)) = found.repository() else { return Ok(found) };
        // Whatever it answers; what that means shows when something is sent.
        let any = registry::digest::sha256(b"");
        if timeout(self.answer_patience, client.has_blob(repository, &any)).await.is_err() {
            let (host, after) = (repository.host().to_owned(), self.answer_patience);
            return Err(TargetError::Silent { host, after });
        }
        Ok(found)
    }

    async fn reach(&self) -> Result<Arc<dyn Destination>, Error> {
        Ok(match &self.kind {
            TargetKind::Nowhere => Arc::new(Nowhere),
            TargetKind::Registry { client, repository } => {
                Arc::new(InRegistry::new(client.clone(), repository.clone()))
            }
            TargetKind::Insecure { client, builder, repository } => {
                let client = insecure_client(client, builder, repository).await?;
                Arc::new(InRegistry::new(client, repository.clone()))
            }
        })
    }
}

/// A client that takes the registry with any certificate or, if it speaks no TLS, without.
async fn insecure_client(
    client: &Client,
    builder: &Arc<dyn Keyring>,
    repository: &Repository,
) -> Result<Client, Error> {
    let mut config = client.config().clone();
    let settings = config.hosts.entry(repository.host().to_owned()).or_default();
    settings.insecure_skip_verify = true;
    if settings.plain_http.is_none() {
        settings.plain_http = Some(false);
        let tls = speaks_tls(config.clone(), builder, repository).await?;
        config.hosts.entry(repository.host().to_owned()).or_default().plain_http = Some(!tls);
    }
    Ok(client.with_config(config)?.with_keyring(Arc::clone(builder), false))
}

/// Whether a registry answers at all when spoken to as `config` says, with TLS; what it answers does not matter.
async fn speaks_tls(
    mut config: ClientConfig,
    builder: &Arc<dyn Keyring>,
    repository: &Repository,
) -> Result<bool, Error> {
    config.retries.attempts = 1;
    config.timeouts.connect = PROBE_DEADLINE;
    config.timeouts.idle = PROBE_DEADLINE;
    config.timeouts.operation = PROBE_DEADLINE;
    let client = Client::new(config)?.with_keyring(Arc::clone(builder), false);
    let answer = client.has_blob(repository, &registry::digest::sha256(b"")).await;
    Ok(answer.map_or_else(|error| error.status().is_some(), |_| true))
}
