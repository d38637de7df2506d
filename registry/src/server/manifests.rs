//! Manifests: checked when they come in, found by tag or digest.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH, LOCATION};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::body::Body;
use super::error::{Code, Failure};
use super::reply::Reply;
use super::request::{Head, RequestBody};
use super::routes::ManifestName;
use super::storage::Storage;
use super::{ServerState, blocking};
use crate::digest::{self, Digest, Hasher};
use crate::layout;
use crate::media_types::{DOCKER_SCHEMA_1, DOCKER_SCHEMA_1_PLAIN, OCI_INDEX, OCI_MANIFEST};

/// The largest manifest taken: what the specification asks for at least, and what others take at most.
const LIMIT_BYTES: usize = 4 << 20;

/// How much the manifests that come at a time may be together, from what they announce on: eight of the largest, thousands of
/// common ones.
pub(super) const ROOM_BYTES: u32 = 32 << 20;

/// Says that the manifest's subject was noted.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// What is looked at in a manifest of any kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) media_type: Option<String>,
    pub(super) artifact_type: Option<String>,
    pub(super) config: Option<Content>,
    pub(super) subject: Option<Content>,
    pub(super) annotations: Option<serde_json::Map<String, serde_json::Value>>,
    schema_version: Option<u64>,
    /// `null` is an empty list: what Go writes for an image without layers.
    layers: Option<Vec<Content>>,
    /// Of an artifact manifest.
    blobs: Option<Vec<Content>>,
    manifests: Option<Vec<Content>>,
}

/// A descriptor, as far as it is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Content {
    pub(super) media_type: String,
    pub(super) digest: String,
    /// Where content lies that no registry distributes.
    urls: Option<Vec<String>>,
}

impl Manifest {
    /// What kind of manifest this is: what it says, else what it looks like.
    pub(super) fn kind(&self) -> &str {
        kind(self.media_type.as_deref(), self.schema_version, self.manifests.is_some())
    }
}

/// By this the kind of a manifest is known, whatever else it holds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct KindOnly {
    media_type: Option<String>,
    schema_version: Option<u64>,
    manifests: Option<IgnoredAny>,
}

fn kind(media_type: Option<&str>, schema_version: Option<u64>, has_manifests: bool) -> &str {
    match media_type {
        Some(kind) if !kind.is_empty() => kind,
        _ if schema_version == Some(1) => DOCKER_SCHEMA_1,
        _ if has_manifests => OCI_INDEX,
        _ => OCI_MANIFEST,
    }
}

/// GET and HEAD of a manifest.
pub(super) async fn get(
    state: &ServerState,
    head: &Head,
    name: String,
    reference: ManifestName,
) -> Result<Reply, Failure> {
    let storage = state.storage.clone();
    let found = blocking(move || find(&storage, &name, &reference)).await?;
    let (digest, content) = found;
    let etag = format!("\"{digest}\"");
    if head.header(IF_NONE_MATCH).is_some_and(|tags| tags.contains(&etag)) {
        return Ok(Reply::empty(StatusCode::NOT_MODIFIED).header(ETAG, &etag).digest(&digest));
    }
    let KindOnly { media_type, schema_version, manifests } =
        serde_json::from_slice(&content).unwrap_or_default();
    let kind = kind(media_type.as_deref(), schema_version, manifests.is_some());
    let length = content.len() as u64;
    let send = *head.method() == Method::GET;
    let body = Body::Bytes(if send { content.into() } else { Default::default() });
    let reply = Reply::empty(StatusCode::OK).header(CONTENT_TYPE, kind).header(ETAG, &etag);
    Ok(reply.digest(&digest).body(body).length(length))
}

fn find(storage: &Storage, name: &str, reference: &ManifestName) -> Result<(Digest, Vec<u8>), Failure> {
    let digest = match reference {
        ManifestName::Digest(digest) => Some(digest.clone()),
        ManifestName::Tag(tag) => storage.layout.tagged(name, tag)?,
    };
    let content = match &digest {
        Some(digest) => storage.layout.manifest(name, digest)?,
        None => None,
    };
    match digest.zip(content) {
        Some(found) => Ok(found),
        None if storage.layout.has_repository(name)? => {
            Err(Failure::new(Code::ManifestUnknown, described(reference)))
        }
        None => Err(Failure::new(Code::NameUnknown, name)),
    }
}

fn described(reference: &ManifestName) -> &str {
    match reference {
        ManifestName::Digest(digest) => digest.as_ref(),
        ManifestName::Tag(tag) => tag,
    }
}

