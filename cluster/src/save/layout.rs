//! A directory in the storage layout of CNCF distribution, which its `registry`, sealer's, sealos' and our own serve:
//!
//! ```text
//! docker/registry/v2/blobs/sha256/HE/HEX/data
//! docker/registry/v2/repositories/NAME/_layers/sha256/HEX/link
//! docker/registry/v2/repositories/NAME/_manifests/revisions/sha256/HEX/link
//! docker/registry/v2/repositories/NAME/_manifests/tags/TAG/{current,index/sha256/HEX}/link
//! .nydus-cluster-save/                                     blobs on their way, and converted layers
//! ```
//!
//! Repositories have no host in their names, as nodes ask mirrors. Two images of different hosts that would have the same name
//! and mean different things are a conflict. The repository `nydus-cluster/images` names all that was saved.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use image::destination::BlobFolder;
use image::source::Source;
use registry::client::Descriptor;
use registry::media_types::OCI_INDEX;
use registry::{Digest, digest};
use serde_json::json;
use thiserror::Error;

use super::plan::Plan;
use super::set::{Set, nydus_entry};
use super::{SaveError, Saved};
use crate::lock::{Lock, Locked};
use crate::saved::{DIRECTORY_REPOSITORY, DIRECTORY_TAG, REPOSITORIES};

/// Where blobs are written before they are complete.
const PARTIAL: &str = ".nydus-cluster-save";

/// Why images cannot be written to a directory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The system refuses.
    #[error("cannot write {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Somebody else is writing.
    #[error("{} is being written by another save", .0.display())]
    Busy(PathBuf),
    /// Two images would have the same name.
    #[error("{one} and {other} are different images, and both would be called {name}")]
    Conflict {
        /// One of them.
        one: String,
        /// The other one.
        other: String,
        /// The name without host.
        name: String,
    },
    /// It can only be named by SHA-256.
    #[error("{0}: expected a digest by sha256")]
    Algorithm(Digest),
    /// The thread that writes is gone.
    #[error("writing ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// The directory, ours alone while this lives.
pub(crate) struct RegistryFolder {
    root: PathBuf,
    blobs: Arc<BlobFolder>,
    /// Locked, until it is closed.
    _lock: File,
}

