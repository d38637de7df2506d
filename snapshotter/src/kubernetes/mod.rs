//! Pull secrets of the pods on this node.
//!
//! containerd hands a snapshotter no credentials, and says neither pod nor namespace. The API server knows both: a pod that
//! an image is pulled for is bound to this node already, and names its secrets (those of its service account are entered
//! when it is made). A kubelet's own kubeconfig is enough: a node may list its pods and get the secrets that these name.

mod api;
mod kubeconfig;
mod secret;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use registry::client::{Client, Found};
use registry::reference::{Reference, Repository};
use tokio::sync::Mutex;
use tracing::{debug, warn};

use crate::daemon::describe;
use api::{Api, ApiError, Pod};
use kubeconfig::{Kubeconfig, KubeconfigError};
use secret::PullSecret;

/// Secrets that are asked for at the same time.
const SECRETS_AT_ONCE: usize = 8;

/// The API server, as far as pull secrets go.
pub(crate) struct Kubernetes {
    kubeconfig: PathBuf,
    node: String,
    client: Client,
    /// What came when the API server was asked last, for all who came before the moment that is noted with it. Locked meanwhile, so
    /// that others wait for that.
    last: Mutex<Option<(Instant, Arc<Secrets>)>>,
}

/// The pull secrets that pods on this node name.
#[derive(Default)]
pub(crate) struct Secrets {
    named: Vec<NamedSecret>,
    /// Why it cannot be said which secrets pods name now, if it cannot.
    unlisted: Option<String>,
    /// Secrets that are not as they are now: what pods that name them run, and why.
    unread: Vec<(BTreeSet<Repository>, String)>,
}

#[derive(Clone)]
struct NamedSecret {
    /// `NAMESPACE/NAME`.
    name: String,
    /// What pods that name it run.
    repositories: BTreeSet<Repository>,
    secret: Arc<PullSecret>,
}

/// Why pull secrets cannot be asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretsError {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error("pods on node {node}")]
    Pods { node: String, source: ApiError },
    #[error("the API server")]
    Api(#[from] ApiError),
}

impl Kubernetes {
    /// The pods are those of `node`. Nothing is read yet.
    pub(crate) fn new(kubeconfig: PathBuf, node: String, client: Client) -> Self {
        Self { kubeconfig, node, client, last: Mutex::default() }
    }

    /// The files that decide who is asked.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let named = Kubeconfig::read(&self.kubeconfig).map(|kubeconfig| kubeconfig.files);
        named.unwrap_or_else(|_| vec![self.kubeconfig.clone()])
    }

    /// The secrets as they are now. If the API server cannot be asked, those of the last time.
    pub(crate) async fn secrets(&self) -> Arc<Secrets> {
        let wanted = Instant::now();
        let mut last = self.last.lock().await;
        // Of many who want them at once one asks, for all that came before it began.
        if let Some((before, secrets)) = &*last
            && *before >= wanted
        {
            return Arc::clone(secrets);
        }
        let began = Instant::now();
        let known = last.as_ref().map(|(_, secrets)| secrets.named.as_slice()).unwrap_or_default();
        let (before, secrets) = match self.ask(known).await {
            Ok(secrets) => (began, secrets),
            Err(error) => {
                let problem = describe(&error);
                warn!(error = problem, "pull secrets cannot be read from the API server");
                // It would give those who wait nothing else: where it does not answer, each of them had to wait as long once more.
                let unlisted = Some(problem);
                (Instant::now(), Secrets { named: known.to_vec(), unlisted, ..Secrets::default() })
            }
        };
        let secrets = Arc::new(secrets);
        *last = Some((before, Arc::clone(&secrets)));
        secrets
    }

    /// Asks for the secrets; those that cannot be read now are as they were when they became `known`.
    async fn ask(&self, known: &[NamedSecret]) -> Result<Secrets, SecretsError> {
        let path = self.kubeconfig.clone();
        let kubeconfig = tokio::task::spawn_blocking(move || Kubeconfig::read(&path)).await;
        let kubeconfig = kubeconfig.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let api = Api::new(&kubeconfig, &self.client)?;
        let pods = api.pods_on(&self.node).await;
        let pods = pods.map_err(|source| SecretsError::Pods { node: self.node.clone(), source })?;
        let named = named_by(&pods);
        let asked = named.into_iter().map(|((namespace, name), repositories)| {
            let api = &api;
            async move {
                let secret = api.secret(&namespace, &name).await;
                (format!("{namespace}/{name}"), repositories, secret)
            }
        });
        let answers: Vec<_> = futures::stream::iter(asked).buffered(SECRETS_AT_ONCE).collect().await;
        let mut secrets = Secrets::default();
        for (name, repositories, secret) in answers {
            let secret = match secret.map(|secret| PullSecret::parse(&secret)) {
                Ok(Ok(secret)) => Some(Arc::new(secret)),
                Ok(Err(reason)) => {
                    warn!(secret = name, reason, "a pull secret is not used");
                    None
                }
                // Kubernetes has pods name what is not there.
                Err(error) if error.is_not_found() => {
                    debug!(secret = name, "there is no such pull secret");
                    None
                }
                Err(error) => {
                    let problem = describe(&error);
                    warn!(secret = name, error = problem, "a pull secret cannot be read");
                    secrets.unread.push((repositories.clone(), format!("pull secret {name}: {problem}")));
                    known.iter().find(|known| known.name == name).map(|known| Arc::clone(&known.secret))
                }
            };
            secrets.named.extend(secret.map(|secret| NamedSecret { name, repositories, secret }));
        }
        Ok(secrets)
    }
}