/// PUT of a manifest.
pub(super) async fn put(
    state: &ServerState,
    head: &Head,
    body: &mut RequestBody,
    name: String,
    reference: ManifestName,
) -> Result<Reply, Failure> {
    let length = head.header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > LIMIT_BYTES as u64) {
        return Err(Failure::new(Code::ManifestTooLarge, format!("more than {LIMIT_BYTES} bytes")));
    }
    // The length that was announced is checked above, before anything is taken; it may be a lie, or missing.
    let expected = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(LIMIT_BYTES);
    let place = state.manifests.reserve(expected).await?;
    // It is held while nothing comes, too: so all of it has to be there in the time that other bodies have for a byte.
    let collected = body.collect(LIMIT_BYTES, Code::ManifestTooLarge);
    let late = |_| Failure::Body(format!("a manifest that was not there within {:?}", state.idle));
    let content = tokio::time::timeout(state.idle, collected).await.map_err(late)??;
    let announced =
        head.header(CONTENT_TYPE).map(|kind| kind.split(';').next().unwrap_or(kind).trim().to_owned());
    let (storage, referrers) = (state.storage.clone(), state.referrers.clone());
    let stored = blocking(move || {
        let _place = place;
        let digest = match &reference {
            ManifestName::Tag(_) => digest::sha256(&content),
            ManifestName::Digest(digest) => checked(digest, &content)?,
        };
        let manifest = parse(&content, announced.as_deref())?;
        // A manifest is only taken when all that it names is here: who sees it can pull it.
        check_contents(&storage, &name, &manifest)?;
        let tag = match &reference {
            ManifestName::Tag(tag) => Some(tag.as_str()),
            ManifestName::Digest(_) => None,
        };
        storage.put_manifest(&name, tag, &digest, &content)?;
        referrers.added(&name, &digest, content.len(), &manifest);
        Ok((name, digest, manifest.subject.map(|subject| subject.digest)))
    });
    let (name, digest, subject) = stored.await?;
    let location = format!("/v2/{name}/manifests/{digest}");
    let reply = Reply::empty(StatusCode::CREATED).header(LOCATION, &location).digest(&digest);
    Ok(match subject {
        Some(subject) => reply.header(SUBJECT, &subject),
        None => reply,
    })
}

fn checked(digest: &Digest, content: &[u8]) -> Result<Digest, Failure> {
    let mut hasher = Hasher::like(digest).map_err(|e| Failure::new(Code::DigestInvalid, e.to_string()))?;
    hasher.update(content);
    let actual = hasher.finish();
    if actual == *digest {
        return Ok(actual);
    }
    Err(Failure::new(Code::DigestInvalid, format!("expected {digest}, the manifest received has {actual}")))
}

pub(super) fn parse(content: &[u8], announced: Option<&str>) -> Result<Manifest, Failure> {
    let invalid = |reason: String| Failure::new(Code::ManifestInvalid, reason);
    let manifest: Manifest = serde_json::from_slice(content).map_err(|e| invalid(e.to_string()))?;
    let old = |kind: &str| kind == DOCKER_SCHEMA_1 || kind == DOCKER_SCHEMA_1_PLAIN;
    if manifest.schema_version == Some(1) || old(manifest.kind()) || announced.is_some_and(old) {
        let reason = "Docker's schema 1 is not supported: push the image again with a client of today";
        return Err(invalid(reason.to_owned()));
    }
    // What is stored has no place for the header: the kind must follow from the content.
    match announced {
        Some(announced) if announced != manifest.kind() && !announced.is_empty() => {
            Err(invalid(format!("Content-Type is {announced}, the content is {}", manifest.kind())))
        }
        _ => Ok(manifest),
    }
}

/// Whether the repository has everything that the manifest names, also after a loss of power. The subject may come later.
pub(super) fn check_contents(storage: &Storage, name: &str, manifest: &Manifest) -> Result<(), Failure> {
    let digest_of = |content: &Content| {
        layout::checked_digest(&content.digest).map_err(|reason| Failure::new(Code::ManifestInvalid, reason))
    };
    let unknown = |content: &Content| Failure::new(Code::ManifestBlobUnknown, content.digest.as_str());
    let blobs = manifest.layers.iter().chain(&manifest.blobs).flatten();
    for blob in manifest.config.iter().chain(blobs) {
        let digest = digest_of(blob)?;
        let elsewhere = blob.urls.as_ref().is_some_and(|urls| !urls.is_empty());
        if elsewhere {
            continue;
        }
        if storage.layout.content_of(name, &digest)?.is_none() {
            return Err(unknown(blob));
        }
        storage.keep_blob(name, &digest)?;
    }
    for child in manifest.manifests.iter().flatten() {
        let digest = digest_of(child)?;
        if !storage.layout.has_manifest(name, &digest)? {
            return Err(unknown(child));
        }
        storage.keep_manifest(name, &digest)?;
    }
    if let Some(subject) = &manifest.subject {
        digest_of(subject)?;
    }
    Ok(())
}

/// DELETE: by digest the manifest and its tags, by tag the tag alone.
pub(super) async fn delete(
    state: &ServerState,
    name: String,
    reference: ManifestName,
) -> Result<Reply, Failure> {
    state.check_delete()?;
    let (storage, referrers) = (state.storage.clone(), state.referrers.clone());
    let unknown = Failure::new(Code::ManifestUnknown, described(&reference));
    let deleted = blocking(move || match &reference {
        ManifestName::Tag(tag) => storage.delete_tag(&name, tag),
        ManifestName::Digest(digest) => {
            let deleted = storage.delete_manifest(&name, digest)?;
            // After that: a list that is read meanwhile may still have it.
            referrers.removed(&name, digest);
            Ok(deleted)
        }
    });
    if deleted.await? { Ok(Reply::empty(StatusCode::ACCEPTED)) } else { Err(unknown) }
}
