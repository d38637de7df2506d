//! Which chunk goes where.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Content, content};
use crate::blob::{Blob, BlobIndex, ChunkIndex};
use crate::digest::Digest;
use crate::layout::CHUNKS_LIMIT;

/// How many blobs an image may name.
#[derive(Clone, Copy, Debug)]
pub struct SharingLimits {
    /// Blobs that are not those of its own layers.
    pub foreign: usize,
    /// All of them.
    pub all: usize,
}

impl Default for SharingLimits {
    /// 32 foreign blobs, and as many in all as RAFS v6 has.
    fn default() -> Self {
        Self { foreign: 32, all: BlobIndex::LIMIT }
    }
}

/// The chunks of a layer that is to be stored.
#[derive(Clone, Debug)]
pub struct LayerChunks {
    /// What the layer is called: the order of layers is that of their names.
    pub id: Digest,
    /// Content and stored size in bytes of each chunk of its blob, in order of their index.
    pub chunks: Vec<(Content, u32)>,
}

/// Which blobs an image uses.
#[derive(Clone, Debug, Default)]
pub struct ImageUse {
    /// Its layers that are to be stored, as places in the list of these.
    pub new: Vec<usize>,
    /// The blobs of its layers that are stored already.
    pub own: BTreeSet<Digest>,
    /// Other blobs that these layers use.
    pub foreign: BTreeSet<Digest>,
}

/// Blobs that are stored already, and what they hold.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    /// In the order in which they are preferred.
    blobs: Vec<Blob>,
    chunks: HashMap<Content, (u32, ChunkIndex)>,
}

impl Holders {
    /// `blobs` have ids and all of their chunks. In which order they come does not matter.
    pub fn new(mut blobs: Vec<Blob>) -> Self {
        blobs.sort_by_key(|blob| blob.id);
        blobs.dedup_by_key(|blob| blob.id);
        let mut chunks = HashMap::with_capacity(blobs.iter().map(|blob| blob.chunks.len()).sum());
        for (blob, number) in blobs.iter().zip(0u32..) {
            for (chunk, index) in blob.chunks.iter().zip(0u32..) {
                chunks.entry(content(chunk)).or_insert((number, ChunkIndex(index)));
            }
        }
        Self { blobs, chunks }
    }

    /// The blobs.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// The blobs, for more to be added.
    pub fn into_blobs(self) -> Vec<Blob> {
        self.blobs
    }

    /// The blob that holds it, as its place in [`blobs`](Self::blobs), and the chunk in it.
    fn find(&self, content: &Content) -> Option<(usize, ChunkIndex)> {
        self.chunks.get(content).map(|&(blob, chunk)| (blob as usize, chunk))
    }

    fn id(&self, blob: usize) -> Option<Digest> {
        self.blobs.get(blob).and_then(|blob| blob.id)
    }
}

/// Where a chunk goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChunkHome {
    /// To the layer's own blob.
    Own,
    /// It is in a stored blob, named by its place in [`Holders::blobs`].
    Stored(usize, ChunkIndex),
    /// It goes to the shared blob.
    Shared(ChunkIndex),
}

/// What a layer may use.
#[derive(Clone, Debug, Default)]
pub struct LayerPlan {
    /// Stored blobs, by their places in [`Holders::blobs`].
    allowed: BTreeSet<usize>,
    /// Whether it may use the shared blob.
    shares: bool,
}

/// Which chunk goes where.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// The chunks of the shared blob, in its order: a layer that has it, as its place in the list, and the chunk there.
    pub shared: Vec<(usize, ChunkIndex)>,
    places: HashMap<Content, ChunkIndex>,
    layers: Vec<LayerPlan>,
}

impl Decision {
    /// Where a chunk of a layer goes.
    pub fn place(&self, layer: usize, content: &Content, stored: &Holders) -> ChunkHome {
        let Some(plan) = self.layers.get(layer) else { return ChunkHome::Own };
        match plan.stored(content, stored) {
            Some((blob, chunk)) => ChunkHome::Stored(blob, chunk),
            None => match self.places.get(content) {
                Some(&chunk) if plan.shares => ChunkHome::Shared(chunk),
                _ => ChunkHome::Own,
            },
        }
    }
}

impl LayerPlan {
    fn stored(&self, content: &Content, stored: &Holders) -> Option<(usize, ChunkIndex)> {
        stored.find(content).filter(|(blob, _)| self.allowed.contains(blob))
    }
}

/// What an image could use of foreign blobs.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Foreign {
    Shared,
    Stored(usize),
}

