//! One cached blob: its data file, its chunk map, and what is known of its chunks.

use std::io;
use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak};
use std::time::SystemTime;

use rafs::blob::decode::verify;
use rafs::blob::{Blob, Chunk, ChunkIndex};

use super::description::{Admission, Described, Descriptions, Said, same_bytes};
use super::files::{holes, on_disk, paths, remove};
use super::quota::{CountedBytes, Quota, taken_by};
use super::{CacheError, CacheState, ChunkMap, ChunkState, disk, is_broken, is_full, places};
use crate::control::BlobId;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, SharedFile};

/// Tells the files of a blob from those that it had before it was removed, and from those that images have which
/// contradict each other. Unique in a process.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Generation(pub u64);

/// Which of a blob's caches: 0, unless images that are mounted at once contradict each other.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Variant(pub(super) u32);

/// A blob of the cache.
#[derive(Debug)]
pub struct CachedBlob {
    id: BlobId,
    generation: Generation,
    data: SharedFile,
    data_path: PathBuf,
    map_path: PathBuf,
    places_path: PathBuf,
    map: ChunkMap,
    /// The map's file says more than is to be trusted: what took trust away could not be written.
    is_lying: AtomicBool,
    /// The disk could not read some of the data file, which was told.
    is_unreadable: AtomicBool,
    known: RwLock<Descriptions>,
    /// What is known is not on disk, or not all of it.
    is_unsaved: AtomicBool,
    /// Bytes that the data file was given.
    length: AtomicU64,
    /// Bytes on disk that the data file has, as far as was seen: it only grows, but by somebody else's hand.
    filled: AtomicU64,
    map_bytes: CountedBytes,
    /// Held while it is found out what somebody else has done to the data file.
    suspicion: Mutex<()>,
    /// Leases that were given out and not returned.
    leases: AtomicUsize,
    quota: Arc<Quota>,
    /// Who can make room.
    cache: Weak<CacheState>,
}

/// Why a chunk was not put into the cache.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Images say something else of the chunk by now.
    #[error("images describe the chunk differently now")]
    Outdated,
    /// The file cannot be written.
    #[error("cannot write the cache file")]
    Io(#[from] io::Error),
}

impl CachedBlob {
    pub(super) fn open(
        cache: &Arc<CacheState>,
        id: BlobId,
        variant: Variant,
        generation: Generation,
    ) -> Result<Self, CacheError> {
        let [data_path, map_path, places_path] = paths(&cache.dir, id, variant);
        if !data_path.exists() {
            // A map without its data would promise what is not there.
            remove(&map_path)?;
        }
        let data = disk::open_or_create(&data_path).map_err(CacheError::io("open", &data_path))?;
        let (map, is_new) = ChunkMap::of_disk(&map_path, cache.boot)?;
        let map_bytes = map.bytes_on_disk().map_err(CacheError::io("examine", &map_path))?;
        let known = match places::load(&places_path) {
            Err(error) if is_broken(&error) => {
                let file = places_path.display();
                tracing::warn!(%file, %error, "the disk cannot read where a cached blob has its chunks: they are verified before use");
                None
            }
            known => known.map_err(CacheError::io("read", &places_path))?,
        };
        let (known, length) = match known {
            Some((known, length)) => (known, Some(length)),
            None => (Descriptions::default(), None),
        };
        let blob = Self {
            id,
            generation,
            data: SharedFile::new(data),
            data_path,
            map_path,
            places_path,
            map,
            is_lying: AtomicBool::new(false),
            is_unreadable: AtomicBool::new(false),
            known: RwLock::new(known),
            is_unsaved: AtomicBool::new(false),
            length: AtomicU64::new(length.unwrap_or(0)),
            filled: AtomicU64::new(0),
            map_bytes: CountedBytes::new(map_bytes),
            suspicion: Mutex::default(),
            leases: AtomicUsize::new(0),
            quota: Arc::clone(&cache.quota),
            cache: Arc::downgrade(cache),
        };
        if is_new {
            let claimed = blob.known().records().iter().try_for_each(|record| blob.map.claim(record.index));
            claimed.map_err(CacheError::io("write", &blob.map_path))?;
        }
        if length.is_none() {
            // Nobody knows what its bits mean. That is on disk before it is said there what they mean from now on.
            blob.doubt_all().map_err(CacheError::io("write", &blob.map_path))?;
        }
        blob.look_over(&blob.known()).map_err(CacheError::io("examine", &blob.data_path))?;
        Ok(blob)
    }

