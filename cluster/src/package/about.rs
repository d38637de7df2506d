//! `package.json`: what a package holds.

use std::path::Path;

use registry::Digest;
use serde::{Deserialize, Serialize};

use super::PackageError;

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// The program that packages name as theirs.
const CREATED_BY: &str = concat!("nydus-cluster ", env!("CARGO_PKG_VERSION"));

/// What a package holds.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct About {
    /// The version of the package's form.
    #[serde(rename = "nydus-cluster.package")]
    pub version: u32,
    /// The program that made it.
    pub created_by: String,
    /// The cluster image, if it is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ClusterImage>,
    /// The file `images.lock`, which says what its container images are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockFile>,
    /// The digest of what names the container images as RAFS (the repository `nydus-cluster/images`), if they are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Digest>,
}

/// The cluster image of a package.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct ClusterImage {
    /// Its name, where it was.
    pub reference: String,
    /// Its repository in the package.
    pub repository: String,
    /// Its tag there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The digest of its index, or of its manifest where there is no index.
    pub digest: Digest,
    /// The platforms that are in the package.
    pub platforms: Vec<String>,
}

/// A file of the package.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct LockFile {
    /// The digest of its content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

impl About {
    /// What is said of a package of this version with `image`, `lock`, and the saved images with the digest `images`.
    pub(super) fn new(image: Option<ClusterImage>, lock: &str, images: Option<Digest>) -> Self {
        let digest = registry::digest::sha256(lock.as_bytes());
        let lock = Some(LockFile { digest, size: lock.len() as u64 });
        Self { version: VERSION, created_by: CREATED_BY.to_owned(), image, lock, images }
    }

    /// Reads the file's content; `path` is the package.
    pub(super) fn parse(path: &Path, content: &[u8]) -> Result<Self, PackageError> {
        let wrong = |error| PackageError::About { path: path.to_owned(), error };
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "nydus-cluster.package")]
            version: u32,
        }
        // Another version may have other members.
        let version = serde_json::from_slice::<Head>(content).map_err(wrong)?.version;
        if version != VERSION {
            return Err(PackageError::Version { path: path.to_owned(), version });
        }
        serde_json::from_slice(content).map_err(wrong)
    }

    /// The file's content.
    pub(super) fn text(&self) -> String {
        // Strings and numbers: that cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}