/// Decides for each chunk of `layers` where it goes. Each of `images` names at most as many blobs as `limits` say; where there would
/// be more, those give way of which it would use the fewest bytes, and what it has in them is stored again.
pub fn decide(
    layers: &[LayerChunks],
    images: &[ImageUse],
    stored: &Holders,
    limits: SharingLimits,
) -> Decision {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&layer| layers[layer].id);
    let counts = counts(layers, &order, |_, content| stored.find(content).is_none());
    let mut allowed: Vec<Option<BTreeSet<Foreign>>> = vec![None; layers.len()];
    for image in images {
        let found = foreign(image, layers, stored, &counts, limits);
        for &layer in &image.new {
            let Some(slot) = allowed.get_mut(layer) else { continue };
            match slot {
                Some(others) => others.retain(|blob| found.contains(blob)),
                None => *slot = Some(found.clone()),
            }
        }
    }
    let plans: Vec<LayerPlan> = allowed.into_iter().map(|found| plan(found.unwrap_or_default())).collect();
    let counts = counts_of_sharing(layers, &order, &plans, stored);
    let mut shared: Vec<_> = counts.into_iter().filter(|(_, holders)| holders.layers.len() > 1).collect();
    // What the same layers have lies together, in the order that it has in the first of them: read together, it is near.
    shared
        .sort_unstable_by(|(_, one), (_, other)| (&one.layers, one.chunk).cmp(&(&other.layers, other.chunk)));
    shared.truncate(CHUNKS_LIMIT as usize);
    let mut decision = Decision { layers: plans, ..Decision::default() };
    for (number, (content, holders)) in (0u32..).zip(shared) {
        decision.shared.push((order[holders.layers[0] as usize], holders.chunk));
        decision.places.insert(content, ChunkIndex(number));
    }
    decision
}

fn plan(allowed: BTreeSet<Foreign>) -> LayerPlan {
    let shares = allowed.contains(&Foreign::Shared);
    let stored = |blob| match blob {
        Foreign::Stored(blob) => Some(blob),
        Foreign::Shared => None,
    };
    LayerPlan { allowed: allowed.into_iter().filter_map(stored).collect(), shares }
}

/// The layers that have a content, by their rank, and its chunk in the first of them.
struct Sharing {
    layers: Vec<u32>,
    chunk: ChunkIndex,
}

/// Who has each content that counts: `(layer, content)` says whether it does.
fn counts(
    layers: &[LayerChunks],
    order: &[usize],
    counted: impl Fn(usize, &Content) -> bool,
) -> HashMap<Content, Sharing> {
    let mut found: HashMap<Content, Sharing> = HashMap::new();
    for (rank, &layer) in (0u32..).zip(order) {
        for (index, (content, _)) in (0u32..).zip(&layers[layer].chunks) {
            if !counted(layer, content) {
                continue;
            }
            let first = || Sharing { layers: Vec::with_capacity(1), chunk: ChunkIndex(index) };
            let sharing = found.entry(*content).or_insert_with(first);
            if sharing.layers.last() != Some(&rank) {
                sharing.layers.push(rank);
            }
        }
    }
    found
}

fn counts_of_sharing(
    layers: &[LayerChunks],
    order: &[usize],
    plans: &[LayerPlan],
    stored: &Holders,
) -> HashMap<Content, Sharing> {
    counts(layers, order, |layer, content| {
        plans[layer].shares && plans[layer].stored(content, stored).is_none()
    })
}

/// The foreign blobs that an image may name: those that it has to, and of the others those that it uses most.
fn foreign(
    image: &ImageUse,
    layers: &[LayerChunks],
    stored: &Holders,
    counts: &HashMap<Content, Sharing>,
    limits: SharingLimits,
) -> BTreeSet<Foreign> {
    let mut bytes: BTreeMap<Foreign, u64> = BTreeMap::new();
    for (content, size) in
        image.new.iter().filter_map(|&layer| layers.get(layer)).flat_map(|layer| &layer.chunks)
    {
        let blob = match stored.find(content) {
            Some((blob, _)) => Foreign::Stored(blob),
            None if counts.get(content).is_some_and(|sharing| sharing.layers.len() > 1) => Foreign::Shared,
            None => continue,
        };
        *bytes.entry(blob).or_default() += u64::from(*size);
    }
    let is_free = |blob: &Foreign| match blob {
        Foreign::Stored(blob) => {
            stored.id(*blob).is_some_and(|id| image.own.contains(&id) || image.foreign.contains(&id))
        }
        Foreign::Shared => false,
    };
    let own = image.own.len() + image.new.len();
    let room = limits.foreign.min(limits.all.saturating_sub(own)).saturating_sub(image.foreign.len());
    let (free, mut others): (Vec<_>, Vec<_>) = bytes.into_iter().partition(|(blob, _)| is_free(blob));
    // By blob where bytes are equal: the same images are to make the same blobs each time.
    others.sort_by_key(|&(blob, bytes)| (std::cmp::Reverse(bytes), blob));
    others.truncate(room);
    free.into_iter().chain(others).map(|(blob, _)| blob).collect()
}
