//! Chunk information that a bootstrap lacks: of blobs with batches, or of all blobs where it has no chunk table. It is
//! in files beside the bootstrap, or fetched from the blobs' tails, before the mount; other images need none.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use rafs::blob::Blob;
use rafs::blob::source::{BlobError, BlobSource, load_chunk_info, load_chunk_info_files};
use rafs::bootstrap::Bootstrap;
use tokio::runtime::Handle;

use crate::control::BlobId;
use crate::worker::{Backend, BackendError};

/// Completes what `bootstrap`, which is at `path`, knows of its chunks. Blocks; each request may take `deadline`.
pub(super) fn complete(
    bootstrap: &mut Bootstrap,
    path: &Path,
    backends: &[Arc<dyn Backend>],
    runtime: &Handle,
    deadline: Duration,
) -> Result<(), BlobError> {
    // What is there has been verified with the bootstrap, whose layer it is part of.
    load_chunk_info_files(bootstrap, path.parent().unwrap_or(Path::new(".")))?;
    let mut result = Ok(());
    for backend in backends {
        result = load_chunk_info(bootstrap, &Blocking { backend: &**backend, runtime, deadline });
        if result.is_ok() {
            break;
        }
    }
    result
}

struct Blocking<'a> {
    backend: &'a dyn Backend,
    runtime: &'a Handle,
    deadline: Duration,
}

impl Blocking<'_> {
    fn wait<T>(&self, request: impl Future<Output = Result<T, BackendError>>) -> io::Result<T> {
        let bounded = async { tokio::time::timeout(self.deadline, request).await };
        match self.runtime.block_on(bounded) {
            Ok(result) => result.map_err(io::Error::other),
            Err(_) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", self.deadline)))
            }
        }
    }
}

fn id(blob: &Blob) -> io::Result<BlobId> {
    blob.id.map(BlobId).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the blob's id is not known"))
}

impl BlobSource for Blocking<'_> {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        self.wait(self.backend.size(id(blob)?))
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let collect = |mut bytes: Vec<u8>, part: bytes::Bytes| async move {
            bytes.extend_from_slice(&part);
            Ok(bytes)
        };
        self.wait(self.backend.read(id(blob)?, range).try_fold(Vec::new(), collect))
    }
}
