//! Where CNCF distribution keeps what, below the root:
//!
//! ```text
//! docker/registry/v2/
//!   blobs/ALGORITHM/HE/HEX/data                      content, manifests included
//!   repositories/NAME/
//!     _layers/ALGORITHM/HEX/link                     the repository has this blob
//!     _manifests/revisions/ALGORITHM/HEX/link        … this manifest
//!     _manifests/tags/TAG/current/link               what the tag names
//!     _manifests/tags/TAG/index/ALGORITHM/HEX/link   … and has ever named
//!     _uploads/UUID/{data,startedat}                 an upload on its way
//! ```
//!
//! A link holds the digest of the content it stands for.

use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// What all names below a root begin with.
const BASE: &str = "docker/registry/v2";

/// File names below a root.
#[derive(Clone, Debug)]
pub struct Paths {
    base: PathBuf,
}

impl Paths {
    /// The names below `root`.
    pub fn new(root: &Path) -> Self {
        Self { base: root.join(BASE) }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        self.base.ancestors().nth(BASE.split('/').count()).unwrap_or(&self.base)
    }

    /// The folder of all repositories.
    pub fn repositories(&self) -> PathBuf {
        self.base.join("repositories")
    }

    /// A repository's folder.
    pub fn repository(&self, name: &str) -> PathBuf {
        self.repositories().join(name)
    }

    /// Content.
    pub fn data(&self, digest: &Digest) -> PathBuf {
        let hex = digest.digest();
        // A digest has far more than two digits: its form was checked when it was parsed.
        let shelf = hex.get(..2).unwrap_or(hex);
        self.base.join("blobs").join(digest.algorithm().as_ref()).join(shelf).join(hex).join("data")
    }

    /// The link that says that the repository has a blob.
    pub fn layer(&self, name: &str, digest: &Digest) -> PathBuf {
        link(self.repository(name).join("_layers"), digest)
    }

    /// The folder of a repository's manifests.
    pub fn revisions(&self, name: &str) -> PathBuf {
        self.repository(name).join("_manifests/revisions")
    }

    /// The link that says that the repository has a manifest.
    pub fn revision(&self, name: &str, digest: &Digest) -> PathBuf {
        link(self.revisions(name), digest)
    }

    /// The folder of a repository's tags.
    pub fn tags(&self, name: &str) -> PathBuf {
        self.repository(name).join("_manifests/tags")
    }

    /// A tag's folder.
    pub fn tag(&self, name: &str, tag: &str) -> PathBuf {
        self.tags(name).join(tag)
    }

    /// The link to what a tag names.
    pub fn tag_current(&self, name: &str, tag: &str) -> PathBuf {
        self.tag(name, tag).join("current/link")
    }

    /// The link to what a tag names or has named.
    pub fn tag_index(&self, name: &str, tag: &str, digest: &Digest) -> PathBuf {
        link(self.tag(name, tag).join("index"), digest)
    }

    /// The folder of an upload on its way.
    pub fn upload(&self, name: &str, id: &str) -> PathBuf {
        self.repository(name).join("_uploads").join(id)
    }
}

fn link(folder: PathBuf, digest: &Digest) -> PathBuf {
    folder.join(digest.algorithm().as_ref()).join(digest.digest()).join("link")
}
