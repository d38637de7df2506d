//! Where a repository is served, and the URLs there.

use std::sync::Arc;

use reqwest::Url;

use super::access::Connection;
use super::error::{Error, Target};
use crate::reference::Repository;

/// By this parameter containerd tells a mirror whose content it asks for.
const REGISTRY_PARAMETER: &str = "ns";

/// A place that serves a repository: the registry itself or a mirror of it.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The host by which credentials and settings are looked up.
    pub(super) host: String,
    pub(super) base: String,
    /// The API's path there.
    pub(super) api: String,
    /// For a mirror, the registry it stands in for.
    pub(super) mirrored: Option<String>,
    /// Whether another is asked if this one fails.
    pub(super) has_next: bool,
    /// How it is reached.
    pub(super) connection: Arc<Connection>,
}

impl Endpoint {
    /// The URL of `path` below the repository's API.
    pub(super) fn url(&self, target: &Target, repository: &Repository, path: &str) -> Result<Url, Error> {
        let text = format!("{}{}/{}/{path}", self.base, self.api, repository.name());
        let mut url = Url::parse(&text).map_err(|e| Error::protocol(target, format!("URL {text}: {e}")))?;
        self.name_registry(&mut url);
        Ok(url)
    }

    /// The URL of the list of all repositories, or of a further page of it.
    pub(super) fn catalog(&self, target: &Target, query: Option<&str>) -> Result<Url, Error> {
        let text = format!("{}/v2/_catalog", self.base);
        let mut url = Url::parse(&text).map_err(|e| Error::protocol(target, format!("URL {text}: {e}")))?;
        url.set_query(query);
        Ok(url)
    }

    /// The URL of a further page of the list `path`, as the query that came with the page before names it.
    pub(super) fn page(
        &self,
        target: &Target,
        repository: &Repository,
        path: &str,
        query: &str,
    ) -> Result<Url, Error> {
        let mut url = self.url(target, repository, path)?;
        url.set_query(Some(query));
        // Most mirrors leave out of their links what they do not know.
        if !url.query_pairs().any(|(name, _)| name == REGISTRY_PARAMETER) {
            self.name_registry(&mut url);
        }
        Ok(url)
    }

    /// The registry whose content it serves, as in references.
    pub(super) fn registry(&self) -> &str {
        self.mirrored.as_deref().unwrap_or(&self.host)
    }

    fn name_registry(&self, url: &mut Url) {
        if let Some(registry) = &self.mirrored {
            url.query_pairs_mut().append_pair(REGISTRY_PARAMETER, registry);
        }
    }

    /// Whether this stands in for a registry.
    pub(super) fn is_mirror(&self) -> bool {
        self.has_next
    }
}
