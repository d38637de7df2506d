//! What a layer is, by its labels.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::state::{Labels, Record, SnapshotId};

/// Chain id of the layer that containerd is about to unpack into a snapshot.
pub(crate) const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// Annotation of a layer that is a nydus data blob.
const NYDUS_BLOB: &str = "containerd.io/snapshot/nydus-blob";
/// Annotation of the layer with the bootstrap.
const NYDUS_BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
/// Digest of the layer, from CRI.
const CRI_LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// Where the image's reference may be: from CRI, from BuildKit.
pub(crate) const IMAGE_REFERENCES: [&str; 2] =
    ["containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/remote/stargz.reference"];

/// What a layer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layer {
    /// Files of its own, or a container's.
    Plain,
    /// Data of a nydus image, fetched when read.
    Blob,
    /// Metadata of a nydus image.
    Bootstrap,
}

impl Layer {
    /// What the layer with these labels is.
    pub(crate) fn of(labels: &Labels) -> Self {
        let says = |label| labels.get(label).is_some_and(|value| value != "false");
        if says(NYDUS_BLOB) {
            Self::Blob
        } else if says(NYDUS_BOOTSTRAP) {
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
    /// The bootstrap beneath them, which hides everything further down, since it describes that too.
    pub(crate) image: Option<(String, Record)>,
}

impl Beneath {
    /// Sorts out the parents of snapshot `key`, nearest first.
    pub(crate) fn of(key: &str, parents: Vec<(String, Record)>) -> Result<Self, Error> {
        let mut beneath = Self::default();
        for (parent, record) in parents {
            match Layer::of(&record.labels) {
                Layer::Plain => beneath.plain.push(record.id),
                Layer::Bootstrap => {
                    beneath.image = Some((parent, record));
                    break;
                }
                Layer::Blob => return Err(Error::NoBootstrap { key: key.to_owned() }),
            }
        }
        Ok(beneath)
    }
}

/// The bootstrap in the directory of an unpacked bootstrap layer.
pub(crate) fn bootstrap_in(upper: &Path) -> PathBuf {
    upper.join("image/image.boot")
}

/// The image's reference among a bootstrap's labels.
pub(crate) fn reference_of(labels: &Labels) -> Option<&str> {
    IMAGE_REFERENCES.iter().find_map(|label| labels.get(*label)).map(String::as_str)
}

/// The blob's digest, as far as the labels of a blob layer tell: CRI says it; without CRI the chain id of the lowest
/// layer is its diff id, and a blob's diff id is its digest.
pub(crate) fn blob_of(record: &Record) -> Option<&str> {
    let lowest = || if record.parent.is_none() { record.labels.get(SNAPSHOT_REF) } else { None };
    record.labels.get(CRI_LAYER_DIGEST).or_else(lowest).map(String::as_str)
}
