//! A directory in the storage layout of CNCF distribution, which its `registry`, sealer's, sealos' and our own serve:
//!
//! ```text
//! docker/registry/v2/blobs/sha256/HE/HEX/data
//! docker/registry/v2/repositories/NAME/_layers/sha256/HEX/link
//! docker/registry/v2/repositories/NAME/_manifests/revisions/sha256/HEX/link
//! docker/registry/v2/repositories/NAME/_manifests/tags/TAG/{current,index/sha256/HEX}/link
//! .nydus-cluster-save/                                     blobs on their way
//! ```
//!
//! Repositories have no host in their names, as nodes ask mirrors. Two images of different hosts that would have the same name
//! and mean different things are a conflict.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use image::source::Source;
use oci_spec::image::Descriptor;
use registry::Digest;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;

use super::SaveError;
use super::plan::Plan;
use crate::lock::{Lock, Locked};

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
pub(crate) struct Layout {
    root: PathBuf,
    /// Locked, until it is closed.
    _lock: File,
}

impl Layout {
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
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(Self { root: root.to_owned(), _lock: file })
    }

    /// Has the blob here; returns the bytes that were fetched.
    pub(crate) async fn bring(&self, source: &Source, blob: &Descriptor) -> Result<u64, SaveError> {
        let target = self.data(blob.digest())?;
        let has = fs::metadata(&target).is_ok_and(|metadata| metadata.len() == blob.size());
        if has {
            return Ok(0);
        }
        let partial = self.root.join(PARTIAL).join(blob.digest().digest());
        let failed = |error| LayoutError::Io { path: partial.clone(), error };
        let mut file = tokio::fs::File::create(&partial).await.map_err(failed)?;
        // Ends with an error if the content does not have the digest.
        let mut stream = source.blob(blob).await?;
        let mut bytes = 0;
        while let Some(piece) = stream.next().await? {
            file.write_all(&piece).await.map_err(failed)?;
            bytes += piece.len() as u64;
        }
        file.flush().await.map_err(failed)?;
        // Under its name it counts as complete for ever: it must not be lost with the power.
        file.sync_data().await.map_err(failed)?;
        drop(file);
        blocking(move || rename(&partial, &target)).await?;
        Ok(bytes)
    }

    /// Makes the image, all of whose blobs are here, known under its name.
    pub(crate) async fn name(&self, locked: &Locked, plan: &Plan) -> Result<(), LayoutError> {
        let repository =
            self.root.join("docker/registry/v2/repositories").join(locked.reference.repository().name());
        let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        for document in plan.manifests.iter().chain(&plan.indexes) {
            files.push((self.data(document.descriptor.digest())?, document.content.to_vec()));
        }
        let link = |folder: &str, digest: &Digest| {
            let path = repository.join(folder).join("sha256").join(digest.digest()).join("link");
            (path, digest.to_string().into_bytes())
        };
        files.extend(plan.blobs.iter().map(|blob| link("_layers", blob.digest())));
        for document in plan.manifests.iter().chain(&plan.indexes) {
            files.push(link("_manifests/revisions", document.descriptor.digest()));
        }
        if let (Some(tag), Some(root)) = (locked.reference.tag(), plan.root()) {
            let digest = root.descriptor.digest();
            files.push(link(&format!("_manifests/tags/{tag}/index"), digest));
            // Last: from here on it can be pulled.
            let current = repository.join(format!("_manifests/tags/{tag}/current/link"));
            files.push((current, digest.to_string().into_bytes()));
        }
        blocking(move || files.iter().try_for_each(|(path, content)| write(path, content))).await
    }

    fn data(&self, digest: &Digest) -> Result<PathBuf, LayoutError> {
        let hex = digest.digest();
        if digest.algorithm().as_ref() != "sha256" {
            return Err(LayoutError::Algorithm(digest.clone()));
        }
        let blobs = self.root.join("docker/registry/v2/blobs/sha256");
        Ok(blobs.join(hex.get(..2).unwrap_or(hex)).join(hex).join("data"))
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

async fn blocking(
    work: impl FnOnce() -> Result<(), LayoutError> + Send + 'static,
) -> Result<(), LayoutError> {
    tokio::task::spawn_blocking(work).await?
}

/// Gives a complete file its name.
fn rename(from: &Path, to: &Path) -> Result<(), LayoutError> {
    let failed = |error| LayoutError::Io { path: to.to_owned(), error };
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).map_err(failed)?;
    fs::rename(from, to).map_err(failed)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Writes a small file, whole or not at all; not if it says the same already.
fn write(path: &Path, content: &[u8]) -> Result<(), LayoutError> {
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
