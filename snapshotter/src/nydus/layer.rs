//! What a layer is, by its labels.

use std::path::{Path, PathBuf};

use registry::nydus::{
    ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, LABEL_CRI_IMAGE_REF, LABEL_CRI_LAYER_DIGEST, LABEL_SNAPSHOT_REF,
    LABEL_STARGZ_REFERENCE,
};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::state::{Kind, Labels, Record, SnapshotId};

/// Where the image's reference may be: from CRI, from BuildKit, or found out by us.
pub(crate) const IMAGE_REFERENCES: [&str; 3] = [LABEL_CRI_IMAGE_REF, LABEL_STARGZ_REFERENCE, FOUND_REFERENCE];
/// Our own label, of a bootstrap whose image's reference had to be found out.
pub(crate) const FOUND_REFERENCE: &str = "containerd.io/snapshot/nydus-cluster.image-ref";

/// On every extraction from containerd 2.3 on: the chain id of the layers beneath.
const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";
/// On every extraction from containerd 2.3 on: the digest of the layer's unpacked content.
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";

/// What a layer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layer {
    /// Files of its own, or a container's.
    Plain,
    /// Data of a nydus image, fetched when read.
    Blob,
    /// Metadata of a nydus image.
    Bootstrap,
    /// A layer of an image set: what it and all below it hold is fetched when it is read.
    Lazy,
}

impl Layer {
    /// What a layer that is there is.
    pub(crate) fn of_record(record: &Record) -> Self {
        if record.lazy { Self::Lazy } else { Self::of(&record.labels) }
    }

    /// What the layer with these labels is, unless it is one of an image set.
    pub(crate) fn of(labels: &Labels) -> Self {
        let says = |label| labels.get(label).is_some_and(|value| value != "false");
        if says(ANNOTATION_BLOB) {
            Self::Blob
        } else if says(ANNOTATION_BOOTSTRAP) {
            Self::Bootstrap
        } else {
            Self::Plain
        }
    }
}

/// What lies beneath a new snapshot, as far as it can be seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beneath {
    /// Snapshots with files of their own, nearest first.
    pub(crate) plain: Vec<SnapshotId>,
    /// The bootstrap, or the layer of an image set, beneath them, which hides everything further down, since it shows that too.
    pub(crate) image: Option<(String, Record)>,
    /// Chain ids of all of these, as far as they were unpacked from an image.
    pub(crate) chain_ids: Vec<String>,
}

impl Beneath {
    /// Sorts out the parents of snapshot `key`, nearest first.
    pub(crate) fn of(key: &str, parents: Vec<(String, Record)>) -> Result<Self, Error> {
        let mut beneath = Self::default();
        for (parent, record) in parents {
            beneath.chain_ids.extend(record.labels.get(LABEL_SNAPSHOT_REF).cloned());
            match Layer::of_record(&record) {
                Layer::Plain => beneath.plain.push(record.id),
                Layer::Bootstrap | Layer::Lazy => {
                    beneath.image = Some((parent, record));
                    break;
                }
                Layer::Blob => return Err(Error::NoBootstrap { key: key.to_owned() }),
            }
        }
        Ok(beneath)
    }
}

/// Whether a layer is unpacked apart from its parents, at the same time as they, and put on them when it is committed. It
/// has to look like an overlay already: containerd turns its whiteouts into those of overlayfs for overlays alone.
pub(crate) fn is_unpacked_apart(record: &Record) -> bool {
    record.kind == Kind::Active
        && record.parent.is_none()
        && record.labels.contains_key(PARENT_CHAIN_ID)
        && Layer::of(&record.labels) == Layer::Plain
}

/// The bootstrap in the directory of an unpacked bootstrap layer.
pub(crate) fn bootstrap_in(upper: &Path) -> PathBuf {
    upper.join("image/image.boot")
}

/// The image's reference among a bootstrap's labels.
pub(crate) fn reference_of(labels: &Labels) -> Option<&str> {
    IMAGE_REFERENCES.iter().find_map(|label| labels.get(*label)).map(String::as_str)
}

/// The blob's digest, as far as the labels of a blob layer tell. CRI says it; a blob's diff id is its digest, and so is the
/// chain id of the lowest layer.
pub(crate) fn blob_of(record: &Record) -> Option<&str> {
    let label = |name| record.labels.get(name);
    let lowest = record.parent.is_none() && label(PARENT_CHAIN_ID).is_none();
    let chain_id = || if lowest { label(LABEL_SNAPSHOT_REF) } else { None };
    label(LABEL_CRI_LAYER_DIGEST).or_else(|| label(DIFF_ID)).or_else(chain_id).map(String::as_str)
}

/// Which of `blobs` a blob layer on `parent` is: the one whose diff id gives the layer's chain id.
pub(crate) fn blob_among<'b>(record: &Record, parent: &Record, blobs: &'b [String]) -> Option<&'b str> {
    let (chain, below) = (record.labels.get(LABEL_SNAPSHOT_REF)?, parent.labels.get(LABEL_SNAPSHOT_REF)?);
    let gives = |blob: &&String| {
        let digest = Sha256::digest(format!("{below} {blob}"));
        chain.strip_prefix("sha256:") == Some(hex::encode(digest).as_str())
    };
    blobs.iter().find(gives).map(String::as_str)
}
