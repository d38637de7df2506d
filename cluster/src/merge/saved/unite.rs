//! What names saved images, united: one index, one lock, one table. All else stays what it is.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use image::document::Stored;
use image::source::{Document, Source};
use registry::client::Descriptor;
use registry::media_types::{OCI_INDEX, OCI_MANIFEST};
use registry::{Digest, digest};
use serde_json::Value;

use super::{FilledImage, table};
use crate::merge::NotMerged;
use crate::merge::locks::Locks;
use crate::save::set::{blob_parts, described, images_entry, images_index, images_manifest};
use crate::saved::{
    ARTIFACT_TYPE, CONFIG_TYPE, INDEX_TYPE, LOCK_TYPE, MANIFEST_TYPE, NAME, SavedError, SavedManifest,
    TABLE_TYPE,
};

/// The saved images of several cluster images, united.
pub(in crate::merge) struct UnitedImages {
    /// What names all of them.
    pub(in crate::merge) index: Stored,
    /// All manifests that it names.
    pub(in crate::merge) manifests: Vec<Stored>,
    /// The blobs that these name and that are somewhere already, with where.
    pub(in crate::merge) blobs: Vec<(Descriptor, Source)>,
    /// Those that were made for it.
    pub(in crate::merge) made: Vec<Bytes>,
    /// Their locks.
    pub(in crate::merge) locks: Locks,
}

impl UnitedImages {
    /// Unites what was saved for `images`.
    pub(in crate::merge) fn of(images: &[&FilledImage]) -> Result<Option<Self>, NotMerged> {
        let mut locks = Locks::default();
        for image in images {
            locks.add(&image.name, image.saved.lock().clone())?;
        }
        let Some(first) = images.first() else { return Ok(None) };
        // What is there once stays what it is, under its digest.
        if images.iter().all(|image| image.saved.digest() == first.saved.digest()) {
            let manifests: Vec<&Document> = first.parts.parts.iter().map(|part| &part.manifest).collect();
            let mut blobs = Blobs::of(images);
            first.parts.parts.iter().for_each(|part| blobs.name_all(part));
            let index = stored(&first.parts.index);
            let manifests = manifests.into_iter().map(stored).collect();
            return Ok(Some(Self { index, manifests, blobs: blobs.named, made: Vec::new(), locks }));
        }
        Self::of_several(images, locks).map(Some)
    }

    fn of_several(images: &[&FilledImage], locks: Locks) -> Result<Self, NotMerged> {
        let tables: Vec<_> =
            images.iter().filter_map(|image| Some((image.name.as_str(), image.saved.table()?))).collect();
        let table = table::unite(&tables)?;
        let (mut blobs, mut made, mut parts) = (Blobs::of(images), Vec::new(), Vec::new());
        let mut make = |media_type: &str, content: Bytes| {
            let described = described(media_type, &digest::sha256(&content), content.len() as u64);
            made.push(content);
            described
        };
        parts.extend(table.iter().map(|table| make(TABLE_TYPE, table.to_string().into())));
        parts.extend(documents(images)?);
        parts.extend(table.iter().flat_map(blob_parts));
        let config = make(LOCK_TYPE, locks.lock().to_string().into());
        let content = images_manifest(&config, &parts);
        // The two that are made now are nowhere yet.
        parts.iter().filter_map(digest_of).for_each(|part| blobs.name(&part));
        let mut entries = vec![images_entry(&content)];
        let own = Stored { media_type: OCI_MANIFEST.to_owned(), digest: digest::sha256(&content), content };
        let mut manifests = vec![own];
        entries.extend(image_entries(images, table.as_ref()));
        let all: HashMap<&Digest, &SavedManifest> = images
            .iter()
            .flat_map(|image| &image.parts.parts)
            .map(|part| (part.manifest.descriptor.digest(), part))
            .collect();
        let mut seen = HashSet::new();
        for entry in entries.iter().skip(1).filter_map(digest_of) {
            let Some(part) = all.get(&entry).filter(|_| seen.insert(entry.clone())) else { continue };
            manifests.push(stored(&part.manifest));
            blobs.name_all(part);
        }
        let content = images_index(&entries);
        let index = Stored { media_type: OCI_INDEX.to_owned(), digest: digest::sha256(&content), content };
        Ok(Self { index, manifests, blobs: blobs.named, made, locks })
    }
}

