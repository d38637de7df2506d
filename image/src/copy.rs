//! An image as it is, from anywhere to anywhere: digest for digest, with all that its name leads to.

use std::collections::{HashMap, HashSet};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use registry::client::{Descriptor, PlacedBlobs, Placing};
use registry::digest::Digest;

use crate::destination::{CopyError, Destination, StoreError, copy_blob};
use crate::document::{DEPTH_LIMIT, DOCKER_INDEX, Index, Parsed, Stored};
use crate::source::{Document, Source, SourceError};

/// How many blobs of an image are under way at a time.
const PARALLEL_BLOBS: usize = 3;

/// What a copy came to.
#[derive(Clone, Debug, Default)]
pub struct CopiedImage {
    /// Manifests and indexes that were put.
    pub manifests: u64,
    /// Blobs that were sent.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that the registry took over from another repository of its own.
    pub mounted: u64,
    /// Manifests that an index names and the source does not have, as in a package for one platform.
    pub left_out: Vec<Digest>,
    /// All that is at the destination now.
    pub known: HashSet<Digest>,
}

/// Has `source` with all that it names at `destination`; returns what its name is to lead to there. An index that names manifests
/// which the source does not have is put without these, since registries take only what is whole: then its digest is another.
/// Blobs that are `placed` in another repository of a registry are mounted.
///
/// # Errors
///
/// When something cannot be read or stored.
pub async fn copy_image(
    source: &Source,
    destination: &dyn Destination,
    placed: &PlacedBlobs,
) -> Result<(Stored, CopiedImage), CopyError> {
    let mut job = CopyJob { source, destination, placed, copied: CopiedImage::default() };
    let root = source.root().await?;
    let root = job.document(root, 0).await?;
    Ok((root, job.copied))
}

struct CopyJob<'a> {
    source: &'a Source,
    destination: &'a dyn Destination,
    placed: &'a PlacedBlobs,
    copied: CopiedImage,
}

impl CopyJob<'_> {
    fn document(&mut self, document: Document, depth: usize) -> BoxFuture<'_, Result<Stored, CopyError>> {
        Box::pin(async move {
            let stored = match self.source.parse(&document)? {
                Parsed::Index(_) if depth == DEPTH_LIMIT => {
                    let error = SourceError::TooDeep { source_name: self.source.name(), limit: DEPTH_LIMIT };
                    return Err(error.into());
                }
                Parsed::Index(index) => self.index(&document, index, depth).await?,
                Parsed::Manifest(manifest) => {
                    self.blobs(manifest.blobs()).await?;
                    stored(&document)
                }
                Parsed::Artifact(artifact) => {
                    self.blobs(artifact.blobs.iter()).await?;
                    stored(&document)
                }
            };
            let put = self.destination.put_manifest(&stored.media_type, stored.content.clone());
            put.await?;
            self.copied.manifests += 1;
            self.copied.known.extend([document.descriptor.digest().clone(), stored.digest.clone()]);
            Ok(stored)
        })
    }

    /// Copies what an index names; returns it, without what the source does not have.
    async fn index(
        &mut self,
        document: &Document,
        mut index: Index,
        depth: usize,
    ) -> Result<Stored, CopyError> {
        let (mut replaced, mut missing) = (HashMap::new(), Vec::new());
        for (number, entry) in index.manifests.iter().enumerate() {
            let child = match self.source.manifest(entry).await {
                Err(SourceError::Missing { .. }) => {
                    missing.push(number);
                    self.copied.left_out.push(entry.digest().clone());
                    continue;
                }
                child => child?,
            };
            let child = self.document(child, depth + 1).await?;
            if child.digest != *entry.digest() {
                replaced.insert(entry.digest().clone(), child);
            }
        }
        if missing.is_empty() && replaced.is_empty() {
            return Ok(stored(document));
        }
        index.retain(|number| !missing.contains(&number));
        Ok(index.convert(&replaced, document.descriptor.media_type().as_ref() != DOCKER_INDEX))
    }

    async fn blobs(&mut self, blobs: impl Iterator<Item = &Descriptor>) -> Result<(), CopyError> {
        let mut seen = HashSet::new();
        let blobs: Vec<Descriptor> = blobs
            // What lies elsewhere is in no registry.
            .filter(|blob| blob.urls().as_ref().is_none_or(Vec::is_empty))
            .filter(|blob| seen.insert(blob.digest().clone()))
            .cloned()
            .collect();
        let (source, destination, placed) = (self.source, self.destination, self.placed);
        let copies =
            blobs.into_iter().map(|blob| async move { copy_once(source, &blob, destination, placed).await });
        let copies: Vec<_> = copies.collect();
        let mut copies = futures::stream::iter(copies).buffer_unordered(PARALLEL_BLOBS);
        while let Some(copied) = copies.next().await {
            self.copied.add(copied?);
        }
        Ok(())
    }
}

/// Copies a blob, unless it is placed in the destination's registry.
async fn copy_once(
    source: &Source,
    blob: &Descriptor,
    destination: &dyn Destination,
    placed: &PlacedBlobs,
) -> Result<CopiedImage, CopyError> {
    let sent = |bytes| CopiedImage { blobs: u64::from(bytes > 0), bytes, ..CopiedImage::default() };
    let Some((client, repository)) = destination.repository() else {
        return copy_blob(source, blob, destination).await.map(sent);
    };
    let turn = placed.turn(blob.digest()).await;
    let copied = match turn.place(client, repository).await.map_err(StoreError::from)? {
        Placing::Present => CopiedImage::default(),
        Placing::Mounted => CopiedImage { mounted: 1, ..CopiedImage::default() },
        Placing::Absent => sent(copy_blob(source, blob, destination).await?),
    };
    turn.done(repository);
    Ok(copied)
}

fn stored(document: &Document) -> Stored {
    Stored {
        media_type: document.descriptor.media_type().to_string(),
        content: document.content.clone(),
        digest: document.descriptor.digest().clone(),
    }
}

impl CopiedImage {
    /// Adds what another copy came to.
    pub fn add(&mut self, other: Self) {
        self.manifests += other.manifests;
        self.blobs += other.blobs;
        self.bytes += other.bytes;
        self.mounted += other.mounted;
        self.left_out.extend(other.left_out);
        self.known.extend(other.known);
    }
}