impl RegistryFolder {
    /// Opens or makes the directory `root`, for the images of `lock`.
    pub(crate) fn open(root: &Path, lock: &Lock) -> Result<Self, LayoutError> {
        no_conflict(lock)?;
        let partial = root.join(PARTIAL);
        let failed = |error| LayoutError::Io { path: partial.clone(), error };
        fs::create_dir_all(&partial).map_err(failed)?;
        let file = File::open(&partial).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(LayoutError::Busy(root.to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        // What an interrupted save left. Blobs that were complete have their names.
        for entry in fs::read_dir(&partial).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // Converted layers are of use to this one.
            if entry.file_type().map_err(failed)?.is_file() {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        let blobs = Arc::new(BlobFolder::new(root, &partial));
        Ok(Self { root: root.to_owned(), blobs, _lock: file })
    }

    /// Its blobs.
    pub(crate) fn blobs(&self) -> &Arc<BlobFolder> {
        &self.blobs
    }

    /// Where converted layers stay until it is known what they share.
    pub(crate) fn spool(&self) -> PathBuf {
        self.root.join(PARTIAL).join("layers")
    }

    /// Has the blob here; returns the bytes that were fetched.
    pub(crate) async fn bring(&self, source: &Source, blob: &Descriptor) -> Result<u64, SaveError> {
        let digest = blob.digest();
        self.data(digest)?;
        if self.blobs.size(digest) == Some(blob.size()) {
            return Ok(0);
        }
        // Ends with an error if the content does not have the digest.
        let mut stream = source.blob(blob).await?;
        let mut file = self.blobs.begin_as(digest.digest()).await?;
        while let Some(piece) = stream.next().await? {
            file.write(&piece).await?;
        }
        Ok(file.finish(digest).await?)
    }

    /// Makes the image, all of whose blobs are here, known under its name.
    pub(crate) async fn name(&self, locked: &Locked, plan: &Plan) -> Result<(), LayoutError> {
        let mut names = self.repository(locked.reference.repository().name());
        for document in plan.plain.iter().chain(&plan.indexes) {
            names.document(self.data(document.descriptor.digest())?, &document.content);
        }
        plan.blobs.iter().for_each(|blob| names.layer(blob.digest()));
        for document in plan.plain.iter().chain(&plan.indexes) {
            names.revision(document.descriptor.digest());
        }
        if let (Some(tag), Some(root)) = (locked.reference.tag(), plan.root()) {
            names.tag(tag, root.descriptor.digest());
        }
        names.write().await
    }

    /// Makes the nydus images of an image, all of whose parts are here, known under its name, by an index of their own.
    pub(crate) async fn name_nydus(&self, image: &Saved) -> Result<(), LayoutError> {
        let reference = &image.locked.reference;
        let mut names = self.repository(reference.repository().name());
        let manifests: Vec<_> = image.nydus.iter().map(|nydus| nydus_entry(image, nydus)).collect();
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        let index = Bytes::from(index.to_string());
        let digest = digest::sha256(&index);
        names.document(self.data(&digest)?, &index);
        for nydus in &image.nydus {
            nydus.parts().iter().for_each(|blob| names.layer(blob));
            names.revision(&nydus.manifest);
        }
        names.revision(&digest);
        if let Some(tag) = reference.tag() {
            names.tag(tag, &digest);
        }
        names.write().await
    }

    /// Names all that was saved.
    pub(crate) async fn name_set(&self, set: &Set) -> Result<(), LayoutError> {
        let mut names = self.repository(DIRECTORY_REPOSITORY);
        let digest = digest::sha256(&set.index);
        names.document(self.data(&digest)?, &set.index);
        set.blobs.iter().for_each(|blob| names.layer(blob));
        set.manifests.iter().for_each(|manifest| names.revision(manifest));
        names.revision(&digest);
        names.tag(DIRECTORY_TAG, &digest);
        names.write().await
    }

    fn repository(&self, name: &str) -> Names {
        Names { repository: self.root.join(REPOSITORIES).join(name), files: Vec::new() }
    }

    fn data(&self, digest: &Digest) -> Result<PathBuf, LayoutError> {
        self.blobs.path(digest).ok_or_else(|| LayoutError::Algorithm(digest.clone()))
    }
}

/// Whether somebody writes to the directory `root` now.
pub(crate) fn is_busy(root: &Path) -> bool {
    let locked = |file: File| matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock));
    File::open(root.join(PARTIAL)).is_ok_and(locked)
}

/// The files that make documents and blobs known in a repository, in the order in which they are written.
struct Names {
    repository: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Names {
    fn document(&mut self, path: PathBuf, content: &[u8]) {
        self.files.push((path, content.to_vec()));
    }

    fn link(&mut self, folder: &str, digest: &Digest) {
        let path = self.repository.join(folder).join("sha256").join(digest.digest()).join("link");
        self.files.push((path, digest.to_string().into_bytes()));
    }

    fn layer(&mut self, digest: &Digest) {
        self.link("_layers", digest);
    }

    fn revision(&mut self, digest: &Digest) {
        self.link("_manifests/revisions", digest);
    }

    /// Last: from here on it can be pulled.
    fn tag(&mut self, tag: &str, digest: &Digest) {
        self.link(&format!("_manifests/tags/{tag}/index"), digest);
        let current = self.repository.join(format!("_manifests/tags/{tag}/current/link"));
        self.files.push((current, digest.to_string().into_bytes()));
    }

    async fn write(self) -> Result<(), LayoutError> {
        let files = self.files;
        tokio::task::spawn_blocking(move || files.iter().try_for_each(|(path, content)| write(path, content)))
            .await?
    }
}

/// Without host, two names may be one.
pub(crate) fn no_conflict(lock: &Lock) -> Result<(), LayoutError> {
    let mut names: HashMap<String, &Locked> = HashMap::new();
    for image in &lock.images {
        let Some(tag) = image.reference.tag() else { continue };
        let name = format!("{}:{tag}", image.reference.repository().name());
        if let Some(other) = names.get(&name)
            && other.digest != image.digest
        {
            let (one, other) = (other.reference.to_string(), image.reference.to_string());
            return Err(LayoutError::Conflict { one, other, name });
        }
        names.insert(name, image);
    }
    Ok(())
}

/// Writes a small file, whole or not at all; not if it says the same already.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), LayoutError> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let failed = |error| LayoutError::Io { path: path.to_owned(), error };
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(failed)?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder).map_err(failed)?;
    fs::write(file.path(), content).map_err(failed)?;
    file.as_file().sync_data().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
