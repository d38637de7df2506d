//! Where blobs and manifests go.
//!
//! - `registry`: a repository of a registry.
//! - `staging`: files of this machine on their way to their names: OCI layouts, tars of them, the parts of a nydus image.
//! - `archive`: the tar of an OCI layout.
//! - `folder`: the blobs of a directory that a registry can serve.
//! - `nowhere`: for the digest alone.
//! - `space`: room on the disk of this machine for what is there meanwhile.
//! - `spool`: blobs that stay on this machine until it is known whose they are.
//! - `spool_folder`: a folder that is gone with its process.
//! - `copy`: blobs that are kept as they are.
//!
//! A further one, the disk of a BuildKit client, is the exporter's: only BuildKit's session leads there.

mod archive;
mod copy;
mod folder;
mod nowhere;
mod registry;
mod space;
mod spool;
mod spool_folder;
mod staging;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

use ::registry::client::Client;
use ::registry::digest::{self, Digest};
use ::registry::reference::{Reference, Repository};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};

pub use self::archive::LayoutStream;
pub use self::copy::{CopyError, copy_blob, copy_file};
pub(crate) use self::copy::{at_destination, begin_copy};
pub use self::folder::{BlobFolder, FolderBlob};
pub use self::nowhere::Nowhere;
pub use self::registry::InRegistry;
pub use self::space::{DiskShare, DiskSpace, DiskUse};
pub use self::spool::{SpoolSpace, SpoolWriter, SpooledBlob};
pub use self::spool_folder::SpoolFolder;
pub use self::staging::{Shape, Staging};
use crate::document::Stored;

/// What a destination's methods return.
pub type Storing<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where an image goes: its blobs and manifests in any order, its name last.
pub trait Destination: Debug + Send + Sync {
    /// Begins a blob.
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>>;

    /// Whether the blob is there already.
    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool>;

    /// The size in bytes of a blob that is there; `None` if it is not, or nobody can say.
    fn blob_size<'a>(&'a self, _digest: &'a Digest) -> Storing<'a, Option<u64>> {
        ready(Ok(None)).boxed()
    }

    /// Stores a small blob, and returns its digest.
    fn put_blob(&self, data: Bytes) -> Storing<'_, Digest> {
        async move {
            let digest = digest::sha256(&data);
            let mut writer = self.begin().await?;
            writer.write(data).await?;
            writer.finish(&digest).await?;
            Ok(digest)
        }
        .boxed()
    }

    /// Stores a manifest or index under its digest, and returns that.
    fn put_manifest<'a>(&'a self, _media_type: &'a str, manifest: Bytes) -> Storing<'a, Digest> {
        self.put_blob(manifest)
    }

    /// All is there: gives the image `root` its names, where a destination has any. Before this, whoever looks there by a
    /// name finds what was there. The parts of a nydus image have no root.
    fn publish<'a>(&'a self, names: &'a [Reference], root: Option<&'a Stored>) -> Storing<'a, ()>;

    /// The repository that this is, with a client to reach it: its blobs can be mounted from others of the same host.
    fn repository(&self) -> Option<(&Client, &Repository)> {
        None
    }
}

/// A blob on its way.
pub trait BlobWriter: Send + 'static {
    /// Adds `data`, waiting while too much is on its way.
    fn write(&mut self, data: Bytes) -> Storing<'_, ()>;

    /// Has the blob stored under its digest, and returns its size in bytes. Whether a registry or a client checks the
    /// digest is its own affair; a file's is the caller's word.
    fn finish<'a>(self: Box<Self>, digest: &'a Digest) -> Storing<'a, u64>;

    /// Gives the blob up.
    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Why something was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The registry did not take it.
    #[error(transparent)]
    Registry(#[from] ::registry::client::Error),
    /// A file cannot be written.
    #[error("cannot {doing} {}: {error}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// What is at the destination would be lost or mixed up.
    #[error("{} {reason}", path.display())]
    Occupied {
        /// The destination.
        path: PathBuf,
        /// What is there, and what was expected.
        reason: String,
    },
    /// What is kept on this machine meanwhile takes more room than it may.
    #[error(
        "{} take more than {limit} bytes in {}, those of {} together: raise {}, or {}",
        purpose.what, path.display(), purpose.of, purpose.setting, purpose.instead
    )]
    DiskFull {
        /// What the room is for.
        purpose: &'static DiskUse,
        /// The folder.
        path: PathBuf,
        /// What they may take there, in bytes.
        limit: u64,
    },
    /// Whoever takes it on another machine did not.
    #[error("{receiver} did not take it: {reason}")]
    Refused {
        /// Who should have.
        receiver: &'static str,
        /// What was said.
        reason: String,
    },
    /// The thread that writes is gone.
    #[error("writing ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Makes an error of what went wrong while `doing` something with the file `path`.
pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |error| StoreError::File { doing, path, error }
}
