//! Which manifests have which subject.
//!
//! CNCF distribution's layout has no place for this, so it is found by reading the repository's manifests, once,
//! and kept up to date after that: nothing on disk can be missing or wrong after another registry had the folder.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::header::HeaderName;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::error::Failure;
use super::manifests::Manifest;
use super::reply::Reply;
use super::request::Head;
use super::storage::Storage;
use super::{State, blocking};
use crate::digest::Digest;

const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An entry of the list.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    media_type: String,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Map<String, Value>>,
}

/// Referrers by the subject's digest.
type BySubject = HashMap<String, Vec<Referrer>>;

/// Referrers by repository: of those that were asked about.
#[derive(Default)]
pub(super) struct Referrers(Mutex<HashMap<String, BySubject>>);

impl Referrers {
    /// Notes a manifest that was stored.
    pub(super) fn added(&self, name: &str, digest: &Digest, size: usize, manifest: &Manifest) {
        let mut repositories = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // A repository that was not read yet will be with this manifest in it.
        if let Some(subjects) = repositories.get_mut(name) {
            note(subjects, digest, size, manifest);
        }
    }

    /// Forgets a manifest that is deleted.
    pub(super) fn removed(&self, name: &str, digest: &Digest) {
        let mut repositories = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for referrers in repositories.get_mut(name).into_iter().flat_map(HashMap::values_mut) {
            referrers.retain(|one| one.digest != digest.as_ref());
        }
    }

    fn of(&self, storage: &Storage, name: &str, subject: &Digest) -> Result<Vec<Referrer>, Failure> {
        // Held while the repository is read: a manifest stored meanwhile waits to be noted.
        let mut repositories = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !repositories.contains_key(name) {
            let mut subjects = BySubject::new();
            for digest in storage.revisions(name)? {
                let Some(stored) = storage.manifest(name, &digest)? else { continue };
                if let Ok(manifest) = serde_json::from_slice::<Manifest>(&stored.content) {
                    note(&mut subjects, &digest, stored.content.len(), &manifest);
                }
            }
            repositories.insert(name.to_owned(), subjects);
        }
        let subjects = repositories.get(name);
        Ok(subjects.and_then(|subjects| subjects.get(subject.as_ref())).cloned().unwrap_or_default())
    }
}

fn note(subjects: &mut BySubject, digest: &Digest, size: usize, manifest: &Manifest) {
    let Some(subject) = &manifest.subject else { return };
    let referrers = subjects.entry(subject.digest.clone()).or_default();
    if referrers.iter().any(|one| one.digest == digest.as_ref()) {
        return;
    }
    // An image stands for an artifact of its config's type.
    let config = manifest.config.as_ref().map(|config| config.media_type.clone());
    referrers.push(Referrer {
        media_type: manifest.kind().to_owned(),
        digest: digest.to_string(),
        size,
        artifact_type: manifest.artifact_type.clone().filter(|kind| !kind.is_empty()).or(config),
        annotations: manifest.annotations.clone(),
    });
}

/// GET of the manifests whose subject is `digest`.
pub(super) async fn get(state: &State, head: &Head, name: String, digest: Digest) -> Result<Reply, Failure> {
    let (storage, referrers): (_, Arc<Referrers>) = (state.storage.clone(), state.referrers.clone());
    let mut found = blocking(move || referrers.of(&storage, &name, &digest)).await?;
    let kind = head.parameter("artifactType").filter(|kind| !kind.is_empty());
    if let Some(kind) = kind {
        found.retain(|one| one.artifact_type.as_deref() == Some(kind));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found});
    let reply = Reply::json_as(OCI_INDEX, &index);
    Ok(if kind.is_some() { reply.header(FILTERS, "artifactType") } else { reply })
}
