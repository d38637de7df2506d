//! What `docker save` writes: a tar with `manifest.json`, which names a config and the layers of each image.
//!
//! Such an archive has no OCI manifest. One is made that names the layers by what the config knows of them: their
//! diff ids, the digests of the uncompressed tars. A layer that is compressed nevertheless is decompressed when read.
//! Where several images have the name, each for another platform, an index is made of them.

use std::collections::HashMap;
use std::io;

use registry::client::Descriptor;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Document;
use super::archive::{Archive, GZIP_MAGIC};
use super::blob::BlobStream;
use super::error::SourceError;
use super::files::{Part, PartReader};
use crate::document::ImageConfig;
use crate::platform::PlatformName;
use registry::digest::{self, Digest, Hasher};
use registry::media_types::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use registry::reference::Reference;

const MANIFEST: &str = "manifest.json";

/// The most that the configs of an image's platforms may have together, which are in memory: a few kilobytes each are usual.
const CONFIGS_LIMIT_BYTES: u64 = 32 << 20;

/// What an archive may hold: one entry an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// An image of such an archive. Everything here blocks on the disk.
#[derive(Debug)]
pub(super) struct DockerArchive {
    /// What was made: the manifest, or an index of several.
    pub(super) root: Document,
    parts: DockerParts,
}

/// All that the image is made of.
#[derive(Debug)]
struct DockerParts {
    /// As people named it.
    name: String,
    /// Configs, and what was made.
    documents: HashMap<Digest, Vec<u8>>,
    /// Of all configs that were read.
    config_bytes: u64,
    /// Layers by their diff ids, and configs.
    layers: HashMap<Digest, Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    part: Part,
    gzip: bool,
    /// Uncompressed, in bytes.
    size: u64,
}

impl DockerArchive {
    /// Opens the archive and finds the image that `wanted` chooses: by a tag, by `@NUMBER`, or the only one.
    pub(super) fn open(name: String, archive: &Archive, wanted: Option<&str>) -> Result<Self, SourceError> {
        let content = match archive.part(MANIFEST) {
            Err(SourceError::Missing { .. }) => {
                let advice =
                    if archive.has("index.json") { ": an OCI layout, read with oci-archive:" } else { "" };
                return Err(SourceError::document(
                    name,
                    format!("no docker-archive: it has no {MANIFEST}{advice}"),
                ));
            }
            part => part?.document()?,
        };
        let images: Vec<Saved> = serde_json::from_slice(&content)
            .map_err(|error| SourceError::document(format!("{MANIFEST} of {name}"), error))?;
        let chosen = choose(&name, &images, wanted)?;
        let mut parts =
            DockerParts { name, documents: HashMap::new(), config_bytes: 0, layers: HashMap::new() };
        let root = match chosen[..] {
            [image] => parts.add(archive, image)?.0,
            _ => parts.add_platforms(archive, &chosen)?,
        };
        Ok(Self { root, parts })
    }

    /// The config, manifest or index with this digest.
    pub(super) fn document(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        let missing = || SourceError::Missing { place: format!("document {digest} in {}", self.name()) };
        self.parts.documents.get(digest).cloned().ok_or_else(missing)
    }

    /// The layer with this diff id, or the config with this digest.
    pub(super) fn blob(&self, digest: &Digest) -> Result<BlobStream, SourceError> {
        let missing = || SourceError::Missing { place: format!("layer {digest} in {}", self.name()) };
        let Layer { part, gzip, size } = self.parts.layers.get(digest).cloned().ok_or_else(missing)?;
        BlobStream::file(part, gzip, digest, size)
    }

    /// As people named it.
    pub(super) fn name(&self) -> &str {
        &self.parts.name
    }
}

impl DockerParts {
    /// Reads an image's config and finds its layers; returns the manifest that is made of them, and the config.
    fn add(&mut self, archive: &Archive, image: &Saved) -> Result<(Document, ImageConfig), SourceError> {
        let part = archive.part(&image.config)?;
        let config = part.document()?;
        self.config_bytes += config.len() as u64;
        if self.config_bytes > CONFIGS_LIMIT_BYTES {
            let (place, size) = (format!("the configs of {}", self.name), self.config_bytes);
            return Err(SourceError::TooLarge { place, size, limit: CONFIGS_LIMIT_BYTES });
        }
        let parsed = ImageConfig::parse(&config);
        let (parsed, diff_ids) = parsed
            .and_then(|parsed| parsed.diff_ids().map(|diff_ids| (parsed, diff_ids)))
            .map_err(|error| SourceError::document(part.place.clone(), error))?;
        let digest = digest::sha256(&config);
        // The file is named after its digest by whoever is careful.
        if let Some(expected) = digest_in_name(&image.config).filter(|expected| *expected != digest) {
            return Err(SourceError::Digest { place: part.place, expected, found: digest });
        }
        let names = image.layers.as_deref().unwrap_or_default();
        if names.len() != diff_ids.len() {
            let reason = format!("{MANIFEST} names {} layers, the config {}", names.len(), diff_ids.len());
            return Err(SourceError::document(self.name.clone(), reason));
        }
        for (layer, diff_id) in names.iter().zip(&diff_ids) {
            if !self.layers.contains_key(diff_id) {
                self.layers.insert(diff_id.clone(), Layer::open(archive.part(layer)?, diff_id)?);
            }
        }
        let manifest = manifest(&digest, config.len(), &diff_ids, &self.layers);
        // Whoever copies the image takes the config for a blob.
        let of_config = Layer { size: part.size, part, gzip: false };
        self.layers.entry(digest.clone()).or_insert(of_config);
        self.documents.insert(digest, config);
        Ok((self.made(OCI_MANIFEST, manifest), parsed))
    }

