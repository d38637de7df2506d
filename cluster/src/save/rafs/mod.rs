//! Images as RAFS, with the chunks that they share stored once.
//!
//! ```text
//! layers ──spool──> converted, on this machine ──commit──> blobs at the destination ──assemble──> bootstraps and manifests
//! ```
//!
//! | file | does |
//! |---|---|
//! | `spool` | where converted layers wait |
//! | `room` | how many of them may, over all saves |
//! | `known` | what the destination has already |
//! | `commit` | what layers share, and their blobs |
//! | `assemble` | the nydus image of each image and platform |
//!
//! Which chunk goes to which blob is known only when all layers have been seen, and no layer is to be fetched twice: so converted
//! layers wait on this machine, in rounds of as many as there is room for. They are removed when their blobs are stored.

mod assemble;
mod commit;
mod known;
mod room;
mod spool;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt as _;
use image::destination::Destination;
use image::options::Recipe;
use registry::Digest;

use super::plan::PlannedLayer;
use super::{Done, SaveError, SaveOptions, Saved};
use crate::saved::{BlobStore, ChainEntry, Table};

pub(crate) use assemble::NydusImage;
pub(crate) use known::Known;
pub use room::LayerSpace;
pub(crate) use spool::Spool;

/// What images become.
pub(crate) struct Rafs {
    pub(crate) destination: Arc<dyn Destination>,
    /// The same, to be read.
    pub(crate) store: BlobStore,
    pub(crate) spool: Spool,
    pub(crate) known: Known,
    pub(crate) recipe: Arc<Recipe>,
    pub(crate) options: SaveOptions,
}

/// A layer that images need.
struct Needed {
    layer: PlannedLayer,
    /// The image whose source has it, as its place in the list.
    from: usize,
}

/// What became of images, in their order.
pub(crate) struct Converted {
    pub(crate) table: Table,
    pub(crate) nydus: Vec<Vec<NydusImage>>,
    /// To be removed once all of it has its name.
    pub(crate) spool: Spool,
}

/// Some images cannot be saved, and why.
pub(crate) type Failures = BTreeMap<usize, SaveError>;

impl Rafs {
    /// Converts and stores all of `images`, unless they are not `complete`. If a layer of one fails, or others have failed, none
    /// is stored; what was converted is kept.
    ///
    /// # Errors
    ///
    /// Why which images cannot be saved.
    pub(crate) async fn convert(
        mut self,
        images: &[Saved],
        complete: bool,
        done: &Done<'_>,
    ) -> Result<Converted, Failures> {
        let mut fetched = vec![0; images.len()];
        let all = |error: SaveError| Failures::from([(usize::MAX, error)]);
        let mut needed = VecDeque::from(self.needed(images));
        while !needed.is_empty() {
            let round = self.round(&mut needed);
            self.fetch(images, &round, &mut fetched).await?;
            if !complete {
                break;
            }
            let later = needed.iter().map(|needed| needed.layer.diff_id.clone()).collect();
            let layers = round
                .iter()
                .map(|needed| (needed.layer.descriptor.digest().clone(), needed.layer.diff_id.clone()));
            let layers: Vec<_> = layers.collect();
            self.commit(images, &layers, &later).await.map_err(all)?;
            self.spool.stored(&self.known.layers_table(), &layers).await.map_err(all)?;
        }
        if !complete {
            return Err(Failures::new());
        }
        let nydus = self.assemble_all(images, &fetched, done).await?;
        let table = self.table(images, &nydus);
        Ok(Converted { table, nydus, spool: self.spool })
    }

    /// The layers that are not stored yet, each once, in the order of their diff ids.
    fn needed(&self, images: &[Saved]) -> Vec<Needed> {
        let mut needed: HashMap<Digest, Needed> = HashMap::new();
        for (from, image) in images.iter().enumerate() {
            for layer in image.plan.rafs.iter().flat_map(|rafs| &rafs.layers) {
                if self.known.layer(&layer.diff_id).is_some() {
                    continue;
                }
                let entry = needed
                    .entry(layer.diff_id.clone())
                    .or_insert_with(|| Needed { layer: layer.clone(), from });
                // One tar may be compressed in several ways.
                if layer.descriptor.digest().as_ref() < entry.layer.descriptor.digest().as_ref() {
                    *entry = Needed { layer: layer.clone(), from };
                }
            }
        }
        let mut needed: Vec<_> = needed.into_values().collect();
        needed.sort_by(|one, other| one.layer.diff_id.as_ref().cmp(other.layer.diff_id.as_ref()));
        needed
    }

