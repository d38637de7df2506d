//! Manifests that refer to another by `subject`: the referrers API, and the tag scheme of registries without it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use oci_spec::image::{Descriptor, ImageIndex, ImageIndexBuilder, MediaType};
use serde::Deserialize;

use super::challenge::Scopes;
use super::endpoint::Endpoint;
use super::manifests::{MANIFEST_LIMIT_BYTES, next_query};
use super::reader::ReadFrom;
use super::transport::Exchange;
use super::{Client, Error, Target};
use crate::digest::Digest;
use crate::media_types::OCI_INDEX;
use crate::reference::{Reference, Repository};

/// By this header a registry says that it has noted a manifest's subject itself.
pub(super) const SUBJECT_HEADER: &str = "oci-subject";

/// By this header a registry says that it has filtered the list.
const FILTERS_HEADER: &str = "oci-filters-applied";

/// What a manifest says about its subject, and what the list of referrers repeats of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SubjectOf {
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    annotations: Option<std::collections::HashMap<String, String>>,
}

/// The list or a page of it, as far as it is looked at. Registries written in Go say `null` for none.
#[derive(Deserialize)]
struct ReferrersPage {
    manifests: Option<Vec<Descriptor>>,
}

impl Client {
    /// The manifests whose subject is `digest`, all or those of one artifact type.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let target = Target::new(Method::GET, repository, format!("referrers of {digest}"));
        let scopes = Scopes::pull(repository.name());
        let mut found = Vec::new();
        let mut filtered = false;
        let mut query: Option<String> = None;
        loop {
            let exchange = |endpoint: &Endpoint| {
                let path = format!("referrers/{digest}");
                let url = match (&query, artifact_type) {
                    (Some(query), _) => endpoint.page(&target, repository, &path, query)?,
                    (None, None) => endpoint.url(&target, repository, &path)?,
                    (None, Some(kind)) => {
                        let mut url = endpoint.url(&target, repository, &path)?;
                        url.query_pairs_mut().append_pair("artifactType", kind);
                        url
                    }
                };
                Ok(Exchange::new(Method::GET, url))
            };
            let accept = |target: &Target, headers: HeaderMap, body: Bytes| {
                let page: ReferrersPage = serde_json::from_slice(&body)
                    .map_err(|e| Error::protocol(target, format!("the list of referrers: {e}")))?;
                Ok((headers, page))
            };
            let call =
                self.small_read(&target, &scopes, ReadFrom::Mirrors, MANIFEST_LIMIT_BYTES, exchange, accept);
            let (headers, page) = match call.await {
                Ok(answer) => answer,
                // Before the specification's version 1.1 registries have no such list: whoever pushes keeps one under a tag.
                Err(error) if error.is_not_found() => {
                    found = self.tagged_referrers(repository, digest).await?;
                    break;
                }
                Err(error) => return Err(error),
            };
            filtered =
                headers.get(FILTERS_HEADER).is_some_and(|h| h == HeaderValue::from_static("artifactType"));
            let manifests = page.manifests.unwrap_or_default();
            let empty = manifests.is_empty();
            found.extend(manifests);
            let next = next_query(&headers);
            // A registry that sends nothing more, or the same page again, would be asked without end.
            if empty || next.is_none() || next == query {
                break;
            }
            query = next;
        }
        // Registries may ignore the filter, and say so by not saying that they applied it.
        if let Some(kind) = artifact_type
            && !filtered
        {
            found.retain(|one| one.artifact_type().as_ref().is_some_and(|have| have.to_string() == kind));
        }
        Ok(found)
    }

    /// After a manifest with a subject was put into a registry that did not say it noted that: adds it to
    /// the tag that stands in for the list.
    pub(super) async fn note_referrer(
        &self,
        repository: &Repository,
        mut descriptor: Descriptor,
        manifest: &[u8],
        noted: bool,
    ) -> Result<(), Error> {
        let Ok(SubjectOf { subject: Some(subject), artifact_type, config, annotations }) =
            serde_json::from_slice(manifest)
        else {
            return Ok(());
        };
        if noted {
            return Ok(());
        }
        let kind = artifact_type.or_else(|| config.map(|config| config.media_type().to_string()));
        descriptor.set_artifact_type(kind.map(|kind| MediaType::from(kind.as_str())));
        descriptor.set_annotations(annotations);
        // Read, changed and put again: the specification has no lock for this tag, and where two clients do it at once one
        // entry may be lost. Registries since version 1.1 keep the list themselves.
        let mut manifests = self.tagged_referrers(repository, subject.digest()).await?;
        if manifests.iter().any(|one| one.digest() == descriptor.digest()) {
            return Ok(());
        }
        manifests.push(descriptor);
        let reference = fallback_tag(repository, subject.digest())?;
        let target =
            Target::new(Method::PUT, repository, format!("list of referrers {}", reference.identifier()));
        let text = serde_json::to_vec(&index_of(manifests, &target)?)
            .map_err(|e| Error::protocol(&target, e.to_string()))?;
        Box::pin(self.put_manifest(&reference, OCI_INDEX, Bytes::from(text))).await?;
        Ok(())
    }

    async fn tagged_referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, Error> {
        let reference = fallback_tag(repository, digest)?;
        let target =
            Target::new(Method::GET, repository, format!("list of referrers {}", reference.identifier()));
        // Not of a mirror: the list is written again with one more, and an older one would lose those that came since.
        match self.manifest_at_registry(&reference).await {
            Ok((_, body)) => {
                let page: ReferrersPage =
                    serde_json::from_slice(&body).map_err(|e| Error::protocol(&target, e.to_string()))?;
                Ok(page.manifests.unwrap_or_default())
            }
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn index_of(manifests: Vec<Descriptor>, target: &Target) -> Result<ImageIndex, Error> {
    let builder = ImageIndexBuilder::default().schema_version(2u32).media_type(MediaType::ImageIndex);
    builder.manifests(manifests).build().map_err(|e| Error::protocol(target, e.to_string()))
}

/// `ALGORITHM-HEX`, as the specification has it.
fn fallback_tag(repository: &Repository, digest: &Digest) -> Result<Reference, Error> {
    let tag = format!("{}-{}", digest.algorithm(), digest.digest());
    let target = Target::new(Method::GET, repository, format!("referrers of {digest}"));
    repository.with_tag(&tag).map_err(|e| Error::protocol(&target, e.to_string()))
}
