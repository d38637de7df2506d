//! Where saved images are, and what names all of them there.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use image::location::{InFile, Location};
use registry::client::Client;
use registry::{Digest, Reference};

use super::{BlobStore, DIRECTORY_REPOSITORY, DIRECTORY_TAG, REPOSITORIES, SavedError};

/// Where saved images are.
#[derive(Clone, Debug)]
pub enum SavedAt {
    /// In a repository, under the tag of this reference.
    Repository(Reference),
    /// In a directory that a registry can serve.
    Directory(PathBuf),
    /// In a package, a file or a directory.
    Package {
        /// The package.
        path: PathBuf,
        /// The digest of what names all of them.
        digest: Digest,
    },
}

impl std::fmt::Display for SavedAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Repository(reference) => write!(f, "{reference}"),
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Package { path, digest } => write!(f, "{digest} in {}", path.display()),
        }
    }
}

impl SavedAt {
    /// The index that names the images.
    pub(super) async fn root(&self, store: &BlobStore, client: &Client) -> Result<Option<Bytes>, SavedError> {
        let path = match self {
            Self::Repository(reference) => {
                return match client.manifest(reference).await {
                    Ok((_, content)) => Ok(Some(content)),
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error.into()),
                };
            }
            Self::Package { .. } => {
                let BlobStore::Package(source) = store else { return Ok(None) };
                return Ok(Some(source.root().await?.content));
            }
            Self::Directory(path) => path,
        };
        let tags = path.join(REPOSITORIES).join(DIRECTORY_REPOSITORY).join("_manifests/tags");
        let path = tags.join(DIRECTORY_TAG).join("current/link");
        let link = match std::fs::read_to_string(&path) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SavedError::Io { path, error }),
        };
        let reason = || format!("{} holds no digest", path.display());
        let other = |_| SavedError::Other { place: self.to_string(), reason: reason() };
        let digest: Digest = link.trim().parse().map_err(other)?;
        let BlobStore::Folder(folder) = store else { return Ok(None) };
        let size =
            folder.size(&digest).ok_or(SavedError::Unknown { what: "index", digest: digest.clone() })?;
        Ok(Some(store.read(&digest, size).await?))
    }
}

/// The saved images with this digest among all that is stored at a path.
pub(super) fn within(path: &Path, digest: &Digest) -> Location {
    let image = format!("{DIRECTORY_REPOSITORY}@{digest}");
    Location::Package(InFile { path: path.to_owned(), image: Some(image) })
}