    /// Adds images of one name; returns the index that is made of them. Of two for the same platform the first one counts.
    fn add_platforms(&mut self, archive: &Archive, images: &[&Saved]) -> Result<Document, SourceError> {
        let (mut platforms, mut entries) = (Vec::<PlatformName>::new(), Vec::<Value>::new());
        for image in images {
            let (manifest, config) = self.add(archive, image)?;
            let wrong = |error| SourceError::document(format!("{} of {}", image.config, self.name), error);
            let platform = config.platform().map_err(wrong)?;
            if platforms.contains(&platform) {
                continue;
            }
            let descriptor = &manifest.descriptor;
            entries.push(json!({
                "mediaType": OCI_MANIFEST,
                "digest": descriptor.digest().as_ref(),
                "size": descriptor.size(),
                "platform": platform.to_json(),
            }));
            platforms.push(platform);
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        Ok(self.made(OCI_INDEX, index.to_string().into_bytes()))
    }

    /// Keeps a document that was made.
    fn made(&mut self, media_type: &str, content: Vec<u8>) -> Document {
        let descriptor = described(media_type, &content);
        self.documents.insert(descriptor.digest().clone(), content.clone());
        Document { descriptor, content: content.into() }
    }
}

impl Layer {
    fn open(part: Part, diff_id: &Digest) -> Result<Self, SourceError> {
        let mut magic = [0; GZIP_MAGIC.len()];
        let read = part.begin(&mut magic)?;
        if magic[..read] != GZIP_MAGIC {
            let size = part.size;
            return Ok(Self { part, gzip: false, size });
        }
        // How large it is shows only at its end.
        let mut counter = HashedCount { hasher: Hasher::like(diff_id)?, size: 0 };
        let mut reader = flate2::read::MultiGzDecoder::new(io::BufReader::new(PartReader::new(part.clone())));
        io::copy(&mut reader, &mut counter).map_err(SourceError::io(part.place.clone()))?;
        let found = counter.hasher.finish();
        if found != *diff_id {
            return Err(SourceError::Digest { place: part.place, expected: diff_id.clone(), found });
        }
        Ok(Self { part, gzip: true, size: counter.size })
    }
}

struct HashedCount {
    hasher: Hasher,
    size: u64,
}

impl io::Write for HashedCount {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.hasher.update(data);
        self.size += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn manifest(
    config: &Digest,
    config_size: usize,
    diff_ids: &[Digest],
    layers: &HashMap<Digest, Layer>,
) -> Vec<u8> {
    let layers: Vec<_> = diff_ids
        .iter()
        .map(|diff_id| {
            json!({
                "mediaType": OCI_LAYER,
                "digest": diff_id.as_ref(),
                "size": layers.get(diff_id).map_or(0, |layer| layer.size),
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": OCI_CONFIG,
            "digest": config.as_ref(),
            "size": config_size,
        },
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

/// The digest that a config's file name states: `HEX.json`, `blobs/sha256/HEX`, `sha256:HEX`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let hex = file.strip_suffix(".json").unwrap_or(file);
    format!("sha256:{}", hex.strip_prefix("sha256:").unwrap_or(hex)).parse().ok()
}

/// The images that are meant, at least one: several are one image for several platforms.
fn choose<'a>(name: &str, images: &'a [Saved], wanted: Option<&str>) -> Result<Vec<&'a Saved>, SourceError> {
    let Some(wanted) = wanted else {
        return match images {
            [] => Err(SourceError::document(name, format!("{MANIFEST} names no image"))),
            [first, rest @ ..] if rest.iter().all(|image| has_same_tags(first, image)) => {
                Ok(images.iter().collect())
            }
            _ => Err(SourceError::SeveralImages {
                source_name: name.to_owned(),
                count: images.len(),
                images: list(images),
            }),
        };
    };
    let found: Vec<&Saved> = match wanted.strip_prefix('@') {
        Some(number) => {
            number.parse().ok().and_then(|number: usize| images.get(number)).into_iter().collect()
        }
        None => images.iter().filter(|image| tags(image).any(|tag| is_same(tag, wanted))).collect(),
    };
    if !found.is_empty() {
        return Ok(found);
    }
    Err(SourceError::NoSuchImage {
        source_name: name.to_owned(),
        wanted: wanted.to_owned(),
        images: list(images),
    })
}

/// Whether both are called the same, and are called anything.
fn has_same_tags(one: &Saved, other: &Saved) -> bool {
    tags(one).next().is_some() && tags(one).eq(tags(other))
}

fn tags(image: &Saved) -> impl Iterator<Item = &str> {
    image.repo_tags.iter().flatten().map(String::as_str)
}

/// Whether two names mean the same image: `busybox` is `docker.io/library/busybox:latest`.
pub(super) fn is_same(tag: &str, wanted: &str) -> bool {
    tag == wanted
        || matches!((Reference::parse(tag), Reference::parse(wanted)), (Ok(tag), Ok(wanted)) if tag == wanted)
}

/// How each image is chosen.
fn list(images: &[Saved]) -> String {
    /// More than a person reads.
    const SHOWN: usize = 50;
    let choice = |(number, image)| match tags(image).next() {
        Some(tag) => format!("{tag} (@{number})"),
        None => format!("@{number}"),
    };
    let choices: Vec<String> = images.iter().enumerate().take(SHOWN).map(choice).collect();
    if choices.is_empty() { "none".to_owned() } else { choices.join(", ") }
}

/// The descriptor of a document that was made.
fn described(media_type: &str, content: &[u8]) -> Descriptor {
    Descriptor::new(media_type.into(), content.len() as u64, digest::sha256(content))
}
