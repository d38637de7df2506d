//! What is at an image's name already: layers that another machine converted, to be used again.
//!
//! A layer's tree is read out of its blob: the table of contents at the end, and the bootstrap that this names, each verified
//! against the digest that was read before it. What the manifest says is believed for images in its repository alone.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use rafs::blob::BlobIndex;
use rafs::blob::source::{BlobError, read_meta};
use rafs::blob::stream::{TocError, own_bootstrap_within};
use rafs::bootstrap::{Bootstrap, ReadError};
use rafs::limits::Limits;
use rafs::tree::Layer;
use registry::client::Client;
use registry::digest::Digest;
use registry::reference::{Reference, Repository};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::announce::{Announcement, announcements};
use super::cache::complete;
use super::conversion::{ConvertedLayer, sha256_digest};
use super::implied::set_implied;
use crate::document::Parsed;
use crate::options::{Fingerprint, Recipe};
use crate::source::RegistryBlobs;

/// So many manifests and indexes are looked at: a few names of an image for all platforms there are.
const MANIFESTS: usize = 64;

/// Within so long a registry has to give the manifests, or a layer's tree: converting may be as fast.
const DEADLINE: Duration = Duration::from_secs(20);

/// The largest part of a blob that is read: the bootstrap of a million files.
const PART_BYTES: u64 = 256 << 20;

/// What is at an image's names already, asked for when it is needed first.
#[derive(Debug, Default)]
pub struct Present {
    names: Vec<Reference>,
    announced: OnceCell<HashMap<Digest, Announcement>>,
}

