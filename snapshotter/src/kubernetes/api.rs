//! The API server's answers, as far as they are needed: pods of this node, and secrets by name.

use std::collections::BTreeMap;
use std::time::Duration;

use registry::client::Client;
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::kubeconfig::{Kubeconfig, Login};

/// A request's answer has to be there within this.
const DEADLINE: Duration = Duration::from_secs(10);
/// No answer is larger: 500 pods of 64 KiB each, and a secret has a MiB at most.
const ANSWER_LIMIT_BYTES: usize = 32 << 20;
/// Pods in one answer.
const PAGE: &str = "500";

/// The API server does not give what it is asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// It refused.
    #[error("{url}: {status}: {message}")]
    Refused { url: String, status: StatusCode, message: String },
    /// No answer, or none that can be read.
    #[error("{url}: {reason}")]
    Failed { url: String, reason: String },
    /// The connection's settings cannot be used.
    #[error(transparent)]
    Settings(#[from] registry::client::Error),
}

impl ApiError {
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::NOT_FOUND, .. })
    }
}

/// A connection to the API server.
pub(super) struct Api<'a> {
    server: &'a str,
    login: &'a Login,
    http: reqwest::Client,
}

/// A list of pods, and where it goes on.
#[derive(Deserialize)]
struct PodList {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Pod>,
}

#[derive(Default, Deserialize)]
struct ListMeta {
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Meta,
    #[serde(default)]
    pub(super) spec: PodSpec,
}

#[derive(Deserialize)]
pub(super) struct Meta {
    #[serde(default)]
    pub(super) namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) image_pull_secrets: Vec<Named>,
    pub(super) init_containers: Vec<Container>,
    pub(super) containers: Vec<Container>,
    pub(super) ephemeral_containers: Vec<Container>,
    pub(super) volumes: Vec<Volume>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Container {
    pub(super) image: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Volume {
    pub(super) image: Option<ImageVolume>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ImageVolume {
    pub(super) reference: String,
}

#[derive(Deserialize)]
pub(super) struct Secret {
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) data: BTreeMap<String, String>,
}

/// What the API server says of a failure.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Failure {
    message: String,
}

impl<'a> Api<'a> {
    pub(super) fn new(kubeconfig: &'a Kubeconfig, client: &Client) -> Result<Self, ApiError> {
        let http = client.http_over(&kubeconfig.server, kubeconfig.connection.clone())?;
        Ok(Self { server: &kubeconfig.server, login: &kubeconfig.login, http })
    }

    /// The pods that run on a node, or are to.
    pub(super) async fn pods_on(&self, node: &str) -> Result<Vec<Pod>, ApiError> {
        let mut pods = Vec::new();
        let mut next = String::new();
        loop {
            let selector = format!("spec.nodeName={node}");
            let mut query = vec![("fieldSelector", selector.as_str()), ("limit", PAGE)];
            if !next.is_empty() {
                query.push(("continue", &next));
            }
            let page: PodList = self.get(&["pods"], &query).await?;
            pods.extend(page.items);
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(pods);
            }
        }
    }

    pub(super) async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, ApiError> {
        self.get(&["namespaces", namespace, "secrets", name], &[]).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, ApiError> {
        let base = format!("{}/api/v1", self.server);
        let failed = |url: &Url, reason: String| ApiError::Failed { url: url.to_string(), reason };
        let mut url = Url::parse(&base)
            .map_err(|error| ApiError::Failed { url: base.clone(), reason: error.to_string() })?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.get(url.clone()).header("accept", "application/json");
        let answer = async {
            let response = self.logged_in(request).send().await;
            let mut response = response.map_err(|error| failed(&url, causes(&error.without_url())))?;
            let mut body = Vec::new();
            while let Some(bytes) =
                response.chunk().await.map_err(|e| failed(&url, causes(&e.without_url())))?
            {
                if body.len() + bytes.len() > ANSWER_LIMIT_BYTES {
                    return Err(failed(&url, format!("the answer has more than {ANSWER_LIMIT_BYTES} bytes")));
                }
                body.extend_from_slice(&bytes);
            }
            Ok((response.status(), body))
        };
        let late = |_| failed(&url, format!("no answer within {DEADLINE:?}"));
        let (status, body) = tokio::time::timeout(DEADLINE, answer).await.map_err(late)??;
        if status != StatusCode::OK {
            let Failure { message } = serde_json::from_slice(&body).unwrap_or_default();
            return Err(ApiError::Refused { url: url.to_string(), status, message });
        }
        serde_json::from_slice(&body).map_err(|error| failed(&url, error.to_string()))
    }

    fn logged_in(&self, request: RequestBuilder) -> RequestBuilder {
        match self.login {
            Login::None => request,
            Login::Token(token) => request.bearer_auth(token),
            Login::Password { user, password } => request.basic_auth(user, Some(password)),
        }
    }
}

/// An error of the HTTP library with its causes.
fn causes(error: &reqwest::Error) -> String {
    crate::daemon::describe(error)
}