/// The images' own indexes, manifests and configs, each once, as they are named among the parts.
fn documents(images: &[&FilledImage]) -> Result<Vec<Value>, NotMerged> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for image in images {
        let own = image.parts.parts.iter().filter(|part| part.entry["artifactType"] == ARTIFACT_TYPE);
        for part in own {
            let parsed: Value = serde_json::from_slice(&part.manifest.content).map_err(|error| {
                let (place, reason) = (image.parts.source.name(), error.to_string());
                image.broken(SavedError::Other { place, reason })
            })?;
            let layers = parsed["layers"].as_array().cloned().unwrap_or_default();
            let is_document = |layer: &Value| {
                [INDEX_TYPE, MANIFEST_TYPE, CONFIG_TYPE].iter().any(|kind| layer["mediaType"] == **kind)
            };
            let documents = layers.into_iter().filter(is_document);
            found.extend(documents.filter(|layer| seen.insert(layer["digest"].to_string())));
        }
    }
    Ok(found)
}

/// What the index names in addition to the manifest of parts: the manifests of all images, in the order of these' names. A nydus image in whose
/// place another one is in `table` is named no more.
fn image_entries(images: &[&FilledImage], table: Option<&crate::saved::Table>) -> Vec<Value> {
    let (mut entries, mut seen) = (Vec::new(), HashSet::new());
    for image in images {
        let replaced = match (image.saved.table(), table) {
            (Some(own), Some(united)) => table::replaced(own, united),
            _ => HashMap::new(),
        };
        for part in image.parts.parts.iter().filter(|part| part.entry["artifactType"] != ARTIFACT_TYPE) {
            let mut entry = part.entry.clone();
            if let Some((digest, size)) = replaced.get(part.manifest.descriptor.digest()) {
                entry["digest"] = digest.as_ref().into();
                entry["size"] = (*size).into();
            }
            if seen.insert(entry.to_string()) {
                entries.push(entry);
            }
        }
    }
    entries.sort_by_cached_key(|entry| entry["annotations"][NAME].as_str().unwrap_or_default().to_owned());
    entries
}

/// Blobs that are somewhere, of which those that are named are to come along, each once.
struct Blobs<'a> {
    there: HashMap<&'a Digest, (&'a Descriptor, &'a Source)>,
    seen: HashSet<Digest>,
    named: Vec<(Descriptor, Source)>,
}

impl<'a> Blobs<'a> {
    fn of(images: &'a [&'a FilledImage]) -> Self {
        let mut there = HashMap::new();
        for image in images {
            for blob in image.parts.parts.iter().flat_map(|part| &part.blobs) {
                there.entry(blob.digest()).or_insert((blob, &image.parts.source));
            }
        }
        Self { there, seen: HashSet::new(), named: Vec::new() }
    }

    fn name(&mut self, blob: &Digest) {
        if let Some((descriptor, source)) = self.there.get(blob)
            && self.seen.insert(blob.clone())
        {
            self.named.push(((*descriptor).clone(), (*source).clone()));
        }
    }

    /// Names all blobs of a manifest.
    fn name_all(&mut self, part: &SavedManifest) {
        part.blobs.iter().for_each(|blob| self.name(blob.digest()));
    }
}

fn stored(document: &Document) -> Stored {
    Stored {
        media_type: document.descriptor.media_type().to_string(),
        content: document.content.clone(),
        digest: document.descriptor.digest().clone(),
    }
}

fn digest_of(entry: &Value) -> Option<Digest> {
    entry["digest"].as_str()?.parse().ok()
}
