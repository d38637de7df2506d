//! What an image is made of that the node itself runs from, and what makes it a sound one.

use fuse_daemon::control::BackendSpec;
use registry::digest::Digest;
use serde::{Deserialize, Serialize};

use super::MergedBootstrap;
use super::set::{BLOBS, check_backends, check_bootstrap, check_digest, check_name};

/// An image that is mounted for the node itself and no container: it stays mounted until it is said otherwise.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeImage {
    /// What it is called: 1 to 512 bytes without control characters. One that is mounted takes the place of one of its name.
    pub name: String,
    /// Who has its blobs, bootstrap included: 1 to 16, which are asked in this order.
    pub backends: Vec<BackendSpec>,
    /// What shows it.
    pub bootstrap: MergedBootstrap,
    /// The blobs that this names.
    pub blobs: Vec<Digest>,
}

/// What is wrong with a node image.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("node image {name:?}: {problem}")]
pub struct NodeImageError {
    /// The image's name, or its beginning.
    pub name: String,
    /// What is wrong, and what was expected.
    pub problem: String,
}

impl NodeImage {
    /// Whether it is sound: within the limits, and all that is named by SHA-256.
    ///
    /// # Errors
    ///
    /// [`NodeImageError`].
    pub fn check(&self) -> Result<(), NodeImageError> {
        self.check_parts().map_err(|problem| {
            let name = self.name.chars().filter(|letter| !letter.is_control()).take(64).collect();
            NodeImageError { name, problem }
        })
    }

    fn check_parts(&self) -> Result<(), String> {
        check_name(&self.name)?;
        check_backends(&self.backends)?;
        check_bootstrap("its bootstrap", &self.bootstrap)?;
        if self.blobs.len() > BLOBS {
            return Err(format!("it names {} blobs, expected at most {BLOBS}", self.blobs.len()));
        }
        self.blobs.iter().try_for_each(|blob| check_digest("blob", blob))
    }

    /// Whether both show the same: who has the blobs makes no difference.
    pub(crate) fn shows_as(&self, other: &Self) -> bool {
        self.bootstrap == other.bootstrap && self.blobs == other.blobs
    }
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    #[test]
    fn what_is_beyond_the_limits_is_named() {
        let sound = NodeImage {
            name: "cluster".to_owned(),
            backends: vec![BackendSpec::Directory { path: "/blobs".into() }],
            bootstrap: MergedBootstrap { digest: sha256(b"gzip"), size: 7, diff_id: sha256(b"tar") },
            blobs: vec![sha256(b"blob")],
        };
        assert_eq!(sound.check(), Ok(()));
        let problem = |change: &dyn Fn(&mut NodeImage)| {
            let mut image = sound.clone();
            change(&mut image);
            image.check().unwrap_err().problem
        };
        let of_sha512: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert!(problem(&|image| image.name.clear()).contains("1 to 512 bytes"));
        assert!(problem(&|image| image.backends.clear()).contains("0 backends"));
        assert!(problem(&|image| image.bootstrap.size = 0).contains("0 bytes"));
        assert!(problem(&|image| image.blobs.push(of_sha512.clone())).contains("SHA-256"));
        assert!(problem(&|image| image.blobs = vec![sha256(b""); BLOBS + 1]).contains("513 blobs"));
    }
}