    /// Makes the data file at least `size` bytes long, without taking space on disk.
    fn reserve(&self, size: u64) -> Result<bool, CacheError> {
        let length = self.length.load(Ordering::Acquire);
        if length >= size {
            return Ok(false);
        }
        disk::set_len(self.data.once(), size).map_err(CacheError::io("extend", &self.data_path))?;
        self.length.store(size, Ordering::Release);
        Ok(true)
    }

    /// Takes an image's words; `size` is the least length in bytes that the file gets. The chunk on which the image
    /// contradicts others that are mounted, if it does: then nothing has changed. Called under the cache's lock alone.
    pub(super) fn admit(
        &self,
        coding: &Arc<Blob>,
        said: &[Said],
        size: u64,
    ) -> Result<Option<ChunkIndex>, CacheError> {
        let mut known = self.known_mut();
        let admission = match known.admit(coding, said) {
            Ok(admission) => admission,
            Err(chunk) => return Ok(Some(chunk)),
        };
        let recorded = self.record(&known, &admission, size);
        if recorded.is_err() {
            // The image is not mounted, so what it says binds nobody.
            known.release(said.iter().map(|(index, _)| *index));
        }
        recorded.map(|()| None)
    }

    /// Puts on disk what an image's words have changed. In this order, whatever of it fails: a chunk that is described
    /// otherwise is doubted before the new description is there, and nobody stores one whose description is not.
    fn record(&self, known: &Descriptions, admission: &Admission, size: u64) -> Result<(), CacheError> {
        if !matches!(admission, Admission::Known) {
            self.is_unsaved.store(true, Ordering::Release);
        }
        if let Admission::Displaced(chunks) = admission {
            let (blob, chunks_left) = (self.id, chunks.len());
            tracing::info!(%blob, chunks = chunks_left, "an image contradicts one that is gone: what was cached for that is verified before use");
            // All of them, for this process, even if one cannot be recorded.
            let doubted = chunks.iter().map(|chunk| self.doubt(*chunk)).fold(Ok(()), Result::and);
            doubted.map_err(CacheError::io("write", &self.map_path))?;
        }
        self.retract().map_err(CacheError::io("write", &self.map_path))?;
        let grown = self.reserve(size.max(known.end()))?;
        if !grown && !self.is_unsaved.load(Ordering::Acquire) {
            return Ok(());
        }
        self.is_unsaved.store(true, Ordering::Release);
        match places::save(&self.places_path, known, self.length.load(Ordering::Acquire)) {
            Err(error) if is_full(&error) => {
                tracing::warn!(blob = %self.id, %error, "no room for what chunks are: the next daemon verifies them");
                // What is there does not say what bits mean that are set from now on.
                places::remove(&self.places_path).map_err(CacheError::io("delete", &self.places_path))
            }
            saved => {
                self.is_unsaved.store(saved.is_err(), Ordering::Release);
                saved.map_err(CacheError::io("write", &self.places_path))
            }
        }
    }

    /// Nothing is stored from now on: the blob's files go, and what cannot be deleted of them is the next one's.
    pub(super) fn retire(&self) {
        *self.known_mut() = Descriptions::default();
    }

    /// What a mount's image said of these chunks does not count for it any longer.
    pub(super) fn release(&self, said: &[Range<u32>]) {
        self.known_mut().release(said.iter().flat_map(Clone::clone).map(ChunkIndex));
    }

