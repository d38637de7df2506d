//! From converted layers to blobs at the destination: what they share is decided and stored once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use image::layer::{ConvertedLayer, store_written};
use rafs::blob::stream::Toc;
use rafs::blob::{Blob, ChunkIndex};
use rafs::bootstrap::WriteOptions;
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::layout::toc::BOOTSTRAP;
use rafs::share::{
    Decision, Holders, ImageUse, LayerChunks, SharedSource, SharingLimits, WriteSharedError, content, decide,
    read_layer, rewrite, write_shared,
};
use rafs::tree::{Layer, Tree};
use registry::Digest;

use super::Rafs;
use super::spool::SpooledLayer;
use crate::save::{SaveError, Saved};
use crate::saved::{BlobEntry, BlobStore, LayerEntry, TreeEntry, oci_digest, rafs_digest};

/// A converted layer, and what is known of it.
struct Opened {
    spooled: SpooledLayer,
    /// Its diff id.
    id: rafs::digest::Digest,
    /// Its blob as it is now; none if it has no chunks.
    blob: Option<Blob>,
}

/// All that the blobs of a round are made of.
struct Round {
    layers: Vec<Opened>,
    holders: Arc<Holders>,
    decision: Decision,
    shared: Option<Blob>,
    options: WriteOptions,
}

impl Rafs {
    /// Stores the layers `(layer, diff id)`, all of which are converted. Those of `later` will come after them.
    pub(super) async fn commit(
        &mut self,
        images: &[Saved],
        layers: &[(Digest, Digest)],
        later: &HashSet<Digest>,
    ) -> Result<(), SaveError> {
        let spooled: Vec<_> = layers
            .iter()
            .map(|(layer, diff_id)| {
                let id = rafs_digest(diff_id).ok_or_else(|| SaveError::NotInIndex(diff_id.clone()))?;
                Ok((id, self.spool.layer(layer, diff_id)?))
            })
            .collect::<Result<_, SaveError>>()?;
        let holders = self.known.holders(&self.store).await?;
        let uses = self.uses(images, layers, later);
        let options = WriteOptions {
            chunk_size: self.recipe.build().chunk_size,
            compressor: self.recipe.build().compressor,
            digester: self.recipe.build().digester,
            ..WriteOptions::default()
        };
        let opening = move || Round::new(spooled, &uses, holders, options);
        let mut round = tokio::task::spawn_blocking(opening).await??;
        // What is shared comes first: the layers name its blob, and a blob has its name once it is stored.
        let (mut blobs, mut chunks) = (Vec::new(), Vec::new());
        if !round.decision.shared.is_empty() {
            let (stored, back) = self.store_shared(round).await?;
            round = back;
            blobs.push((stored.digest.clone(), self.entries(&stored).await?.0));
            round.shared = stored.layer.blobs.into_iter().next();
            chunks.extend(round.shared.clone());
        }
        let round = Arc::new(round);
        let mut entries = Vec::new();
        for ((_, diff_id), (stored, (blob, tree))) in layers.iter().zip(self.store_layers(&round).await?) {
            let mut all = stored.layer.blobs.into_iter();
            let own = all.next().filter(|own| !own.chunks.is_empty());
            let mut foreign: Vec<Digest> = all.filter_map(|blob| blob.id).map(oci_digest).collect();
            foreign.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
            blobs.push((stored.digest.clone(), blob));
            entries.push((diff_id.clone(), LayerEntry { blob: stored.digest, tree, foreign }));
            chunks.extend(own);
        }
        self.known.add(entries, blobs, chunks);
        Ok(())
    }

