//! Image sets, and what the layers need that were taken from one.
//!
//! A set's chains are rows of their own, so that one is found without reading a set. Of several sets that have a chain the one
//! that was put last is meant; its number says when. A layer that was taken from a set has all that it needs in a row of its own,
//! under its snapshot's id: nothing of the set is asked for again.

use std::collections::HashMap;

use fuse_daemon::control::BackendSpec;
use redb::{ReadTransaction, ReadableTable, Table};
use registry::digest::{Digest, sha256};
use serde::{Deserialize, Serialize};

use super::{FailedAction, LAZY_LAYERS, NUMBERS, SET_CHAINS, SETS, SnapshotId, State};
use crate::control::{ImageSet, MergedBootstrap, SetBlob, SetChain, SetImage, SetStatus, TreePlace};
use crate::error::Error;

/// One above the largest number that a set ever had.
const NEXT_SET: &str = "next image set";

/// A set, without its chains.
#[derive(Deserialize, Serialize)]
struct StoredSet {
    number: u64,
    /// SHA-256 of what was put.
    content: Digest,
    backends: Vec<BackendSpec>,
    chains: u64,
    images: u64,
}

/// A chain of a set.
#[derive(Deserialize, Serialize)]
struct StoredChain {
    set: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<Digest>,
    layer: LayerTree,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    foreign: Vec<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<StoredImage>,
}

#[derive(Deserialize, Serialize)]
struct StoredImage {
    bootstrap: MergedBootstrap,
    blobs: Vec<Digest>,
}

/// Where a layer's own tree is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct LayerTree {
    /// The layer's blob.
    pub(crate) blob: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// SHA-256 of its table of contents.
    pub(crate) toc: Digest,
    /// Where in it the tree is.
    pub(crate) tree: TreePlace,
}

/// What shows all that a chain of layers holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChainSource {
    /// A bootstrap that was made of all of it.
    Merged(MergedBootstrap),
    /// The layers' own trees, the lowest first: one is to be made of them.
    Layers(Vec<LayerTree>),
}

/// What a layer that was taken from a set needs, with all below it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct LazyLayer {
    /// The set.
    pub(crate) set: String,
    /// The chain whose top layer it is.
    pub(crate) chain: Digest,
    /// Its own blob.
    pub(crate) blob: Digest,
    /// Who has the blobs.
    pub(crate) backends: Vec<BackendSpec>,
    /// What shows the chain.
    pub(crate) source: ChainSource,
    /// The blobs that the chain's files may be in.
    pub(crate) blobs: Vec<Digest>,
}

