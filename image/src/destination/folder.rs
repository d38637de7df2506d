//! The blobs of a directory in the storage layout of CNCF distribution, `docker/registry/v2/blobs/sha256/HE/HEX/data`: each has
//! its name as soon as it is complete, and not before.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use registry::digest::{self, Digest};
use registry::reference::Reference;
use tokio::io::AsyncWriteExt as _;

use super::{BlobWriter, Destination, StoreError, Storing, failed};
use crate::document::Stored;

/// Where blobs are under the directory.
const BLOBS: &str = "docker/registry/v2/blobs/sha256";

/// Such a directory.
#[derive(Debug)]
pub struct BlobFolder {
    root: PathBuf,
    partial: PathBuf,
    next: AtomicU64,
}

/// A blob being written.
pub struct FolderBlob {
    file: tokio::fs::File,
    path: PathBuf,
    root: PathBuf,
    size: u64,
    /// Whether the file has the blob's name, or is to be removed.
    named: bool,
}

fn data(root: &Path, digest: &Digest) -> Option<PathBuf> {
    let hex = digest.digest();
    (digest.algorithm().as_ref() == "sha256").then(|| root.join(BLOBS).join(&hex[..2]).join(hex).join("data"))
}

impl BlobFolder {
    /// The blobs under `root`. Those that are not complete are in `partial`, a folder of the same file system.
    pub fn new(root: &Path, partial: &Path) -> Self {
        Self { root: root.to_owned(), partial: partial.to_owned(), next: AtomicU64::new(0) }
    }

    /// The file of a blob, there or not; `None` if its digest is no SHA-256.
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        data(&self.root, digest)
    }

    /// The size in bytes of a blob that is there.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let metadata = fs::metadata(self.path(digest)?).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Begins a blob, under the name `name` until it is complete.
    pub async fn begin_as(&self, name: &str) -> Result<FolderBlob, StoreError> {
        let path = self.partial.join(name);
        let file = tokio::fs::File::create(&path).await.map_err(failed("create", &path))?;
        Ok(FolderBlob { file, path, root: self.root.clone(), size: 0, named: false })
    }
}

/// Manifests are blobs as well. Who writes there gives them their names: links of repositories.
impl Destination for BlobFolder {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        async move {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(self.begin_as(&format!("blob-{number}")).await?) as Box<dyn BlobWriter>)
        }
        .boxed()
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool> {
        ready(Ok(self.size(digest).is_some())).boxed()
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> Storing<'a, Option<u64>> {
        ready(Ok(self.size(digest))).boxed()
    }

    fn put_blob(&self, data: Bytes) -> Storing<'_, Digest> {
        async move {
            let digest = digest::sha256(&data);
            if self.size(&digest) != Some(data.len() as u64) {
                let mut blob = self.begin().await?;
                blob.write(data).await?;
                blob.finish(&digest).await?;
            }
            Ok(digest)
        }
        .boxed()
    }

    fn publish<'a>(&'a self, _names: &'a [Reference], _root: Option<&'a Stored>) -> Storing<'a, ()> {
        ready(Ok(())).boxed()
    }
}

impl BlobWriter for FolderBlob {
    fn write(&mut self, data: Bytes) -> Storing<'_, ()> {
        async move { Self::write(self, &data).await }.boxed()
    }

    fn finish<'a>(self: Box<Self>, digest: &'a Digest) -> Storing<'a, u64> {
        async move { Self::finish(*self, digest).await }.boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

impl FolderBlob {
    /// Adds `data`.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.size += data.len() as u64;
        self.file.write_all(data).await.map_err(failed("write", &self.path))
    }

    /// Gives the blob, whose content has this digest, its name; returns its size in bytes.
    pub async fn finish(mut self, digest: &Digest) -> Result<u64, StoreError> {
        let unsupported = || io::Error::other(format!("{digest} is no digest by sha256"));
        let target = data(&self.root, digest).ok_or_else(|| failed("name", &self.path)(unsupported()))?;
        self.file.flush().await.map_err(failed("write", &self.path))?;
        // Under its name it counts as complete for ever: it must not be lost with the power.
        self.file.sync_data().await.map_err(failed("write", &self.path))?;
        let from = self.path.clone();
        tokio::task::spawn_blocking(move || rename(&from, &target)).await??;
        self.named = true;
        Ok(self.size)
    }
}

impl Drop for FolderBlob {
    fn drop(&mut self) {
        if !self.named {
            _ = fs::remove_file(&self.path);
        }
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).map_err(failed("make", folder))?;
    fs::rename(from, to).map_err(failed("rename a blob to", to))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("write", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_has_its_name_when_it_is_complete_and_not_before() {
        let root = tempfile::tempdir().unwrap();
        let partial = root.path().join("partial");
        fs::create_dir(&partial).unwrap();
        let folder = BlobFolder::new(root.path(), &partial);
        let digest = digest::sha256(b"content");
        let mut blob = folder.begin_as("blob").await.unwrap();
        blob.write(b"con").await.unwrap();
        assert_eq!((folder.size(&digest), fs::read_dir(&partial).unwrap().count()), (None, 1));
        drop(blob);
        assert_eq!(fs::read_dir(&partial).unwrap().count(), 0);
        assert_eq!(folder.put_blob(Bytes::from_static(b"content")).await.unwrap(), digest);
        assert_eq!(folder.blob_size(&digest).await.unwrap(), Some(7));
        let path = folder.path(&digest).unwrap();
        let hex = digest.digest();
        assert!(path.ends_with(format!("{BLOBS}/{}/{hex}/data", &hex[..2])));
        assert_eq!(fs::read(path).unwrap(), b"content");
    }
}
