//! One cached blob: its data file, its chunk map, and what images say of its chunks.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rafs::blob::ChunkIndex;

use super::places::{Place, admit_to};
use super::{BootId, CacheError, ChunkMap, ChunkState, Inner};
use crate::control::BlobId;

/// Unit of `st_blocks`, whatever the file system's own block size.
const STAT_BLOCK_BYTES: u64 = 512;

/// A blob of the cache. Chunks are written by the worker and read by the front; they meet in the map alone.
#[derive(Debug)]
pub struct CachedBlob {
    id: BlobId,
    data: File,
    data_path: PathBuf,
    places: File,
    places_path: PathBuf,
    map: ChunkMap,
    /// Leases that were given out and not returned.
    leases: AtomicUsize,
}

/// Keeps a blob from being removed, for as long as a mount may read from it.
#[derive(Debug)]
pub struct Lease {
    cache: Arc<Inner>,
    blob: Arc<CachedBlob>,
}

impl Lease {
    /// Given out under the cache's lock alone, under which blobs are removed.
    pub(super) fn new(cache: Arc<Inner>, blob: Arc<CachedBlob>) -> Self {
        blob.leases.fetch_add(1, Ordering::AcqRel);
        Self { cache, blob }
    }

    /// The blob. Who holds it but no lease, as work in progress may, finds itself with deleted files some day.
    pub fn blob(&self) -> Arc<CachedBlob> {
        Arc::clone(&self.blob)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.blob.leases.fetch_sub(1, Ordering::AcqRel);
        self.cache.released(self.blob.id());
    }
}

impl CachedBlob {
    pub(super) fn open(dir: &Path, id: BlobId, size: u64, boot: BootId) -> Result<Self, CacheError> {
        let [data_path, map_path, places_path] = paths(dir, id);
        if !data_path.exists() || !places_path.exists() {
            // A map without its data would promise what is not there; one without places, nobody knows what.
            remove_if_there(&map_path)?;
        }
        let data = open_or_create(&data_path)?;
        let places = open_or_create(&places_path)?;
        let map_file = open_or_create(&map_path)?;
        let map = ChunkMap::open(map_file, boot).map_err(CacheError::io("load", &map_path))?;
        let blob = Self { id, data, data_path, places, places_path, map, leases: AtomicUsize::new(0) };
        blob.reserve(size)?;
        Ok(blob)
    }

    /// Makes the data file at least `size` bytes long, without taking space on disk.
    pub(super) fn reserve(&self, size: u64) -> Result<(), CacheError> {
        let length = self.data.metadata().map_err(CacheError::io("examine", &self.data_path))?.len();
        if length >= size {
            return Ok(());
        }
        self.data.set_len(size).map_err(CacheError::io("extend", &self.data_path))
    }

    /// Holds what an image says of the blob against what earlier ones said, and keeps it; the first chunk on which they
    /// disagree. Called under the cache's lock alone.
    pub(super) fn admit(&self, said: &[Place]) -> Result<Option<ChunkIndex>, CacheError> {
        admit_to(&self.places, said).map_err(CacheError::io("read or write", &self.places_path))
    }

    pub(super) fn is_leased(&self) -> bool {
        self.leases.load(Ordering::Acquire) > 0
    }

    /// The blob's id.
    pub fn id(&self) -> BlobId {
        self.id
    }

    /// What the cache holds of the chunk.
    pub fn state(&self, chunk: ChunkIndex) -> ChunkState {
        self.map.state(chunk)
    }

    /// Whether the chunk can be read.
    pub fn is_ready(&self, chunk: ChunkIndex) -> bool {
        self.state(chunk) == ChunkState::Ready
    }

    /// Fills `buffer` from `offset` in the uncompressed blob.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is shorter.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.data.read_exact_at(buffer, offset)
    }

    /// Puts a verified chunk into the cache: its bytes first, its bit then.
    ///
    /// # Errors
    ///
    /// The file cannot be written; the chunk does not become ready.
    pub fn store(&self, chunk: ChunkIndex, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, offset)?;
        self.confirm(chunk);
        Ok(())
    }

    /// Records that the chunk, whose bytes are in the cache already, was verified.
    pub fn confirm(&self, chunk: ChunkIndex) {
        if let Err(error) = self.map.set_ready(chunk) {
            let (blob, chunk) = (self.id, chunk.0);
            tracing::warn!(%blob, chunk, %error, "cannot record a cached chunk; it will be fetched again one day");
        }
    }

    /// Records that what the cache held of the chunk was wrong.
    pub fn discard(&self, chunk: ChunkIndex) {
        if let Err(error) = self.map.clear(chunk) {
            let (blob, chunk) = (self.id, chunk.0);
            tracing::warn!(%blob, chunk, %error, "cannot record that a cached chunk is bad");
        }
    }
}

/// The data file of a blob, its chunk map, and what images say of its chunks.
pub(super) fn paths(dir: &Path, id: BlobId) -> [PathBuf; 3] {
    ["blob.data", "chunk_map", "places"].map(|what| dir.join(format!("{}.{what}", id.0)))
}

/// Deletes a blob's files; whether there were any.
pub(super) fn delete(dir: &Path, id: BlobId) -> Result<bool, CacheError> {
    let [data, map, places] = paths(dir, id);
    // The map first: data without a map is garbage, a map without data would be a lie.
    let had_map = remove_if_there(&map)?;
    let had_places = remove_if_there(&places)?;
    let had_data = remove_if_there(&data)?;
    Ok(had_map || had_places || had_data)
}

pub(super) fn bytes_on_disk(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * STAT_BLOCK_BYTES)
}

fn open_or_create(path: &Path) -> Result<File, CacheError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(CacheError::io("open", path))
}

fn remove_if_there(path: &Path) -> Result<bool, CacheError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(CacheError::io("delete", path)(error)),
    }
}