    /// Which blobs each image and platform uses.
    fn uses(&self, images: &[Saved], layers: &[(Digest, Digest)], later: &HashSet<Digest>) -> Vec<ImageUse> {
        let places: HashMap<&Digest, usize> =
            layers.iter().enumerate().map(|(place, (_, diff_id))| (diff_id, place)).collect();
        let of = |layers: &[crate::save::plan::PlannedLayer]| {
            let mut found = ImageUse::default();
            let mut new = BTreeSet::new();
            for layer in layers {
                if let Some(stored) = self.known.layer(&layer.diff_id) {
                    found.own.extend(rafs_digest(&stored.blob));
                    found.foreign.extend(stored.foreign.iter().filter_map(rafs_digest));
                } else if let Some(place) = places.get(&layer.diff_id) {
                    new.insert(*place);
                } else if later.contains(&layer.diff_id) {
                    // It will have a blob of its own; its diff id stands for that.
                    found.own.extend(rafs_digest(&layer.diff_id));
                }
            }
            found.foreign.retain(|blob| !found.own.contains(blob));
            found.new = new.into_iter().collect();
            found
        };
        images.iter().flat_map(|image| &image.plan.rafs).map(|rafs| of(&rafs.layers)).collect()
    }

    /// Stores what layers share.
    async fn store_shared(&self, round: Round) -> Result<(ConvertedLayer, Round), SaveError> {
        let round = Arc::new(round);
        let writing = Arc::clone(&round);
        let write = move |out: &mut dyn Write| {
            let blob = writing.write_shared(out)?;
            Ok(Layer { tree: Tree::new(), blobs: vec![blob] })
        };
        let stored = store_written(&self.destination, write).await?;
        // Whoever wrote has let go of it.
        let round = Arc::into_inner(round).ok_or_else(|| SaveError::Internal("a blob is still written"))?;
        Ok((stored, round))
    }

    /// Stores the blobs of all layers, and returns them in the layers' order with what the table says of them.
    async fn store_layers(
        &self,
        round: &Arc<Round>,
    ) -> Result<Vec<(ConvertedLayer, (BlobEntry, TreeEntry))>, SaveError> {
        let store = |number: usize| async move {
            let stored = self.store_layer(round, number).await?;
            let entries = self.entries(&stored).await?;
            Ok::<_, SaveError>((number, (stored, entries)))
        };
        // Each that is stored makes room for the next: a large one keeps no others waiting.
        let stored = futures::stream::iter((0..round.layers.len()).map(store));
        let stored = stored.buffer_unordered(self.options.conversions.max(1));
        let mut stored: Vec<_> = stored.try_collect().await?;
        stored.sort_by_key(|(number, _)| *number);
        Ok(stored.into_iter().map(|(_, stored)| stored).collect())
    }

    /// Stores a layer's blob.
    async fn store_layer(&self, round: &Arc<Round>, number: usize) -> Result<ConvertedLayer, SaveError> {
        let round = Arc::clone(round);
        let write = move |out: &mut dyn Write| round.write_layer(number, out);
        Ok(store_written(&self.destination, write).await?)
    }

    /// What the table says of a blob that was stored, read from where it is now.
    async fn entries(&self, stored: &ConvertedLayer) -> Result<(BlobEntry, TreeEntry), SaveError> {
        entries(&self.store, &stored.digest, stored.size).await
    }
}

async fn entries(store: &BlobStore, digest: &Digest, size: u64) -> Result<(BlobEntry, TreeEntry), SaveError> {
    let wrong = |reason: String| SaveError::Blob { digest: digest.clone(), reason };
    let tail = store.range(digest, Toc::range(size)).await.map_err(|error| wrong(error.to_string()))?;
    let toc = Toc::parse(&tail, size, None).map_err(|error| wrong(error.to_string()))?;
    let part = toc.part(BOOTSTRAP).ok_or_else(|| wrong("it has no bootstrap in it".to_owned()))?;
    let tree = TreeEntry {
        offset: part.range.start,
        size: part.stored_size(),
        digest: oci_digest(part.digest),
        uncompressed_size: part.uncompressed_size,
    };
    Ok((BlobEntry { size, toc: oci_digest(toc.digest) }, tree))
}