    pub(super) fn leased(&self) {
        self.leases.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn returned(&self) {
        self.leases.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn is_leased(&self) -> bool {
        self.leases.load(Ordering::Acquire) > 0
    }

    /// The blob's id.
    pub fn id(&self) -> BlobId {
        self.id
    }

    /// Which of the blob's files these are.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What mounted images say of the chunk.
    pub fn describe(&self, chunk: ChunkIndex) -> Option<Described> {
        let known = self.known();
        let coding = Arc::clone(known.coding.as_ref()?);
        known.live(chunk).map(|chunk| Described { coding, chunk: chunk.clone() })
    }

    /// Whether nothing is known of the chunk, nor of any behind it. What is not described before that is shown by no mounted image:
    /// one on top of others leaves out what it replaces.
    pub fn is_behind_all(&self, chunk: ChunkIndex) -> bool {
        self.known().records().last().is_none_or(|last| last.index < chunk)
    }

    /// What the cache holds of the chunk.
    pub fn state(&self, chunk: ChunkIndex) -> ChunkState {
        self.map.state(chunk)
    }

    /// Whether the chunk can be read.
    pub fn is_ready(&self, chunk: ChunkIndex) -> bool {
        self.state(chunk) == ChunkState::Ready
    }

    /// Fills `buffer` from `offset` in the uncompressed blob, where `chunk` has to be; `false` if the chunk is not ready,
    /// ceased to be so meanwhile, or cannot be read by the disk: then the buffer has anything. What the disk cannot read stays
    /// ready: it may be able to the next time, and what is stored in its place gets a good block. What somebody else took out of the
    /// file is noticed by what the file has on disk, so not if as much was stored since it was last looked at.
    ///
    /// # Errors
    ///
    /// The file cannot be read, which is not the disk's fault.
    pub fn read(&self, chunk: ChunkIndex, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        if !self.is_ready(chunk) {
            return Ok(false);
        }
        match disk::read_at(self.data.once(), buffer, offset) {
            Ok(()) => {
                self.look_again(|| self.known())?;
                // What is read must not be older than what the second look sees.
                fence(Ordering::SeqCst);
                Ok(self.is_ready(chunk))
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.look_again(|| self.known())?;
                // No longer, if somebody shortened the file.
                if self.is_ready(chunk) { Err(error) } else { Ok(false) }
            }
            Err(error) if is_broken(&error) => {
                self.tell_unreadable(&error);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn tell_unreadable(&self, error: &io::Error) {
        if !self.is_unreadable.swap(true, Ordering::Relaxed) {
            let blob = self.id;
            tracing::warn!(%blob, %error, "the disk cannot read all of a cached blob: what it cannot is fetched again");
        }
    }

    /// The bytes that the cache claims to be a chunk's, whether verified or not.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is shorter.
    pub fn claimed(&self, chunk: &Chunk) -> io::Result<Vec<u8>> {
        let mut content = vec![0; chunk.uncompressed_size as usize];
        let read = disk::read_at(self.data.once(), &mut content, chunk.uncompressed_offset);
        if let Some(error) = read.as_ref().err().filter(|error| is_broken(error)) {
            self.tell_unreadable(error);
        }
        read.map(|()| content)
    }

    /// Puts a chunk into the cache that was verified as `chunk` says: its bytes first, its bit then.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the chunk does not become ready.
    pub fn store(&self, index: ChunkIndex, chunk: &Chunk, bytes: &[u8]) -> Result<(), StoreError> {
        let end = chunk.uncompressed_offset.saturating_add(bytes.len() as u64);
        self.find_room(taken_by(&(chunk.uncompressed_offset..end)))?;
        let known = self.known();
        if !known.known(index).is_some_and(|known| same_bytes(known, chunk)) {
            return Err(StoreError::Outdated);
        }
        // A file that somebody shortened would be made long again by the write, with holes where chunks were.
        self.look_again(|| &*known)?;
        disk::write_at(self.data.once(), bytes, chunk.uncompressed_offset)?;
        let filled = self.look_again(|| &*known)?;
        self.note_growth(filled);
        self.set_ready(index);
        // The chunk is there in any case.
        if self.quota.limit().is_some()
            && let Ok(bytes) = self.map.bytes_on_disk()
        {
            self.map_bytes.changed(&self.quota, bytes);
        }
        Ok(())
    }

    /// Before any lock of the blob is held: whoever makes room may hold the cache's.
    fn find_room(&self, bytes: u64) -> io::Result<()> {
        if self.quota.fits(bytes) {
            return Ok(());
        }
        if let Some(cache) = self.cache.upgrade() {
            cache.make_room(bytes);
        }
        if self.quota.fits(bytes) { Ok(()) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
    }

    /// Notes that the blob was just used, for who makes room.
    pub(super) fn touch(&self) {
        if let Err(error) = self.data.once().set_modified(SystemTime::now()) {
            tracing::debug!(blob = %self.id, %error, "cannot note the time of a blob's last use");
        }
    }

    /// Verifies all chunks that the cache holds; how many there are, and how many were bad. It holds those no longer, except what the
    /// disk cannot read now.
    pub(super) fn verify(&self) -> (u64, u64) {
        let (mut checked, mut bad) = (0, 0);
        let Some(coding) = self.known().coding.clone() else { return (0, 0) };
        let records = self.known().records().to_vec();
        for record in records.iter().filter(|record| self.state(record.index) != ChunkState::Missing) {
            checked += 1;
            match self.claimed(&record.chunk) {
                Ok(content) if verify(&coding, &record.chunk, &content).is_ok() => {
                    self.confirm(record.index, &record.chunk);
                }
                Err(error) if is_broken(&error) => bad += 1,
                _ => {
                    bad += 1;
                    self.discard(record.index);
                }
            }
        }
        (checked, bad)
    }

    /// Records that the chunk, whose bytes are in the cache already, was verified as `chunk` says; whether it was.
    pub fn confirm(&self, index: ChunkIndex, chunk: &Chunk) -> bool {
        let known = self.known();
        let is_known = known.known(index).is_some_and(|known| same_bytes(known, chunk));
        if is_known {
            self.set_ready(index);
        }
        is_known
    }

    fn set_ready(&self, chunk: ChunkIndex) {
        let retracted = self.retract();
        // For this process in any case.
        if let Err(error) = retracted.and(self.map.set_ready(chunk)) {
            let (blob, chunk) = (self.id, chunk.0);
            tracing::warn!(%blob, chunk, %error, "cannot record a cached chunk; it will be fetched again one day");
        }
    }

    /// Records that what the cache held of the chunk was wrong.
    pub fn discard(&self, chunk: ChunkIndex) {
        if let Err(error) = self.withdrawn(self.map.clear(chunk)) {
            let (blob, chunk) = (self.id, chunk.0);
            tracing::warn!(%blob, chunk, %error, "cannot record that a cached chunk is bad");
        }
    }

    fn doubt(&self, chunk: ChunkIndex) -> io::Result<()> {
        self.withdrawn(self.map.doubt(chunk))
    }

    fn doubt_all(&self) -> io::Result<()> {
        self.withdrawn(self.map.doubt_all())
    }

    /// What takes trust away has to be on disk, or the next daemon serves what this one knows to be wrong: where it could not be
    /// written, all of the map goes.
    fn withdrawn(&self, recorded: io::Result<()>) -> io::Result<()> {
        let Err(error) = recorded else { return Ok(()) };
        tracing::warn!(blob = %self.id, %error, "cannot record that cached chunks are not trusted: the next daemon finds none");
        self.is_lying.store(true, Ordering::Release);
        self.retract()
    }

    /// Empties the map's file if that is due.
    fn retract(&self) -> io::Result<()> {
        if self.is_lying.load(Ordering::Acquire) {
            self.map.forget()?;
            self.is_lying.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Bytes on disk that the data file has; `None` if it is shorter than it was, or has less.
    fn found(&self) -> io::Result<Option<u64>> {
        // What was before the look: others may store meanwhile.
        let (length, filled) = (self.length.load(Ordering::Acquire), self.filled.load(Ordering::Acquire));
        let found = self.data.once().metadata()?;
        Ok((found.len() >= length && on_disk(&found) >= filled).then(|| on_disk(&found)))
    }

    /// Bytes on disk that the data file has. What somebody took out of it is doubted by then.
    fn look_again<K: Deref<Target = Descriptions>>(&self, known: impl FnOnce() -> K) -> io::Result<u64> {
        if let Some(filled) = self.found()? {
            return Ok(filled);
        }
        let known = known();
        let _alone = self.suspicion.lock().unwrap_or_else(PoisonError::into_inner);
        match self.found()? {
            Some(filled) => Ok(filled),
            None => self.look_over(&known),
        }
    }

    /// Doubts chunks that cannot be in the file as it is found, and gives it its length back: the bytes that it has on disk.
    fn look_over(&self, known: &Descriptions) -> io::Result<u64> {
        let found = self.data.once().metadata()?;
        let expected = self.length.load(Ordering::Acquire);
        if found.len() < expected {
            let found = found.len();
            tracing::warn!(blob = %self.id, found, expected, "somebody shortened a cached blob: it is not trusted");
            // Doubted while reads beyond the end fail, before they find zeros there.
            self.doubt_all()?;
            disk::set_len(self.data.once(), expected)?;
        }
        self.doubt_holes(known, expected)?;
        // Behind the doubts, for whoever finds as much as he expects.
        let (filled, before) = (on_disk(&found), self.filled.swap(on_disk(&found), Ordering::AcqRel));
        self.quota.gave(before.saturating_sub(filled));
        Ok(filled)
    }

    fn doubt_holes(&self, known: &Descriptions, length: u64) -> io::Result<()> {
        let mut lost = 0;
        for hole in holes(self.data.once(), length) {
            for record in known.within(hole).filter(|record| self.is_ready(record.index)) {
                self.doubt(record.index)?;
                lost += 1;
            }
        }
        if lost > 0 {
            tracing::warn!(blob = %self.id, chunks = lost, "somebody emptied parts of a cached blob: they are not trusted");
        }
        Ok(())
    }

    /// The data file has so many bytes on disk now.
    fn note_growth(&self, filled: u64) {
        let before = self.filled.fetch_max(filled, Ordering::AcqRel);
        self.quota.took(filled.saturating_sub(before));
    }

    fn known(&self) -> RwLockReadGuard<'_, Descriptions> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known_mut(&self) -> RwLockWriteGuard<'_, Descriptions> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}
