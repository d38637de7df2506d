//! One repository of a registry, that of the cluster image, for all images: one credential reads them.
//!
//! ```text
//! TAG ─> index ─> manifest of each image and platform      annotation org.opencontainers.image.ref.name: its name
//!              └> manifest "images" ─> config: the lock
//!                                   └> layers: the images' own indexes, byte for byte
//! ```
//!
//! The index keeps garbage collection from all of it. An image's own index cannot be pushed as one where manifests that it names
//! are not saved, so it is a blob, and whoever answers for the images has it word for word.

use bytes::Bytes;
use image::source::Source;
use oci_spec::image::Descriptor;
use registry::client::Client;
use registry::{Digest, Reference, Repository, digest};
use serde_json::{Value, json};

use super::SaveError;
use super::plan::Plan;
use crate::lock::{Lock, Locked};

/// What the manifest with the lock is.
const ARTIFACT_TYPE: &str = "application/vnd.nydus-cluster.images.v1";
/// An image's own index, as a blob: under its own media type registries would look for what it names.
const INDEX_TYPE: &str = "application/vnd.nydus-cluster.images.index.v1";
/// The lock.
const LOCK_TYPE: &str = "application/vnd.nydus-cluster.images.lock.v1";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Annotation with an image's name.
const NAME: &str = "org.opencontainers.image.ref.name";

/// An image whose parts are in the repository.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub(crate) locked: Locked,
    pub(crate) plan: Plan,
    /// Of its blobs.
    pub(crate) bytes: u64,
}

/// Has the blob in the repository; returns the bytes that were fetched.
pub(crate) async fn bring(
    client: &Client,
    repository: &Repository,
    source: &Source,
    blob: &Descriptor,
) -> Result<u64, SaveError> {
    let digest = blob.digest();
    if client.has_blob(repository, digest).await? {
        return Ok(0);
    }
    if let Some(from) = source.repository()
        && from.host() == repository.host()
        && from != repository
    {
        match client.mount_blob(repository, from, digest).await {
            Ok(true) => return Ok(0),
            Ok(false) => {}
            // Who may push here need not be allowed to read there in this way.
            Err(error) if error.is_denied() || error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut stream = source.blob(blob).await?;
    let mut upload = client.begin_upload(repository).await?;
    let mut bytes = 0;
    loop {
        let piece = match stream.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(error) => {
                upload.cancel().await;
                return Err(error.into());
            }
        };
        bytes += piece.len() as u64;
        upload.write(piece).await?;
    }
    upload.finish(digest).await?;
    Ok(bytes)
}

/// Puts an image's manifests, all of whose blobs are there.
pub(crate) async fn push(client: &Client, repository: &Repository, plan: &Plan) -> Result<(), SaveError> {
    for manifest in &plan.manifests {
        let reference = repository.with_digest(manifest.descriptor.digest().clone());
        if client.head_manifest(&reference).await?.is_none() {
            let media_type = manifest.descriptor.media_type().to_string();
            client.put_manifest(&reference, &media_type, manifest.content.clone()).await?;
        }
    }
    for index in &plan.indexes {
        client.push_blob(repository, index.content.clone()).await?;
    }
    Ok(())
}

/// Puts the index that names all of `saved`, under the tag of `reference`.
pub(crate) async fn name(
    client: &Client,
    reference: &Reference,
    lock: &Lock,
    saved: &[Saved],
) -> Result<(), SaveError> {
    let repository = reference.repository();
    let lock = Bytes::from(lock.to_string());
    let config = described(LOCK_TYPE, &client.push_blob(repository, lock.clone()).await?, lock.len());
    let mut layers: Vec<Value> = Vec::new();
    for (image, index) in
        saved.iter().flat_map(|image| image.plan.indexes.iter().map(move |index| (image, index)))
    {
        let mut layer = described(INDEX_TYPE, index.descriptor.digest(), index.content.len());
        layer["annotations"] = json!({ NAME: image.locked.reference.to_string() });
        layers.push(layer);
    }
    let images = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": ARTIFACT_TYPE,
        "config": config, "layers": layers,
    });
    let images = Bytes::from(images.to_string());
    let digest = digest::sha256(&images);
    client.put_manifest(&repository.with_digest(digest.clone()), OCI_MANIFEST, images.clone()).await?;
    let mut of_lock = described(OCI_MANIFEST, &digest, images.len());
    of_lock["artifactType"] = ARTIFACT_TYPE.into();
    let mut manifests = vec![of_lock];
    for (image, manifest) in
        saved.iter().flat_map(|image| image.plan.manifests.iter().map(move |found| (image, found)))
    {
        let descriptor = &manifest.descriptor;
        let media_type = descriptor.media_type().to_string();
        let mut entry = described(&media_type, descriptor.digest(), manifest.content.len());
        entry["annotations"] = json!({ NAME: image.locked.reference.to_string() });
        let platforms = image.locked.platforms.iter().chain(&image.locked.nydus);
        if let Some(found) = platforms.into_iter().find(|found| found.digest == *descriptor.digest()) {
            let platform = &found.platform;
            entry["platform"] = json!({"os": platform.os(), "architecture": platform.architecture()});
            if let Some(variant) = platform.variant() {
                entry["platform"]["variant"] = variant.into();
            }
        }
        manifests.push(entry);
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    client.put_manifest(reference, OCI_INDEX, Bytes::from(index.to_string())).await?;
    Ok(())
}

fn described(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}
