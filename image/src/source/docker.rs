//! What `docker save` writes: a tar with `manifest.json`, which names a config and the layers of each image.
//!
//! Such an archive has no OCI manifest. One is made that names the layers by what the config knows of them: their
//! diff ids, the digests of the uncompressed tars. A layer that is compressed nevertheless is decompressed when read.

use std::collections::HashMap;
use std::io;

use registry::client::Descriptor;
use serde::Deserialize;
use serde_json::json;

use super::archive::{Archive, GZIP_MAGIC};
use super::blob::BlobStream;
use super::error::SourceError;
use super::files::{Part, PartReader};
use crate::document::ImageConfig;
use registry::digest::{self, Digest, Hasher};
use registry::media_types::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use registry::reference::Reference;

const MANIFEST: &str = "manifest.json";

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
    /// As people named it.
    name: String,
    /// The manifest that was made.
    pub(super) manifest: Vec<u8>,
    config: (Digest, Vec<u8>),
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
        let image = choose(&name, &images, wanted)?;
        let part = archive.part(&image.config)?;
        let config = part.document()?;
        let diff_ids = &ImageConfig::parse(&config)
            .and_then(|config| config.diff_ids())
            .map_err(|error| SourceError::document(part.place.clone(), error))?;
        let digest = digest::sha256(&config);
        // The file is named after its digest by whoever is careful.
        if let Some(expected) = digest_in_name(&image.config).filter(|expected| *expected != digest) {
            return Err(SourceError::Digest { place: part.place, expected, found: digest });
        }
        let names = image.layers.as_deref().unwrap_or_default();
        if names.len() != diff_ids.len() {
            let reason = format!("{MANIFEST} names {} layers, the config {}", names.len(), diff_ids.len());
            return Err(SourceError::document(name, reason));
        }
        let mut layers = HashMap::new();
        for (layer, diff_id) in names.iter().zip(diff_ids) {
            if !layers.contains_key(diff_id) {
                layers.insert(diff_id.clone(), Layer::open(archive.part(layer)?, diff_id)?);
            }
        }
        let manifest = manifest(&digest, config.len(), diff_ids, &layers);
        Ok(Self { name, manifest, config: (digest, config), layers })
    }

    /// The config, if `digest` is its digest.
    pub(super) fn document(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        let (found, content) = &self.config;
        if found != digest {
            return Err(SourceError::Missing { place: format!("document {digest} in {}", self.name) });
        }
        Ok(content.clone())
    }

    /// The layer with this diff id.
    pub(super) fn blob(&self, digest: &Digest) -> Result<BlobStream, SourceError> {
        let missing = || SourceError::Missing { place: format!("layer {digest} in {}", self.name) };
        let Layer { part, gzip, size } = self.layers.get(digest).cloned().ok_or_else(missing)?;
        BlobStream::file(part, gzip, digest, size)
    }

    /// As people named it.
    pub(super) fn name(&self) -> &str {
        &self.name
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

fn choose<'a>(name: &str, images: &'a [Saved], wanted: Option<&str>) -> Result<&'a Saved, SourceError> {
    let Some(wanted) = wanted else {
        return match images {
            [image] => Ok(image),
            [] => Err(SourceError::document(name, format!("{MANIFEST} names no image"))),
            _ => Err(SourceError::SeveralImages {
                source_name: name.to_owned(),
                count: images.len(),
                images: list(images),
            }),
        };
    };
    let found = match wanted.strip_prefix('@') {
        Some(number) => number.parse().ok().and_then(|number: usize| images.get(number)),
        None => images.iter().find(|image| tags(image).any(|tag| is_same(tag, wanted))),
    };
    found.ok_or_else(|| SourceError::NoSuchImage {
        source_name: name.to_owned(),
        wanted: wanted.to_owned(),
        images: list(images),
    })
}

fn tags(image: &Saved) -> impl Iterator<Item = &str> {
    image.repo_tags.iter().flatten().map(String::as_str)
}

/// Whether two names mean the same image: `busybox` is `docker.io/library/busybox:latest`.
fn is_same(tag: &str, wanted: &str) -> bool {
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

/// The descriptor of the manifest that was made.
pub(super) fn descriptor(manifest: &[u8]) -> Descriptor {
    Descriptor::new(OCI_MANIFEST.into(), manifest.len() as u64, digest::sha256(manifest))
}
