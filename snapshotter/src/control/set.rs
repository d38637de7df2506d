//! What a set is made of: blobs, chains of layers in them, and images, which are chains with a merged bootstrap.
//!
//! | part | named by | names |
//! |---|---|---|
//! | blob | its digest | – |
//! | chain | its chain id, as containerd has it in `containerd.io/snapshot.ref` | the chain below its top layer, the top layer's blob, other blobs |
//! | image | the chain of all its layers | that chain, blobs |

use std::collections::{HashMap, HashSet};

use fuse_daemon::control::BackendSpec;
use registry::digest::{Digest, DigestAlgorithm, sha256};
use serde::{Deserialize, Serialize};

/// Bytes of a set's name at most: those of a long reference.
const NAME_BYTES: usize = 512;
/// Who may have a set's blobs, at most: each is registered for each blob of an image.
const BACKENDS: usize = 16;
/// Blobs, chains and images of a set at most: those of some 10,000 images.
const ENTRIES: usize = 300_000;
/// Layers of a chain at most. Runtimes allow 127.
const LAYERS: usize = 256;
/// Blobs that a layer or an image may name: RAFS v6 allows an image 254, and one without chunks is not counted there.
pub(super) const BLOBS: usize = 512;
/// Bytes of a bootstrap at most, stored or not: that of tens of millions of files.
const BOOTSTRAP_BYTES: u64 = 4 << 30;

/// Images that are run as RAFS.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSet {
    /// What it is called: 1 to 512 bytes without control characters. A set that is put takes the place of one of its name.
    pub name: String,
    /// Who has its blobs, bootstraps included: 1 to 16, which are asked in this order.
    pub backends: Vec<BackendSpec>,
    /// The blobs that chains and images name.
    pub blobs: Vec<SetBlob>,
    /// The chains: of every image its lowest layer, its two lowest, and so on.
    pub chains: Vec<SetChain>,
    /// The chains that are an image's.
    pub images: Vec<SetImage>,
}

/// A blob.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SetBlob {
    /// Its digest.
    pub blob: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its table of contents with the tar header of that, which ends it.
    pub toc: Digest,
}

/// A chain of layers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SetChain {
    /// Its chain id.
    pub chain: Digest,
    /// The chain below its top layer; none for a lowest layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// SHA-256 of its top layer's tar.
    pub diff_id: Digest,
    /// The top layer's blob.
    pub blob: Digest,
    /// Where in that blob the top layer's own tree is.
    pub tree: TreePlace,
    /// Other blobs that its files have chunks in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<Digest>,
}

/// Where a layer's own tree is in its blob: a bootstrap, zstd.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TreePlace {
    /// Where its stored bytes begin.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
    /// SHA-256 of the bootstrap.
    pub digest: Digest,
    /// Size in bytes of the bootstrap.
    pub uncompressed_size: u64,
}

/// An image: a whole chain, and what was made of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SetImage {
    /// Its chain.
    pub chain: Digest,
    /// Its merged bootstrap.
    pub bootstrap: MergedBootstrap,
    /// The blobs that this names.
    pub blobs: Vec<Digest>,
}

/// A merged bootstrap, as the layer of a nydus image: a gzip tar with `image/image.boot`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MergedBootstrap {
    /// Digest of the gzip tar, which is among the backends' blobs.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of the tar.
    pub diff_id: Digest,
}

/// What is wrong with a set.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("image set {name:?}: {problem}")]
pub struct SetError {
    /// The set's name, or its beginning.
    pub name: String,
    /// What is wrong, and what was expected.
    pub problem: String,
}

/// The chain id of a layer on `parent`, as the OCI image specification defines it.
pub fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => diff_id.clone(),
        Some(parent) => sha256(format!("{parent} {diff_id}").as_bytes()),
    }
}

impl ImageSet {
    /// Whether it is sound: within the limits, each part named once, and whatever is named described.
    ///
    /// # Errors
    ///
    /// [`SetError`], which names the part.
    pub fn check(&self) -> Result<(), SetError> {
        self.problem().map_or(Ok(()), |problem| {
            let name = self.name.chars().filter(|letter| !letter.is_control()).take(NAME_BYTES).collect();
            Err(SetError { name, problem })
        })
    }

    fn problem(&self) -> Option<String> {
        let checks = [Self::check_frame, Self::check_blobs, Self::check_chains, Self::check_images];
        checks.iter().find_map(|check| check(self).err())
    }

    fn check_frame(&self) -> Result<(), String> {
        check_name(&self.name)?;
        check_backends(&self.backends)?;
        let entries = self.blobs.len() + self.chains.len() + self.images.len();
        match entries {
            ..=ENTRIES => Ok(()),
            _ => Err(format!("it has {entries} blobs, chains and images, expected at most {ENTRIES}")),
        }
    }

    fn check_blobs(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for SetBlob { blob, size, toc } in &self.blobs {
            check_digest("blob", blob)?;
            check_digest("the table of contents of a blob", toc)?;
            if !seen.insert(blob) {
                return Err(format!("blob {blob} is described twice"));
            }
            if *size == 0 {
                return Err(format!("blob {blob} is empty"));
            }
        }
        Ok(())
    }

