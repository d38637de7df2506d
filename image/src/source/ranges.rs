//! The blobs of a nydus image in a registry, read by ranges.

use std::io;
use std::ops::Range;

use rafs::blob::Blob;
use rafs::blob::source::BlobSource;
use registry::client::Client;
use registry::{Digest, Repository};
use tokio::runtime::Handle;

/// The blobs of a repository. Calls block: for threads outside of asynchronous tasks.
pub(crate) struct RegistryBlobs {
    client: Client,
    repository: Repository,
    runtime: Handle,
}

impl RegistryBlobs {
    /// The blobs of `repository`. To be made within a runtime, which then does the work.
    pub(crate) fn new(client: Client, repository: Repository) -> Self {
        Self { client, repository, runtime: Handle::current() }
    }

    /// The bytes of a range of the blob `digest`.
    pub(crate) fn range(&self, digest: &Digest, range: Range<u64>) -> io::Result<Vec<u8>> {
        let length = range.end.saturating_sub(range.start);
        let bytes = self.client.blob_range(&self.repository, digest, range.start, length);
        Ok(self.runtime.block_on(bytes).map_err(io::Error::other)?.to_vec())
    }
}

/// The digest by which a blob is stored.
pub(crate) fn blob_digest(blob: &Blob) -> io::Result<Digest> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, "the blob's id is not known");
    Digest::try_from(format!("sha256:{}", blob.id.ok_or_else(unknown)?)).map_err(io::Error::other)
}

impl BlobSource for RegistryBlobs {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        let (digest, repository) = (blob_digest(blob)?, &self.repository);
        let size = self.runtime.block_on(self.client.blob_size(repository, &digest));
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{repository}: no blob {digest}"));
        size.map_err(io::Error::other)?.ok_or_else(missing)
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.range(&blob_digest(blob)?, range)
    }
}