impl Round {
    /// Reads what the layers have, and decides. Blocks.
    fn new(
        spooled: Vec<(rafs::digest::Digest, SpooledLayer)>,
        uses: &[ImageUse],
        holders: Arc<Holders>,
        options: WriteOptions,
    ) -> Result<Self, SaveError> {
        let mut layers = Vec::with_capacity(spooled.len());
        let mut chunks = Vec::with_capacity(spooled.len());
        for (id, spooled) in spooled {
            let blob = open(id, &spooled)?.blobs.into_iter().next().filter(|blob| !blob.chunks.is_empty());
            let found = blob.iter().flat_map(|blob| &blob.chunks);
            let found = found.map(|chunk| (content(chunk), chunk.compressed_size)).collect();
            chunks.push(LayerChunks { id, chunks: found });
            layers.push(Opened { spooled, id, blob });
        }
        let decision = decide(&chunks, uses, &holders, SharingLimits::default());
        Ok(Self { layers, holders, decision, shared: None, options })
    }

    fn write_shared(&self, out: impl Write) -> Result<Blob, WriteSharedError> {
        let mut chunks: Vec<(&dyn SharedSource, ChunkIndex, &rafs::blob::Chunk)> = Vec::new();
        let mut like = None;
        for &(layer, index) in &self.decision.shared {
            let opened = self.layers.get(layer).ok_or(WriteSharedError::NoBlob)?;
            let blob = opened.blob.as_ref().ok_or(WriteSharedError::NoBlob)?;
            let chunk = blob.chunks.get(index.0 as usize).ok_or(WriteSharedError::NoChunk(index.0))?;
            chunks.push((&opened.spooled, index, chunk));
            like.get_or_insert(blob);
        }
        let like = like.ok_or(WriteSharedError::NoBlob)?;
        write_shared(chunks.into_iter(), like, &self.options, out)
    }

    fn write_layer(&self, number: usize, out: &mut dyn Write) -> Result<Layer, WriteSharedError> {
        let opened = self.layers.get(number).ok_or(WriteSharedError::NoBlob)?;
        let source = &opened.spooled;
        let failed = |source: std::io::Error| WriteSharedError::Read { layer: opened.spooled.name(), source };
        let layer =
            open(opened.id, source).map_err(|error| failed(std::io::Error::other(error.to_string())))?;
        if opened.blob.is_none() {
            // Without chunks there is nothing to share: the blob is what it is, and has the digest of all of it.
            let mut bytes = vec![0; source.size as usize];
            source.read_at(0, &mut bytes).map_err(failed)?;
            out.write_all(&bytes)?;
            return Ok(whole(layer, &bytes, self.options.chunk_size));
        }
        let place = |chunk: &rafs::blob::Chunk| self.decision.place(number, &content(chunk), &self.holders);
        rewrite(layer, source, place, &self.holders, self.shared.as_ref(), &self.options, out)
    }
}

/// A layer without chunks whose blob is `bytes`.
fn whole(layer: Layer, bytes: &[u8], chunk_size: u32) -> Layer {
    let id = rafs_digest(&registry::digest::sha256(bytes));
    let size = bytes.len() as u64;
    let coding = Blob::coding(chunk_size, Compressor::default(), DigestAlgorithm::default());
    let own = Blob { id, stored_size: size, ..coding };
    Layer { tree: layer.tree, blobs: vec![own] }
}

/// The layer in a file.
fn open(id: rafs::digest::Digest, spooled: &SpooledLayer) -> Result<Layer, SaveError> {
    let read = |range: std::ops::Range<u64>| {
        let length = usize::try_from(range.end.saturating_sub(range.start)).map_err(std::io::Error::other)?;
        let mut bytes = vec![0; length];
        spooled.read_at(range.start, &mut bytes)?;
        Ok(bytes)
    };
    Ok(read_layer(id, spooled.size, None, read)?)
}
