//! What names all images of a save: an index under one tag, and the manifest with the lock, the table and the documents.
//!
//! The index keeps garbage collection from all of it. An image's own documents cannot be pushed as what they are where what they name
//! is not saved: so they are blobs, and whoever answers for the images has them word for word.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use image::destination::Destination;
use image::platform::PlatformName;
use image::source::Document;
use registry::media_types::{OCI_INDEX, OCI_MANIFEST};
use registry::{Digest, digest, nydus};
use serde_json::{Value, json};

use super::rafs::NydusImage;
use super::{SaveError, Saved};
use crate::lock::Lock;
use crate::saved::{
    ARTIFACT_TYPE, CONFIG_TYPE, INDEX_TYPE, LOCK_TYPE, MANIFEST_TYPE, MEDIA_TYPE, NAME, TABLE_TYPE, Table,
};

/// What was put there.
pub(crate) struct Set {
    /// The index that is to have the tag.
    pub(crate) index: Bytes,
    /// The manifests that it names.
    pub(crate) manifests: Vec<Digest>,
    /// The blobs that these name.
    pub(crate) blobs: Vec<Digest>,
}

/// Puts all that names `saved` but the tag.
pub(crate) async fn put(
    destination: &dyn Destination,
    lock: &Lock,
    table: Option<&Table>,
    saved: &[Saved],
) -> Result<Set, SaveError> {
    let mut parts = Vec::new();
    if let Some(table) = table {
        parts.push(put_blob(destination, TABLE_TYPE, Bytes::from(table.to_string())).await?);
    }
    for document in documents(saved) {
        if let Some(content) = document.content {
            destination.put_blob(content).await?;
        }
        parts.push(document.described);
    }
    parts.extend(table.into_iter().flat_map(blob_parts));
    // A registry takes a manifest only once all that it names is there: parts, then the manifest of parts, then what the caller tags.
    let config = put_blob(destination, LOCK_TYPE, Bytes::from(lock.to_string())).await?;
    let mut blobs: Vec<Digest> = parts.iter().chain([&config]).filter_map(digest_of).collect();
    let images = images_manifest(&config, &parts);
    let mut manifests = vec![images_entry(&images)];
    destination.put_manifest(OCI_MANIFEST, images).await?;
    for image in saved {
        manifests.extend(image.plan.plain.iter().map(|manifest| plain_entry(image, manifest)));
        manifests.extend(image.nydus.iter().map(|nydus| nydus_entry(image, nydus)));
        blobs.extend(image.plan.blobs.iter().map(|blob| blob.digest().clone()));
        blobs.extend(image.nydus.iter().flat_map(NydusImage::parts));
    }
    let named = manifests.iter().filter_map(digest_of).collect();
    Ok(Set { index: images_index(&manifests), manifests: named, blobs })
}

/// The blobs that a table names, as parts of the manifest that has them.
pub(crate) fn blob_parts(table: &Table) -> Vec<Value> {
    let blobs: BTreeMap<&str, u64> =
        table.blobs.iter().map(|(digest, blob)| (digest.as_ref(), blob.size)).collect();
    let part = |(digest, size)| json!({"mediaType": nydus::MEDIA_TYPE_BLOB, "digest": digest, "size": size});
    blobs.into_iter().map(part).collect()
}

/// The manifest with the lock `config` and these other parts.
pub(crate) fn images_manifest(config: &Value, parts: &[Value]) -> Bytes {
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": ARTIFACT_TYPE, "config": config, "layers": parts,
    });
    Bytes::from(manifest.to_string())
}

/// This manifest as the index names it.
pub(crate) fn images_entry(manifest: &Bytes) -> Value {
    let mut entry = described(OCI_MANIFEST, &digest::sha256(manifest), manifest.len() as u64);
    entry["artifactType"] = ARTIFACT_TYPE.into();
    entry
}

/// The index that names these manifests.
pub(crate) fn images_index(manifests: &[Value]) -> Bytes {
    Bytes::from(json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string())
}

/// A document of an image.
struct Part {
    described: Value,
    /// `None` where it is there already.
    content: Option<Bytes>,
}

/// The images' own indexes, manifests and configs, each once.
fn documents(saved: &[Saved]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |image: &Saved, kind: &str, media_type: String, digest: &Digest, size, content| {
        if !seen.insert(digest.clone()) {
            return;
        }
        let mut described = described(kind, digest, size);
        let name = image.locked.reference.to_string();
        described["annotations"] = json!({NAME: name, MEDIA_TYPE: media_type});
        parts.push(Part { described, content });
    };
    for image in saved {
        let mut document = |kind: &str, document: &Document| {
            let (descriptor, content) = (&document.descriptor, document.content.clone());
            let media_type = descriptor.media_type().to_string();
            add(image, kind, media_type, descriptor.digest(), content.len() as u64, Some(content));
        };
        image.plan.indexes.iter().for_each(|index| document(INDEX_TYPE, index));
        image.plan.manifests.iter().for_each(|manifest| document(MANIFEST_TYPE, manifest));
        image.plan.rafs.iter().for_each(|rafs| document(CONFIG_TYPE, &rafs.config));
        for config in &image.plan.configs {
            add(image, CONFIG_TYPE, config.media_type().to_string(), config.digest(), config.size(), None);
        }
    }
    parts
}

fn plain_entry(image: &Saved, manifest: &Document) -> Value {
    let descriptor = &manifest.descriptor;
    let media_type = descriptor.media_type().to_string();
    let mut entry = described(&media_type, descriptor.digest(), manifest.content.len() as u64);
    entry["annotations"] = json!({ NAME: image.locked.reference.to_string() });
    let mut platforms = image.locked.platforms.iter().chain(&image.locked.nydus);
    if let Some(found) = platforms.find(|found| found.digest == *descriptor.digest()) {
        entry["platform"] = platform(&found.platform);
    }
    entry
}

/// A nydus image as an index names it.
pub(crate) fn nydus_entry(image: &Saved, nydus: &NydusImage) -> Value {
    let mut entry = described(OCI_MANIFEST, &nydus.manifest, nydus.size);
    entry["artifactType"] = nydus::ARTIFACT_TYPE_MANIFEST.into();
    entry["platform"] = platform(&nydus.platform);
    entry["annotations"] = json!({ NAME: image.locked.reference.to_string() });
    entry
}

fn platform(platform: &PlatformName) -> Value {
    let mut value = json!({"os": platform.os(), "architecture": platform.architecture()});
    if let Some(variant) = platform.variant() {
        value["variant"] = variant.into();
    }
    value
}

async fn put_blob(
    destination: &dyn Destination,
    media_type: &str,
    content: Bytes,
) -> Result<Value, SaveError> {
    let size = content.len() as u64;
    Ok(described(media_type, &destination.put_blob(content).await?, size))
}

pub(crate) fn described(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

fn digest_of(entry: &Value) -> Option<Digest> {
    entry.get("digest")?.as_str()?.parse().ok()
}