    /// Those of them that may wait now: the first, and as many after it as there is room for.
    fn round(&self, needed: &mut VecDeque<Needed>) -> Vec<Needed> {
        let mut round = Vec::new();
        while let Some(next) = needed.front()
            && self.spool.take(next.layer.descriptor.size(), round.is_empty())
        {
            round.extend(needed.pop_front());
        }
        round
    }

    /// Has the layers of a round converted.
    async fn fetch(&self, images: &[Saved], round: &[Needed], fetched: &mut [u64]) -> Result<(), Failures> {
        let one = |(number, needed)| async move { (number, self.fetch_one(images, needed).await) };
        let jobs: Vec<_> = round.iter().enumerate().map(one).collect();
        // Each that is there makes room for the next: one that does not come keeps no others waiting.
        let results = futures::stream::iter(jobs).buffer_unordered(self.options.conversions.max(1));
        let mut results: Vec<(usize, Result<u64, SaveError>)> = results.collect().await;
        results.sort_by_key(|(number, _)| *number);
        let mut failures = Failures::new();
        for (needed, (_, result)) in round.iter().zip(results) {
            let error = match result {
                Ok(bytes) => {
                    if let Some(fetched) = fetched.get_mut(needed.from) {
                        *fetched += bytes;
                    }
                    continue;
                }
                Err(error) => error,
            };
            let digest = needed.layer.descriptor.digest();
            let reason = error.to_string();
            for (number, image) in images.iter().enumerate() {
                let mut layers = image.plan.rafs.iter().flat_map(|rafs| &rafs.layers);
                if layers.any(|layer| layer.diff_id == needed.layer.diff_id) {
                    let (digest, reason) = (digest.clone(), reason.clone());
                    failures.entry(number).or_insert(SaveError::Blob { digest, reason });
                }
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    /// Has a layer converted; returns the bytes that were fetched.
    async fn fetch_one(&self, images: &[Saved], needed: &Needed) -> Result<u64, SaveError> {
        let PlannedLayer { descriptor, diff_id, .. } = &needed.layer;
        if self.spool.has(descriptor.digest(), diff_id) {
            return Ok(0);
        }
        // Before anything is asked for: a registry gives up a reader that waits.
        let mut slot = self.options.slots.take().await;
        // What is saved plainly too has just come.
        let (blob, fetched) = if self.options.forms.plain {
            (slot.lend(self.store.stream(descriptor.digest(), descriptor.size())).await?, 0)
        } else {
            let source = images.get(needed.from).map(|image| &image.source);
            let source = source.ok_or_else(|| SaveError::NotInIndex(descriptor.digest().clone()))?;
            (slot.lend(source.blob(descriptor)).await?, descriptor.size())
        };
        self.spool.convert(descriptor.digest(), diff_id, blob, &self.recipe, slot).await?;
        Ok(fetched)
    }

    /// The table of these images.
    fn table(&self, images: &[Saved], nydus: &[Vec<NydusImage>]) -> Table {
        let mut table = Table {
            chunk_size: self.recipe.build().chunk_size,
            digester: self.recipe.build().digester.word().to_owned(),
            ..Table::default()
        };
        for (image, nydus) in images.iter().zip(nydus) {
            for (rafs, nydus) in image.plan.rafs.iter().zip(nydus) {
                let mut parent = None;
                for layer in &rafs.layers {
                    if let Some(entry) = self.known.layer(&layer.diff_id) {
                        table.layers.insert(layer.diff_id.clone(), entry.clone());
                    }
                    let entry = ChainEntry { parent, layer: layer.diff_id.clone(), bootstrap: None };
                    table.chains.entry(layer.chain.clone()).or_insert(entry);
                    parent = Some(layer.chain.clone());
                }
                if let Some(chain) = parent.as_ref().and_then(|top| table.chains.get_mut(top)) {
                    chain.bootstrap = Some(nydus.bootstrap.clone());
                }
                table.images.insert(rafs.manifest.descriptor.digest().clone(), nydus.entry(&rafs.layers));
            }
        }
        let used = table.layers.values().flat_map(|layer| layer.foreign.iter().chain([&layer.blob]));
        let used = used.chain(table.images.values().flat_map(|image| &image.blobs));
        let blobs = used.filter_map(|blob| Some((blob.clone(), self.known.blob(blob)?.clone())));
        table.blobs = blobs.collect();
        table
    }
}
