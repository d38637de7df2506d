//! Whose conventions a tree follows.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::tree::Tree;

/// A system whose users' trees are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// sealer: `manifests/imageList`, `application/apps`, `Metadata`.
    Sealer,
    /// sealos: `images/shim`, `images/skopeo`.
    Sealos,
    /// What only one of the two has, of each.
    Both,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sealer => "sealer",
            Self::Sealos => "sealos",
            Self::Both => "sealer and sealos",
        })
    }
}

const SEALER: &[&str] =
    &["Metadata", "application", "imageList", "manifests/imageList", "plugins", "cri", "statics"];
const SEALOS: &[&str] = &["images/shim", "images/skopeo", "opt", "init.sh", "Sealfile"];

impl Layout {
    /// What the tree shows; `None` if it has nothing that only one of them has.
    pub(crate) fn detect(tree: &Tree) -> Option<Self> {
        let has = |names: &[&str]| names.iter().any(|name| tree.exists(Path::new(name)));
        match (has(SEALER), has(SEALOS)) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::Sealer),
            (false, true) => Some(Self::Sealos),
            (false, false) => None,
        }
    }
}
