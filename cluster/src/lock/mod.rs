//! What the images that are asked for *are*: digests, platforms, sizes.
//!
//! The lock is a file of lines, each a JSON object: the first says what it is, every other one is an image, in the order of their
//! names. So a change of an image is a change of one line, and tools for lines and for JSON both read it.
//!
//! ```text
//! {"images.lock":1,"platforms":["linux/amd64"]}
//! {"image":"docker.io/library/nginx:1.27","digest":"sha256:…","media_type":"…","size":1609,"platforms":[{"platform":"linux/amd64","digest":"sha256:…","size":2295,"bytes":72904210}],"asked_by":["manifests/web.yaml"]}
//! ```
//!
//! | member | is |
//! |---|---|
//! | `images.lock` | the version of this format: 1 |
//! | `platforms` of the first line | those that were locked; empty: all that each image has |
//! | `image` | the name as containerd has it |
//! | `digest`, `media_type`, `size` | of the index, or of the manifest where there is no index |
//! | `platforms` | of each platform's image its manifest's digest and size, and the bytes of its config and layers together |
//! | `nydus` | the same, of nydus images in the index; absent if there are none |
//! | `archive` | the archive of the tree that holds the image; absent for images of registries |
//! | `asked_by` | the files that ask for it |
//!
//! A reader refuses a version that it does not know, and members too.

mod compare;
mod file;
mod resolve;

use registry::{Digest, Reference};

pub use compare::{Change, changes};
pub use file::{LockFileError, VERSION};
pub use resolve::{ResolveError, ResolveOptions, Resolved, locked_source, open, resolve, source};

pub use crate::discover::Archive;

use image::platform::PlatformName;

/// All images of a cluster image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// The platforms that were locked; empty: all that each image has.
    pub platforms: Vec<PlatformName>,
    /// The images, by name.
    pub images: Vec<Locked>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// Its name.
    pub reference: Reference,
    /// The digest of its index, or of its manifest where there is no index.
    pub digest: Digest,
    /// The media type of that.
    pub media_type: String,
    /// The size of that in bytes.
    pub size: u64,
    /// Its images, one a platform. Empty for what is no image to be run.
    pub platforms: Vec<PlatformImage>,
    /// Its nydus images.
    pub nydus: Vec<PlatformImage>,
    /// The archive of the tree that holds it.
    pub archive: Option<Archive>,
    /// The files that ask for it.
    pub asked_by: Vec<String>,
}

/// The image of a platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformImage {
    /// What it is for.
    pub platform: PlatformName,
    /// Its manifest's digest.
    pub digest: Digest,
    /// Its manifest's size in bytes.
    pub size: u64,
    /// The bytes of its config and its layers, as they are stored.
    pub bytes: u64,
}

impl Locked {
    /// Whether this is what archives of several platforms have under one name, `one` of them among these: all of its images are this one's too.
    pub(crate) fn unites(&self, one: &Self) -> bool {
        let all = |image: &Self| image.platforms.iter().chain(&image.nydus).cloned().collect::<Vec<_>>();
        let (ours, theirs) = (all(self), all(one));
        let from_archives = self.archive.is_some() && one.archive.is_some();
        from_archives && !theirs.is_empty() && theirs.iter().all(|image| ours.contains(image))
    }

    /// Its nydus images for platforms of which no plain image is, as `is_rafs` says by their manifests' digests, there as RAFS.
    pub(crate) fn own_nydus(
        &self,
        is_rafs: impl Fn(&Digest) -> bool,
    ) -> impl Iterator<Item = &PlatformImage> {
        self.nydus.iter().filter(move |nydus| {
            let mut plain = self.platforms.iter().filter(|plain| plain.platform == nydus.platform);
            !plain.any(|plain| is_rafs(&plain.digest))
        })
    }
}

impl Lock {
    /// The image of this name.
    pub fn get(&self, reference: &Reference) -> Option<&Locked> {
        self.images.iter().find(|image| image.reference == *reference)
    }
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;
    use crate::discover::ArchiveKind;

    fn image(platforms: &[&str], archive: bool) -> Locked {
        let platform = |name: &&str| PlatformImage {
            platform: name.parse().unwrap(),
            digest: sha256(name.as_bytes()),
            size: 7,
            bytes: 8,
        };
        let kind = ArchiveKind::DockerArchive;
        Locked {
            reference: Reference::parse("team/own:v1").unwrap(),
            digest: sha256(platforms.concat().as_bytes()),
            media_type: "m".to_owned(),
            size: 9,
            platforms: platforms.iter().map(platform).collect(),
            nydus: Vec::new(),
            archive: archive.then(|| Archive { kind, path: "own.tar".to_owned() }),
            asked_by: Vec::new(),
        }
    }

    #[test]
    fn an_image_of_several_archives_is_that_of_each() {
        let both = image(&["linux/amd64", "linux/arm64"], true);
        assert!(both.unites(&image(&["linux/arm64"], true)));
        assert!(!both.unites(&image(&["linux/riscv64"], true)) && !both.unites(&image(&[], true)));
        // Tags of registries are moved.
        assert!(!both.unites(&image(&["linux/arm64"], false)));
        assert!(!image(&["linux/amd64", "linux/arm64"], false).unites(&image(&["linux/arm64"], true)));
    }
}
