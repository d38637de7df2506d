//! A cluster image with all container images that it needs, in one file or a directory: needs no network from then on.
//!
//! ```text
//! package.json                   what this is: the cluster image, the digests of the lock and of what names the images as RAFS
//! images.lock                    what its container images are
//! registry/docker/registry/v2    all content, in the storage layout of CNCF distribution
//! ```
//!
//! The file is a tar of that, uncompressed, since blobs are. Small files come first, blobs after them, both in the order of their
//! names: the same content makes the same bytes, and whoever opens it reads one run at its beginning and a header for each blob.
//! Each blob lies in one piece, so a blob is a range of the file.
//!
//! What sealer and sealos leave in `registry/` is read as well; of such nothing says which cluster image it belongs to.

mod about;
mod cluster_image;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use image::source::{PACKAGE_FILE, SourceError, StoredImages};
use registry::Digest;
use registry::layout::{LayoutError, Part};
use thiserror::Error;

use crate::lock::{Lock, LockFileError, Locked};
use crate::saved::SavedAt;

pub use about::{About, ClusterImage, LockFile, VERSION};
pub use cluster_image::cluster_image;
pub use write::{Contents, NotPackaged, PackageTarget, write};

/// The lock in a package, and in a cluster image.
pub const LOCK_FILE: &str = "images.lock";

/// What a root file system says of itself in sealer's words ([`crate::describe`]).
pub const METADATA_FILE: &str = "Metadata";

/// The tar of a layer that has the lock, and sealer's `Metadata` if there is some, as its only files. The same content gives the same bytes.
///
/// # Errors
///
/// When it is larger than memory holds.
pub fn lock_layer(lock: &Lock, metadata: Option<&str>) -> std::io::Result<bytes::Bytes> {
    let lock = lock.to_string();
    let files = [(LOCK_FILE, Some(lock.as_str())), (METADATA_FILE, metadata)];
    files_layer(files.into_iter().filter_map(|(name, content)| Some((Path::new(name), content?.as_bytes()))))
}

/// The tar of a layer that has these files. The same content gives the same bytes.
///
/// # Errors
///
/// When it is larger than memory holds, or one of the paths too long for a tar.
pub(crate) fn files_layer<'a>(
    files: impl IntoIterator<Item = (&'a Path, &'a [u8])>,
) -> std::io::Result<bytes::Bytes> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)?;
    }
    Ok(tar.into_inner()?.into())
}

/// Why a package cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PackageError {
    /// What is in it cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its content cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Its `package.json` is something else.
    #[error("{PACKAGE_FILE} of {}: {error}", path.display())]
    About {
        /// The package.
        path: PathBuf,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// It is of another version.
    #[error("{} is a package of version {version}: expected {VERSION}", path.display())]
    Version {
        /// The package.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Its lock cannot be read.
    #[error(transparent)]
    Lock(#[from] LockFileError),
    /// Its lock is not the one that `package.json` names.
    #[error("{LOCK_FILE} of {} is not the one that {PACKAGE_FILE} names: it was changed or damaged", .0.display())]
    OtherLock(PathBuf),
    /// The system refuses.
    #[error("cannot {doing} {}: {error}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// Something else is where the package is to be.
    #[error("{} is there and is no package: it is left as it is", .0.display())]
    Occupied(PathBuf),
    /// Somebody else is writing.
    #[error("{} is being written by another save", .0.display())]
    Busy(PathBuf),
}

/// A package that is open.
#[derive(Clone, Debug)]
pub struct Package {
    path: PathBuf,
    images: StoredImages,
    about: Option<About>,
    lock: Option<Lock>,
}

impl Package {
    /// Opens the file or directory `path`; a tar that is compressed is decompressed to an unnamed file in `spool` first. Blocks
    /// on the disk.
    ///
    /// # Errors
    ///
    /// When it is no package, and no registry's content either.
    pub fn open(path: &Path, spool: &Path) -> Result<Self, PackageError> {
        let images = StoredImages::open(path, spool)?;
        let about = images.file(PACKAGE_FILE)?.map(|content| About::parse(path, &content)).transpose()?;
        let lock = match about.as_ref().and_then(|about| about.lock.as_ref()) {
            None => None,
            Some(named) => Some(lock(path, &images, named)?),
        };
        Ok(Self { path: path.to_owned(), images, about, lock })
    }

    /// Whether the directory `path` is a package, not a cluster image's root file system.
    pub fn is_directory(path: &Path) -> bool {
        std::fs::read(path.join(PACKAGE_FILE)).is_ok_and(|content| About::parse(path, &content).is_ok())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All that is stored in it: documents by repository and digest, and names.
    pub fn images(&self) -> &StoredImages {
        &self.images
    }

    /// What it says of itself; `None` if it is another system's.
    pub fn about(&self) -> Option<&About> {
        self.about.as_ref()
    }

    /// What its container images are; `None` if it is another system's.
    pub fn lock(&self) -> Option<&Lock> {
        self.lock.as_ref()
    }

    /// Where its container images are as RAFS, if they are in it.
    pub fn saved(&self) -> Option<SavedAt> {
        let digest = self.about.as_ref()?.images.clone()?;
        Some(SavedAt::Package { path: self.path.clone(), digest })
    }

    /// Whether an image of its lock is in it as it is.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn has_as_it_is(&self, image: &Locked) -> Result<bool, PackageError> {
        let name = image.reference.repository().name();
        Ok(self.images.layout().has_manifest(name, &image.digest)?)
    }

    /// Where in which file the content with this digest lies. Its bytes are not verified.
    ///
    /// # Errors
    ///
    /// When the disk fails.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Part>, LayoutError> {
        self.images.layout().data(digest)
    }
}

fn lock(path: &Path, images: &StoredImages, named: &LockFile) -> Result<Lock, PackageError> {
    let other = || PackageError::OtherLock(path.to_owned());
    let content = images.file(LOCK_FILE)?.ok_or_else(other)?;
    if registry::digest::sha256(&content) != named.digest {
        return Err(other());
    }
    let text = String::from_utf8(content).map_err(|_| other())?;
    Ok(Lock::parse(&path.join(LOCK_FILE), &text)?)
}
