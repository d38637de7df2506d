//! Handing values out to the daemon: when an image is mounted, when they change, and when they were refused.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fuse_daemon::control::{BackendSpec, Client, ClientError, HandedOut};
use registry::client::Place;
use registry::reference::Repository;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::Broker;
use super::files::Looks;
use crate::daemon::describe;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long the daemon may wait for something to be refused before it answers.
const WAIT: Duration = Duration::from_secs(20);
/// How long the daemon may take to answer beyond that.
const CONTROL_DEADLINE: Duration = Duration::from_secs(10);
/// Before a daemon that answers nothing sensible is asked again.
const PAUSE: Duration = Duration::from_secs(5);

impl Broker {
    /// Gives the daemon what is known of the repositories among `backends`. A daemon that is older than these messages
    /// reads files of its own.
    pub(crate) async fn hand_out(&self, daemon: &Client, backends: &[BackendSpec]) {
        self.hand_out_of(daemon, &repositories(backends)).await;
    }

    async fn hand_out_of(&self, daemon: &Client, repositories: &[Repository]) {
        for repository in repositories {
            let Some(access) = self.values(repository) else { continue };
            let handed = HandedOut { repository: repository.to_string(), access: (*access).clone() };
            match daemon.hand_out(&[handed]).await {
                Ok(()) => debug!(%repository, "handed out the access to a repository"),
                Err(error @ ClientError::Reported { .. }) => {
                    warn!(%repository, error = describe(&error), "the daemon does not take the access to a repository");
                }
                // Whoever comes next is given all.
                Err(error) => {
                    debug!(%repository, error = describe(&error), "nobody takes the access to a repository")
                }
            }
        }
    }

    /// Gives a daemon all that is known, before it serves.
    pub(crate) async fn hand_out_all(&self, daemon: &Client) {
        let all: Vec<_> = self.all().keys().cloned().collect();
        self.hand_out_of(daemon, &all).await;
    }

    /// Serves one daemon until it ends: finds out again what it was refused with, and what files say that change.
    pub(crate) async fn serve(self: &Arc<Self>, daemon: Client) -> Infallible {
        let _following = {
            let (broker, daemon) = (Arc::clone(self), daemon.clone().with_deadline(CONTROL_DEADLINE));
            AbortOnDropHandle::new(tokio::spawn(async move { broker.follow_files(&daemon).await }))
        };
        let asking = daemon.clone().with_deadline(WAIT + CONTROL_DEADLINE);
        loop {
            match asking.renewals(WAIT).await {
                Ok(refused) => {
                    for repository in refused {
                        let Ok(repository) = Repository::parse(&repository) else { continue };
                        let (broker, daemon) = (Arc::clone(self), daemon.clone());
                        tokio::spawn(async move {
                            info!(%repository, "a registry refuses these credentials: looking for others");
                            broker.find_out(&repository, None).await;
                            broker.hand_out_of(&daemon, &[repository]).await;
                        });
                    }
                }
                Err(error) => {
                    debug!(error = describe(&error), "the daemon does not say what was refused");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Looks at files again and again, and finds out all anew when one has changed.
    async fn follow_files(self: &Arc<Self>, daemon: &Client) -> Infallible {
        let mut seen = self.look().await;
        let mut finding = JoinSet::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.look().await;
            if now == seen {
                continue;
            }
            seen = now;
            // What it has not come to is found out by the next.
            finding.shutdown().await;
            let (broker, daemon) = (Arc::clone(self), daemon.clone());
            finding.spawn(async move { broker.find_out_all(&daemon).await });
        }
    }

    /// Finds out again how all repositories are read, those of one registry one after the other: where it does not answer, that takes
    /// its time, and those of others do not wait for it.
    async fn find_out_all(&self, daemon: &Client) {
        let mut of_registry: BTreeMap<String, Vec<Repository>> = BTreeMap::new();
        for repository in self.all().keys() {
            of_registry.entry(repository.host().to_owned()).or_default().push(repository.clone());
        }
        let repositories: usize = of_registry.values().map(Vec::len).sum();
        info!(repositories, "settings or credentials of registries have changed");
        let each = of_registry.into_values().map(|repositories| async move {
            for repository in repositories {
                self.find_out_again(daemon, repository).await;
            }
        });
        futures::future::join_all(each).await;
    }

    async fn find_out_again(&self, daemon: &Client, repository: Repository) {
        let before = self.values(&repository);
        self.find_out(&repository, None).await;
        if self.values(&repository) != before {
            info!(%repository, "it is read in another way from now on");
            self.hand_out_of(daemon, &[repository]).await;
        }
    }

    /// The files of certificates and keys that repositories are read with, wherever settings say that these are.
    fn certificates(&self) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        let known: Vec<Repository> = self.all().keys().cloned().collect();
        for access in known.iter().filter_map(|repository| self.values(repository)) {
            for Place { connection, .. } in &access.places {
                let client =
                    connection.client.iter().flat_map(|client| iter::once(&client.chain).chain(&client.key));
                files.extend(connection.authorities.iter().chain(client).map(|pem| PathBuf::from(&pem.name)));
            }
        }
        files
    }

    async fn look(self: &Arc<Self>) -> Looks {
        let broker = Arc::clone(self);
        let look = move || {
            let mut files: Vec<PathBuf> = broker.config.docker_config_file().into_iter().collect();
            files.extend(broker.config.hosts.values().filter_map(|host| host.ca_file.clone()));
            files.extend(broker.kubernetes.iter().flat_map(crate::kubernetes::Kubernetes::files));
            let folders = broker.config.certs_dirs();
            // Those in the folders of single registries are looked at there.
            let is_in = |file: &PathBuf, folder: &PathBuf| {
                file.strip_prefix(folder).is_ok_and(|inside| inside.components().count() <= 2)
            };
            let is_elsewhere = |file: &PathBuf| !folders.iter().any(|folder| is_in(file, folder));
            files.extend(broker.certificates().into_iter().filter(is_elsewhere));
            Looks::at(&files, &folders)
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }
}

/// The repositories among backends.
pub(crate) fn repositories(backends: &[BackendSpec]) -> Vec<Repository> {
    let repository = |spec: &BackendSpec| match spec {
        BackendSpec::Registry { repository } => Repository::parse(repository).ok(),
        BackendSpec::Directory { .. } | BackendSpec::HttpDirectory { .. } => None,
    };
    backends.iter().filter_map(repository).collect()
}