    fn check_chains(&self) -> Result<(), String> {
        let blobs: HashMap<_, _> = self.blobs.iter().map(|blob| (&blob.blob, blob.size)).collect();
        let mut chains = HashMap::new();
        for chain in &self.chains {
            let id = &chain.chain;
            check_digest("chain", id)?;
            check_digest("a layer's diff id", &chain.diff_id)?;
            check_digest("a layer's tree", &chain.tree.digest)?;
            let expected = chain_id(chain.parent.as_ref(), &chain.diff_id);
            if expected != *id {
                return Err(format!(
                    "chain {id} is that of other layers: its parent and diff id give {expected}"
                ));
            }
            if chains.insert(id, chain.parent.as_ref()).is_some() {
                return Err(format!("chain {id} is described twice"));
            }
            let size = blobs.get(&chain.blob);
            let size = *size.ok_or_else(|| missing("chain", id, "blob", &chain.blob))?;
            chain.tree.check(size).map_err(|problem| format!("chain {id}: its tree {problem}"))?;
            check_named("chain", id, &chain.foreign, &blobs)?;
        }
        self.check_depth(&chains)
    }

    /// Whether parents are described, and not too many on each other.
    fn check_depth(&self, chains: &HashMap<&Digest, Option<&Digest>>) -> Result<(), String> {
        let mut depths: HashMap<&Digest, usize> = HashMap::new();
        for chain in &self.chains {
            let (mut above, mut at) = (Vec::new(), Some(&chain.chain));
            let below = loop {
                let Some(id) = at else { break 0 };
                if let Some(depth) = depths.get(id) {
                    break *depth;
                }
                let parent = chains.get(id).ok_or_else(|| missing("chain", &chain.chain, "chain", id))?;
                above.push(id);
                if above.len() > LAYERS {
                    return Err(format!("chain {} has more than {LAYERS} layers", chain.chain));
                }
                at = *parent;
            };
            let depth = below + above.len();
            if depth > LAYERS {
                return Err(format!("chain {} has more than {LAYERS} layers", chain.chain));
            }
            depths.extend(above.into_iter().rev().zip(below + 1..));
        }
        Ok(())
    }

    fn check_images(&self) -> Result<(), String> {
        let blobs: HashMap<_, _> = self.blobs.iter().map(|blob| (&blob.blob, blob.size)).collect();
        let chains: HashSet<_> = self.chains.iter().map(|chain| &chain.chain).collect();
        let mut seen = HashSet::new();
        for SetImage { chain, bootstrap, blobs: named } in &self.images {
            check_bootstrap(&format!("the bootstrap of chain {chain}"), bootstrap)?;
            if !chains.contains(chain) {
                return Err(format!("an image has chain {chain}, which is not described"));
            }
            if !seen.insert(chain) {
                return Err(format!("two images have chain {chain}: expected one for each chain"));
            }
            check_named("the image of chain", chain, named, &blobs)?;
        }
        Ok(())
    }
}

impl TreePlace {
    fn check(&self, blob_size: u64) -> Result<(), String> {
        let end = self.offset.checked_add(self.size);
        if self.size == 0 || end.is_none_or(|end| end > blob_size) {
            let (offset, size) = (self.offset, self.size);
            return Err(format!("has {size} bytes at {offset} of a blob of {blob_size} bytes"));
        }
        match self.uncompressed_size {
            1..=BOOTSTRAP_BYTES => Ok(()),
            size => Err(format!("has {size} bytes uncompressed, expected 1 to {BOOTSTRAP_BYTES}")),
        }
    }
}

pub(super) fn check_name(name: &str) -> Result<(), String> {
    if !(1..=NAME_BYTES).contains(&name.len()) || name.chars().any(char::is_control) {
        return Err(format!("a name has 1 to {NAME_BYTES} bytes, and no control characters"));
    }
    Ok(())
}

pub(super) fn check_backends(backends: &[BackendSpec]) -> Result<(), String> {
    if !(1..=BACKENDS).contains(&backends.len()) {
        return Err(format!("it has {} backends, expected 1 to {BACKENDS}", backends.len()));
    }
    let check =
        |backend: &BackendSpec| backend.check().map_err(|error| format!("backend {backend}: {error}"));
    backends.iter().try_for_each(check)
}

pub(super) fn check_bootstrap(what: &str, bootstrap: &MergedBootstrap) -> Result<(), String> {
    check_digest("a merged bootstrap", &bootstrap.digest)?;
    check_digest("the tar of a merged bootstrap", &bootstrap.diff_id)?;
    match bootstrap.size {
        1..=BOOTSTRAP_BYTES => Ok(()),
        size => Err(format!("{what} has {size} bytes, expected 1 to {BOOTSTRAP_BYTES}")),
    }
}

pub(super) fn check_digest(what: &str, digest: &Digest) -> Result<(), String> {
    if digest.algorithm() == &DigestAlgorithm::Sha256 {
        return Ok(());
    }
    Err(format!("{what} {digest}: expected a SHA-256 digest"))
}

fn check_named(
    what: &str,
    whose: &Digest,
    named: &[Digest],
    blobs: &HashMap<&Digest, u64>,
) -> Result<(), String> {
    if named.len() > BLOBS {
        return Err(format!("{what} {whose} names {} blobs, expected at most {BLOBS}", named.len()));
    }
    let unknown = named.iter().find(|blob| !blobs.contains_key(blob));
    unknown.map_or(Ok(()), |blob| Err(missing(what, whose, "blob", blob)))
}

fn missing(what: &str, user: &Digest, kind: &str, named: &Digest) -> String {
    format!("{what} {user} names {kind} {named}, which is not described")
}

#[cfg(test)]
pub(crate) mod tests;