type Sets<'t> = Table<'t, &'static str, &'static [u8]>;
type Chains<'t> = Table<'t, (&'static str, u64), &'static [u8]>;

impl State {
    /// Stores a set that was checked, instead of one of its name; whether anything is otherwise than before. One that was put
    /// before is the one put last from now on, unless it is as it was.
    pub(crate) fn put_set(&self, set: &ImageSet) -> Result<bool, Error> {
        let content = sha256(&encode(&set.name, set)?);
        let transaction = self.write("store an image set")?;
        {
            let mut sets = transaction.open_table(SETS).during("store an image set")?;
            let mut chains = transaction.open_table(SET_CHAINS).during("store an image set")?;
            let mut numbers = transaction.open_table(NUMBERS).during("store an image set")?;
            if let Some(known) = stored_set(&sets, &set.name)? {
                if known.content == content {
                    return Ok(false);
                }
                forget_chains(&mut chains, known.number)?;
            }
            let number = numbers.get(NEXT_SET).during("read the next set")?.map_or(1, |next| next.value());
            numbers.insert(NEXT_SET, number + 1).during("write the next set")?;
            let stored = StoredSet {
                number,
                content,
                backends: set.backends.clone(),
                chains: set.chains.len() as u64,
                images: set.images.len() as u64,
            };
            sets.insert(set.name.as_str(), encode(&set.name, &stored)?.as_slice())
                .during("store an image set")?;
            insert_chains(&mut chains, number, set)?;
        }
        transaction.commit().during("store an image set")?;
        Ok(true)
    }

    /// Forgets a set; whether there was one of that name. Layers that were taken from it stay as they are.
    pub(crate) fn remove_set(&self, name: &str) -> Result<bool, Error> {
        let transaction = self.write("forget an image set")?;
        {
            let mut sets = transaction.open_table(SETS).during("forget an image set")?;
            let mut chains = transaction.open_table(SET_CHAINS).during("forget an image set")?;
            let Some(known) = stored_set(&sets, name)? else { return Ok(false) };
            forget_chains(&mut chains, known.number)?;
            sets.remove(name).during("forget an image set")?;
        }
        transaction.commit().during("forget an image set")?;
        Ok(true)
    }

    /// All sets, in order of their names.
    pub(crate) fn sets(&self) -> Result<Vec<SetStatus>, Error> {
        let mut layers: HashMap<String, u64> = HashMap::new();
        self.each_lazy_layer(|_, layer| *layers.entry(layer.set).or_default() += 1)?;
        let transaction = self.read()?;
        let sets = transaction.open_table(SETS).during("read the image sets")?;
        let mut found = Vec::new();
        for entry in sets.iter().during("read the image sets")? {
            let (name, value) = entry.during("read the image sets")?;
            let name = name.value().to_owned();
            let StoredSet { backends, chains, images, .. } = decode(&name, value.value())?;
            let layers = layers.get(&name).copied().unwrap_or_default();
            found.push(SetStatus { name, backends, chains, images, layers });
        }
        Ok(found)
    }

    /// What a chain is as RAFS, if a set has it: of several sets the one that was put last, and one that has a merged bootstrap
    /// of it before others.
    pub(crate) fn lazy_chain(&self, chain: &str) -> Result<Option<LazyLayer>, Error> {
        let transaction = self.read()?;
        let chains = transaction.open_table(SET_CHAINS).during("look for a chain")?;
        let mut found: Option<(u64, StoredChain)> = None;
        for entry in chains.range((chain, 0)..=(chain, u64::MAX)).during("look for a chain")? {
            let (key, value) = entry.during("look for a chain")?;
            let stored: StoredChain = decode(chain, value.value())?;
            if stored.image.is_some() || found.as_ref().is_none_or(|(_, before)| before.image.is_none()) {
                found = Some((key.value().1, stored));
            }
        }
        let Some((number, top)) = found else { return Ok(None) };
        let sets = transaction.open_table(SETS).during("look for a chain")?;
        let broken = |problem: &str| Error::Record {
            what: format!("chain {chain} of image set {:?}", top.set),
            problem: problem.to_owned(),
        };
        let set = sets.get(top.set.as_str()).during("look for a chain")?;
        let set = set.ok_or_else(|| broken("its set is not there"))?;
        let StoredSet { backends, .. } = decode(&top.set, set.value())?;
        let id = chain.parse().map_err(|_| broken("its id is no digest"))?;
        let (set, blob) = (top.set.clone(), top.layer.blob.clone());
        let (source, blobs) = match top.image {
            Some(StoredImage { bootstrap, blobs }) => (ChainSource::Merged(bootstrap), blobs),
            None => layers_of(&chains, number, top)?,
        };
        Ok(Some(LazyLayer { set, chain: id, blob, backends, source, blobs }))
    }

    /// What the layer of a snapshot needs that was taken from a set. Who has its blobs are those whom sets name now that have them, the
    /// one put last first, and then those that were recorded with it.
    pub(crate) fn lazy_layer(&self, id: SnapshotId) -> Result<LazyLayer, Error> {
        let transaction = self.read()?;
        let layers = transaction.open_table(LAZY_LAYERS).during("read a layer of an image set")?;
        let found = layers.get(id.0).during("read a layer of an image set")?;
        let missing = || Error::Record {
            what: format!("what snapshot {id} was taken from"),
            problem: "it is not there".to_owned(),
        };
        let mut layer: LazyLayer = decode(&format!("snapshot {id}"), found.ok_or_else(missing)?.value())?;
        let recorded = std::mem::take(&mut layer.backends);
        for backend in backends_now(&transaction, &layer)?.into_iter().chain(recorded) {
            if !layer.backends.contains(&backend) {
                layer.backends.push(backend);
            }
        }
        Ok(layer)
    }

    /// Calls `visit` with what each layer needs that was taken from a set.
    pub(crate) fn each_lazy_layer(&self, mut visit: impl FnMut(SnapshotId, LazyLayer)) -> Result<(), Error> {
        let transaction = self.read()?;
        let layers = transaction.open_table(LAZY_LAYERS).during("read the layers of image sets")?;
        for entry in layers.iter().during("read the layers of image sets")? {
            let (id, value) = entry.during("read the layers of image sets")?;
            let id = SnapshotId(id.value());
            visit(id, decode(&format!("snapshot {id}"), value.value())?);
        }
        Ok(())
    }
}

/// Who has the blobs of a layer, as sets say that have its chain in the same blob.
fn backends_now(transaction: &ReadTransaction, layer: &LazyLayer) -> Result<Vec<BackendSpec>, Error> {
    let chains = transaction.open_table(SET_CHAINS).during("look for a chain")?;
    let sets = transaction.open_table(SETS).during("look for a chain")?;
    let chain = layer.chain.as_ref();
    let mut backends = Vec::new();
    for entry in chains.range((chain, 0)..=(chain, u64::MAX)).during("look for a chain")?.rev() {
        let (_, value) = entry.during("look for a chain")?;
        let stored: StoredChain = decode(chain, value.value())?;
        if stored.layer.blob == layer.blob
            && let Some(set) = sets.get(stored.set.as_str()).during("look for a chain")?
        {
            backends.extend(decode::<StoredSet>(&stored.set, set.value())?.backends);
        }
    }
    Ok(backends)
}

/// Stores what the layer of a snapshot needs.
pub(super) fn insert_lazy_layer(
    layers: &mut Table<'_, u64, &'static [u8]>,
    id: SnapshotId,
    layer: &LazyLayer,
) -> Result<(), Error> {
    let value = encode(&format!("snapshot {id}"), layer)?;
    layers.insert(id.0, value.as_slice()).during("store a layer of an image set")?;
    Ok(())
}

fn insert_chains(chains: &mut Chains<'_>, number: u64, set: &ImageSet) -> Result<(), Error> {
    let blobs: HashMap<_, _> = set.blobs.iter().map(|blob| (&blob.blob, blob)).collect();
    let images: HashMap<_, _> = set.images.iter().map(|image| (&image.chain, image)).collect();
    for SetChain { chain, parent, blob, tree, foreign, .. } in &set.chains {
        let undescribed =
            || Error::Internal(format!("blob {blob} of a set that was checked is not described"));
        let SetBlob { size, toc, .. } = blobs.get(blob).ok_or_else(undescribed)?;
        let image = images.get(chain).map(|SetImage { bootstrap, blobs, .. }| StoredImage {
            bootstrap: bootstrap.clone(),
            blobs: blobs.clone(),
        });
        let stored = StoredChain {
            set: set.name.clone(),
            parent: parent.clone(),
            layer: LayerTree { blob: blob.clone(), size: *size, toc: toc.clone(), tree: tree.clone() },
            foreign: foreign.clone(),
            image,
        };
        let value = encode(chain.as_ref(), &stored)?;
        chains.insert((chain.as_ref(), number), value.as_slice()).during("store an image set")?;
    }
    Ok(())
}

fn forget_chains(chains: &mut Chains<'_>, number: u64) -> Result<(), Error> {
    chains.retain(|(_, of), _| of != number).during("forget the chains of an image set")
}

fn stored_set(sets: &Sets<'_>, name: &str) -> Result<Option<StoredSet>, Error> {
    let found = sets.get(name).during("read an image set")?;
    found.map(|value| decode(name, value.value())).transpose()
}

/// The trees of a chain's layers, and the blobs that these name.
fn layers_of(
    chains: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    number: u64,
    top: StoredChain,
) -> Result<(ChainSource, Vec<Digest>), Error> {
    let (mut layers, mut blobs) = (Vec::new(), Vec::new());
    let mut at = top;
    // A set that was checked has chains with ends.
    loop {
        blobs.extend(at.foreign);
        blobs.push(at.layer.blob.clone());
        layers.push(at.layer);
        let Some(parent) = at.parent else { break };
        let below = chains.get((parent.as_ref(), number)).during("read a chain")?;
        let missing = || Error::Record {
            what: format!("chain {parent} of image set {:?}", at.set),
            problem: "it is not there".to_owned(),
        };
        at = decode(parent.as_ref(), below.ok_or_else(missing)?.value())?;
    }
    layers.reverse();
    blobs.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
    blobs.dedup();
    Ok((ChainSource::Layers(layers), blobs))
}

pub(super) fn encode(what: &str, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value)
        .map_err(|error| Error::Record { what: what.to_owned(), problem: error.to_string() })
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Record { what: what.to_owned(), problem: error.to_string() })
}

#[cfg(test)]
mod tests;
