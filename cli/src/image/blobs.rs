//! Blobs in a registry, for readers that wait for their bytes.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use image::source::{BlobFile, Source};
use rafs::blob::Blob;
use rafs::blob::source::{BlobDirectory, BlobSource};
use registry::client::Client;
use registry::{Digest, Repository};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::progress::Task;
use super::source::Located;

/// Readers go through a blob mostly forwards: this much is fetched at once, so that a blob of many small chunks is no
/// flood of requests.
const WINDOW_BYTES: u64 = 4 << 20;

/// The blobs of an image, wherever they are. Calls block: use it outside asynchronous tasks. They fail once the command
/// is to stop.
pub(super) struct Blobs {
    place: OpenBlobs,
    stop: CancellationToken,
    /// Shows how much was read.
    task: Option<Task>,
}

enum OpenBlobs {
    Directory(BlobDirectory),
    Registry(RegistryBlobs),
    Archive(ArchiveBlobs),
}

impl Blobs {
    /// The blobs of `located`, until `stop`; an error where nobody said where they are.
    pub(super) fn of(located: &Located, stop: &CancellationToken) -> anyhow::Result<Self> {
        let place = match &located.blobs {
            super::source::BlobsPlace::Directory(path) => OpenBlobs::Directory(BlobDirectory::new(path)),
            super::source::BlobsPlace::Registry(place) => {
                let (client, reference) = place.as_ref();
                let repository = reference.repository().clone();
                OpenBlobs::Registry(RegistryBlobs::new(client.clone(), repository, stop.clone()))
            }
            super::source::BlobsPlace::Archive(source) => {
                OpenBlobs::Archive(ArchiveBlobs { source: source.clone(), known: Mutex::default() })
            }
            super::source::BlobsPlace::Unknown => {
                anyhow::bail!("{}: say where its blobs are with --blobs DIR", located.name)
            }
        };
        Ok(Self { place, stop: stop.clone(), task: None })
    }

    /// Shows what is read as `task`.
    pub(super) fn shown(self, task: Task) -> Self {
        Self { task: Some(task), ..self }
    }

    fn source(&self) -> &dyn BlobSource {
        match &self.place {
            OpenBlobs::Directory(directory) => directory,
            OpenBlobs::Registry(registry) => registry,
            OpenBlobs::Archive(archive) => archive,
        }
    }

    fn count(&self, bytes: Vec<u8>) -> Vec<u8> {
        if let Some(task) = &self.task {
            task.advance(bytes.len() as u64);
        }
        bytes
    }

    fn check(&self) -> io::Result<()> {
        if self.stop.is_cancelled() { Err(interrupted()) } else { Ok(()) }
    }
}

/// Not [`io::ErrorKind::Interrupted`], after which readers try again.
fn interrupted() -> io::Error {
    io::Error::other(super::Interrupted)
}

impl BlobSource for Blobs {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        self.check()?;
        self.source().size(blob)
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.check()?;
        self.source().read(blob, range).map(|bytes| self.count(bytes))
    }

    fn read_once(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.check()?;
        self.source().read_once(blob, range).map(|bytes| self.count(bytes))
    }
}

/// Blobs in an archive.
struct ArchiveBlobs {
    source: Source,
    known: Mutex<HashMap<String, BlobFile>>,
}

impl ArchiveBlobs {
    fn file(&self, blob: &Blob) -> io::Result<BlobFile> {
        let digest = digest(blob)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = known.get(digest.as_ref()) {
            return Ok(file.clone());
        }
        let file =
            self.source.blob_file(&digest).map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
        Ok(known.entry(digest.to_string()).or_insert(file).clone())
    }
}

impl BlobSource for ArchiveBlobs {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        Ok(self.file(blob)?.size())
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.file(blob)?.read(range)
    }
}

/// The digest by which a blob is found.
fn digest(blob: &Blob) -> io::Result<Digest> {
    let id = blob.id.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the blob's id is not known"))?;
    Digest::try_from(format!("sha256:{id}")).map_err(io::Error::other)
}

/// Blobs in a repository.
struct RegistryBlobs {
    client: Client,
    repository: Repository,
    runtime: Handle,
    stop: CancellationToken,
    sizes: Mutex<HashMap<String, u64>>,
    /// The last bytes fetched, with the blob and the offset that they are from.
    window: Mutex<Option<Arc<Window>>>,
}

struct Window {
    blob: String,
    offset: u64,
    bytes: Bytes,
}

impl Window {
    fn slice(&self, blob: &str, range: &Range<u64>) -> Option<&[u8]> {
        let start = usize::try_from(range.start.checked_sub(self.offset)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(self.offset)?).ok()?;
        (self.blob == blob).then(|| self.bytes.get(start..end)).flatten()
    }
}

impl RegistryBlobs {
    fn new(client: Client, repository: Repository, stop: CancellationToken) -> Self {
        let (sizes, window) = (Mutex::default(), Mutex::default());
        Self { client, repository, runtime: Handle::current(), stop, sizes, window }
    }

    fn wait<T, E: std::error::Error + Send + Sync + 'static>(
        &self,
        request: impl Future<Output = Result<T, E>>,
    ) -> io::Result<T> {
        let done = self.runtime.block_on(self.stop.run_until_cancelled(request));
        done.ok_or_else(interrupted)?.map_err(io::Error::other)
    }

    /// Fetches a range, which has to be in the blob.
    fn fetch(&self, digest: &Digest, range: &Range<u64>) -> io::Result<Bytes> {
        let fetch = self.client.blob_range(&self.repository, digest, range.start, range.end - range.start);
        let bytes = self.wait(fetch)?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the registry sent fewer bytes than asked for",
            ));
        }
        Ok(bytes)
    }

    fn check_range(&self, blob: &Blob, range: &Range<u64>) -> io::Result<u64> {
        let size = self.size(blob)?;
        if range.start > range.end || range.end > size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the blob ends before what is to be read",
            ));
        }
        Ok(size)
    }
}

impl BlobSource for RegistryBlobs {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        let digest = digest(blob)?;
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = sizes.get(digest.as_ref()) {
            return Ok(*size);
        }
        let found = self.wait(self.client.blob_size(&self.repository, &digest))?;
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("{}: no blob {digest}", self.repository));
        let size = found.ok_or_else(missing)?;
        sizes.insert(digest.to_string(), size);
        Ok(size)
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let digest = digest(blob)?;
        let latest = self.window.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(bytes) = latest.as_deref().and_then(|window| window.slice(digest.as_ref(), &range)) {
            return Ok(bytes.to_vec());
        }
        let size = self.check_range(blob, &range)?;
        let end = range.end.max(range.start.saturating_add(WINDOW_BYTES)).min(size);
        let bytes = self.fetch(&digest, &(range.start..end))?;
        let window = Arc::new(Window { blob: digest.to_string(), offset: range.start, bytes });
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&window));
        Ok(window.bytes[..(range.end - range.start) as usize].to_vec())
    }

    fn read_once(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.check_range(blob, &range)?;
        Ok(self.fetch(&digest(blob)?, &range)?.into())
    }
}