/// Why a blob is not used again.
#[derive(Debug, thiserror::Error)]
enum PresentError {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Toc(#[from] TocError),
    #[error("its bootstrap: {}", crate::describe(.0))]
    Bootstrap(#[from] ReadError),
    #[error("its chunk information: {}", crate::describe(.0))]
    ChunkInfo(#[from] BlobError),
    #[error("expected {0}")]
    Wrong(&'static str),
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Silent,
    #[error("reading it ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

impl Present {
    /// What is at `names`.
    pub fn new(names: Vec<Reference>) -> Self {
        Self { names, announced: OnceCell::new() }
    }

    /// The layer `source`, if a manifest at the names says that `repository` has it, made by `recipe`.
    pub(super) async fn layer(
        &self,
        source: &Digest,
        recipe: &Recipe,
        (client, repository): (&Client, &Repository),
    ) -> Option<ConvertedLayer> {
        let announced = self.announced.get_or_init(|| self.read(client, recipe.fingerprint())).await;
        let announcement = announced.get(source)?.clone();
        let blob = announcement.blob.clone();
        match load(client, repository, announcement, recipe.clone()).await {
            Ok(layer) => {
                tracing::info!(layer = %source, %blob, %repository, "layer found at the image's name");
                Some(layer)
            }
            Err(error) => {
                tracing::warn!(%error, layer = %source, %blob, %repository, "a blob is not what the manifest says: its layer is converted");
                None
            }
        }
    }

    /// Reads the manifests.
    async fn read(&self, client: &Client, fingerprint: &Fingerprint) -> HashMap<Digest, Announcement> {
        let mut found = HashMap::new();
        let mut todo: Vec<Reference> = self.names.clone();
        let mut seen = HashSet::new();
        while let Some(reference) = todo.pop() {
            if seen.len() == MANIFESTS {
                tracing::debug!(%reference, "more than {MANIFESTS} manifests are at the image's names: the rest is not looked at");
                break;
            }
            if !seen.insert(reference.identifier().to_owned()) {
                continue;
            }
            let manifest = match timeout(DEADLINE, client.manifest(&reference)).await {
                Ok(Ok((_, content))) => content,
                Ok(Err(error)) => {
                    tracing::debug!(%error, %reference, "nothing is known from what is there");
                    continue;
                }
                // Who does not answer in time would let each further name wait as long, and the build with it.
                Err(_) => break,
            };
            match Parsed::parse(&manifest) {
                Ok(Parsed::Index(index)) => {
                    let images = index.without_attestations();
                    todo.extend(images.map(|entry| reference.at_digest(entry.digest().clone())));
                }
                Ok(Parsed::Manifest(manifest)) => {
                    for announcement in announcements(&manifest, fingerprint) {
                        if let Some(diff_id) = &announcement.diff_id {
                            found.insert(diff_id.clone(), announcement.clone());
                        }
                        found.insert(announcement.source.clone(), announcement);
                    }
                }
                Ok(Parsed::Artifact(_)) => {}
                Err(error) => tracing::debug!(%error, %reference, "nothing is known from what is there"),
            }
        }
        found
    }
}

/// Reads a layer's tree out of its blob.
async fn load(
    client: &Client,
    repository: &Repository,
    announcement: Announcement,
    recipe: Recipe,
) -> Result<ConvertedLayer, PresentError> {
    let blobs = RegistryBlobs::new(client.clone(), repository.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let layer = tree(&blobs, &announcement, &recipe)?;
        let Announcement { blob, size, source, diff_id, toc, .. } = announcement;
        Ok(ConvertedLayer { layer, digest: blob, size, source: Some(source), diff_id, toc: Some(toc) })
    });
    timeout(DEADLINE, reading).await.map_err(|_| PresentError::Silent)??
}

fn tree(blobs: &RegistryBlobs, announcement: &Announcement, recipe: &Recipe) -> Result<Layer, PresentError> {
    let Announcement { blob, size, toc: expected, implied, .. } = announcement;
    let limits = Limits { part_bytes: PART_BYTES, chunk_info_bytes: PART_BYTES, ..Limits::DEFAULT };
    let found = own_bootstrap_within(*size, limits, |range| blobs.range(blob, range))??;
    let found = found.ok_or(PresentError::Wrong("a blob with its layer's bootstrap"))?;
    let toc = found.toc.ok_or(PresentError::Wrong("a table of contents"))?;
    if sha256_digest(toc.digest) != *expected {
        return Err(PresentError::Wrong("the table of contents that the manifest states"));
    }
    let mut bootstrap = Bootstrap::from_bytes(found.bytes)?;
    let own = blob.digest().parse().map_err(|_| PresentError::Wrong("a SHA-256 digest"))?;
    bootstrap.set_own_blob(own, Some(*size), Some(&toc));
    let mut layer = bootstrap.to_layer()?;
    // What no file refers to, and where in a batch a chunk lies, is not in the bootstrap.
    let is_lacking = |layer: &Layer| {
        let own = layer.blobs.first().filter(|blob| blob.id == Some(own));
        own.is_some_and(|blob| {
            blob.chunks.iter().any(|chunk| chunk.uncompressed_size == 0 || chunk.batch.is_some())
        })
    };
    if is_lacking(&layer) {
        let blob = bootstrap.blobs().first().ok_or(PresentError::Wrong("a blob"))?;
        let bytes = blob.meta.map_or(0, |meta| meta.compressed_size.max(meta.uncompressed_size));
        if bytes > PART_BYTES {
            return Err(PresentError::Wrong("chunk information of a usual size"));
        }
        let meta = read_meta(blobs, blob)?;
        bootstrap.set_chunk_info(BlobIndex(0), meta)?;
        layer = bootstrap.to_layer()?;
    }
    let build = recipe.build();
    let dictionary = build.dictionary.as_ref().map_or(&[][..], |dictionary| dictionary.blobs());
    let is_known = |id| id == Some(own) || dictionary.iter().any(|blob| blob.id == id);
    if !layer.blobs.iter().all(|blob| is_known(blob.id)) {
        return Err(PresentError::Wrong("no blobs but its own and those of the chunk dictionary"));
    }
    if layer.blobs.iter().any(|blob| (blob.chunk_size, blob.digester) != (build.chunk_size, build.digester)) {
        return Err(PresentError::Wrong("the chunk size and digest algorithm of the options"));
    }
    complete(&mut layer.blobs, recipe);
    if !set_implied(&mut layer.tree, implied) {
        return Err(PresentError::Wrong("directories that the layer has"));
    }
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use registry::client::ClientConfig;
    use registry::digest::sha256;
    use registry::media_types::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
    use registry::server::ServerConfig;
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::layer::announce::tests::announced;

    /// More than a stack of all entries had once room for, with their attestations behind them, as BuildKit writes them.
    const PLATFORMS: usize = 15;

    async fn put(client: &Client, at: &Reference, media_type: &str, document: &Value) -> Value {
        let content = Bytes::from(document.to_string());
        let described =
            json!({"mediaType": media_type, "digest": sha256(&content).as_ref(), "size": content.len()});
        client.put_manifest(at, media_type, content).await.unwrap();
        described
    }

    #[tokio::test]
    async fn every_platform_s_layers_are_known_whatever_attests_them() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let mut config = ServerConfig::new(dir.path().to_owned());
        config.listen.set_port(0);
        let server = registry::server::serve(config, stop.clone()).await.unwrap();
        let name = Reference::parse(&format!("{}/app:v1", server.address())).unwrap();
        let client = Client::new(ClientConfig::default()).unwrap();
        let recipe = Recipe::default();

        let blob = async |media_type: &str, content: String| {
            let size = content.len();
            let digest = client.push_blob(name.repository(), Bytes::from(content)).await.unwrap();
            json!({"mediaType": media_type, "digest": digest.as_ref(), "size": size})
        };
        let manifest = async |layer: Value, platform: Value| {
            let config = blob(OCI_CONFIG, platform.to_string()).await;
            let manifest =
                json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
            let at = name.at_digest(sha256(manifest.to_string().as_bytes()));
            let mut entry = put(&client, &at, OCI_MANIFEST, &manifest).await;
            entry["platform"] = platform;
            entry
        };
        let source = |number: usize| sha256(format!("layer {number}").as_bytes());
        let (mut images, mut attestations) = (Vec::new(), Vec::new());
        for number in 0..PLATFORMS {
            let mut layer = blob(OCI_LAYER, format!("blob {number}")).await;
            layer["annotations"] = announced(&source(number), recipe.fingerprint());
            let image = manifest(layer, json!({"os": "linux", "architecture": format!("a{number}")})).await;
            let statement = blob("application/vnd.in-toto+json", format!("statement {number}")).await;
            let unknown = json!({"os": "unknown", "architecture": "unknown"});
            let mut attestation = manifest(statement, unknown).await;
            attestation["annotations"] = json!({"vnd.docker.reference.digest": image["digest"]});
            images.push(image);
            attestations.push(attestation);
        }
        images.extend(attestations);
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images});
        put(&client, &name, OCI_INDEX, &index).await;

        let found = Present::new(vec![name]).read(&client, recipe.fingerprint()).await;
        for number in 0..PLATFORMS {
            assert!(found.contains_key(&source(number)), "layer {number}");
        }
        stop.cancel();
        server.stopped().await;
    }
}