impl Secrets {
    /// Credentials for a host's repository, those first whose pods run an image of `image`, and of these the most particular
    /// first.
    pub(crate) fn of(&self, host: &str, repository: &str, image: &Repository) -> Vec<Found> {
        let (ours, others): (Vec<_>, Vec<_>) =
            self.named.iter().partition(|secret| secret.repositories.contains(image));
        let all = ours.into_iter().chain(others);
        let found = all.flat_map(|NamedSecret { name, secret, .. }| {
            secret.of(host, repository).into_iter().filter_map(move |credentials| match credentials {
                Ok(credentials) => Some(Found { credentials, origin: format!("pull secret {name}") }),
                Err(reason) => {
                    warn!(secret = name, host, reason, "an entry of a pull secret is not used");
                    None
                }
            })
        });
        found.collect()
    }

    /// Why these may not be all that there are for an image of `image`, or not as they are now: then a registry that refuses
    /// them says nothing. A secret that nobody can read must not have each image on the node pulled that cannot be read, so it counts
    /// for what its own pods run alone.
    pub(crate) fn failure_of(&self, image: &Repository) -> Option<String> {
        let unread = self.unread.iter().find(|(repositories, _)| repositories.contains(image));
        self.unlisted.clone().or_else(|| unread.map(|(_, problem)| problem.clone()))
    }
}

/// Secrets by namespace and name, and the repositories of what the pods run that name them.
fn named_by(pods: &[Pod]) -> BTreeMap<(String, String), BTreeSet<Repository>> {
    let mut named: BTreeMap<(String, String), BTreeSet<Repository>> = BTreeMap::new();
    for Pod { metadata, spec } in pods {
        let containers =
            spec.init_containers.iter().chain(&spec.containers).chain(&spec.ephemeral_containers);
        let images = containers.map(|container| container.image.as_str());
        let volumes = spec.volumes.iter().filter_map(|volume| volume.image.as_ref());
        let images = images.chain(volumes.map(|image| image.reference.as_str()));
        let repositories = images.filter_map(|image| Reference::parse(image).ok());
        let repositories: Vec<_> = repositories.map(|image| image.repository().clone()).collect();
        for secret in spec.image_pull_secrets.iter().filter(|secret| !secret.name.is_empty()) {
            let key = (metadata.namespace.clone(), secret.name.clone());
            named.entry(key).or_default().extend(repositories.iter().cloned());
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use registry::client::ClientConfig;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_secret_that_cannot_be_read_counts_for_what_its_pods_run() {
        let [ours, other] = ["a.example/i", "a.example/j"].map(|text| Repository::parse(text).unwrap());
        let unread = vec![(BTreeSet::from([ours.clone()]), "pull secret team/regcred".to_owned())];
        let mut secrets = Secrets { unread, ..Secrets::default() };
        assert_eq!(secrets.failure_of(&ours).as_deref(), Some("pull secret team/regcred"));
        assert_eq!(secrets.failure_of(&other), None);
        secrets.unlisted = Some("pods on node x".to_owned());
        assert_eq!(secrets.failure_of(&other).as_deref(), Some("pods on node x"));
    }

    #[tokio::test]
    async fn an_api_server_that_fails_is_asked_once_for_all_who_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubelet.conf");
        let text = format!(
            "current-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n",
            listener.local_addr().unwrap()
        );
        std::fs::write(&kubeconfig, text).unwrap();
        let client = Client::new(ClientConfig::default()).unwrap();
        let kubernetes = Kubernetes::new(kubeconfig, "node".to_owned(), client);
        let mut asked = 0;
        let failing = async {
            loop {
                drop(listener.accept().await.unwrap());
                asked += 1;
            }
        };
        let waiting = futures::future::join_all((0..5).map(|_| kubernetes.secrets()));
        let secrets = tokio::select! {
            biased;
            secrets = waiting => secrets,
            () = failing => unreachable!("it fails for ever"),
        };
        assert!(
            secrets.len() == 5
                && secrets.iter().all(|secrets| secrets.named.is_empty() && secrets.unlisted.is_some())
        );
        assert_eq!(asked, 1);
    }
}
