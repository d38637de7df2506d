//! Which chunks of a blob the cache holds: a bitmap in memory for the readers, written through to a file.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `NYDCHMAP` |
//! | 8 | 4 | version | 1, little-endian |
//! | 12 | 4 | – | 0 |
//! | 16 | 16 | boot | the boot in which the ready bits were set |
//! | 4096 + 16 n | 8 | ready | bits of chunks 64 n …, lowest first: in the cache and verified in this boot |
//! | 4104 + 16 n | 8 | claimed | the same of earlier boots: to be verified before use |
//!
//! A bit is set after its chunk is written. Both go through the page cache, so within a boot the order holds whatever
//! happens to the process. After another boot it may not: then ready bits become claimed ones. A torn or lying map is
//! thus never trusted, and a claim costs one verification at most.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{OnceLock, PoisonError};

use rafs::blob::ChunkIndex;

use super::boot::BootId;
use super::files::{on_disk, remove};
use super::{CacheError, disk, is_broken, is_full};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{self, Mutex};

/// The number of chunks that a blob may have.
pub const CHUNK_LIMIT: u32 = rafs::layout::CHUNKS_LIMIT;

const MAGIC: &[u8; 8] = b"NYDCHMAP";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 32;
const WORDS_START: u64 = 4096;
const WORD_SIZE: usize = 16;

/// What a file system allocates at once, so the unit of holes.
const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// Words of a segment, so 65,536 chunks: segments are allocated when a chunk of theirs comes, 1 MiB-chunk blobs
/// up to 64 GiB have one.
const SEGMENT_WORDS: usize = if sync::IS_MODEL { 4 } else { 1024 };
const SEGMENTS: usize = CHUNK_LIMIT as usize / 64 / SEGMENT_WORDS;

/// What the cache holds of a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChunkState {
    /// Nothing.
    Missing,
    /// Bytes of an earlier boot, to be verified.
    Claimed,
    /// The chunk, verified.
    Ready,
}

#[derive(Default)]
struct Word {
    ready: AtomicU64,
    claimed: AtomicU64,
}

/// See the module.
pub struct ChunkMap {
    segments: Box<[OnceLock<Box<[Word]>>]>,
    /// Locked to change a word in memory and file alike. Readers need no lock.
    file: Mutex<File>,
}

impl ChunkMap {
    /// The map in the file at `path`, and whether it is an empty one in the place of what the disk cannot read: then it says nothing of
    /// what there is.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the file cannot be read for another reason, or not be written.
    pub(super) fn of_disk(path: &Path, boot: BootId) -> Result<(Self, bool), CacheError> {
        let open = || disk::open_or_create(path).and_then(|file| Self::open(file, boot));
        match open() {
            Err(error) if is_broken(&error) => {
                let file = path.display();
                tracing::warn!(%file, %error, "the disk cannot read what the cache has of a blob: it is verified before use");
                // A new file gets other blocks.
                remove(path)?;
                Ok((open().map_err(CacheError::io("load", path))?, true))
            }
            map => Ok((map.map_err(CacheError::io("load", path))?, false)),
        }
    }

    /// Reads the map in `file`; a file that is none (as an empty one) becomes a map of no chunks.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn open(file: File, boot: BootId) -> io::Result<Self> {
        let segments = (0..SEGMENTS).map(|_| OnceLock::new()).collect();
        let map = Self { segments, file: Mutex::new(file) };
        map.load(boot)?;
        Ok(map)
    }

    fn load(&self, boot: BootId) -> io::Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut header = [0; HEADER_SIZE];
        let known = file.metadata()?.len() >= WORDS_START && {
            disk::read_at(&file, &mut header, 0)?;
            header[..8] == *MAGIC && header[8..12] == VERSION.to_le_bytes()
        };
        if !known {
            disk::set_len(&file, 0)?;
            disk::set_len(&file, WORDS_START)?;
            return match disk::write_at(&file, &encode_header(boot), 0) {
                // A map for this process then, and an empty file for the next.
                Err(error) if is_full(&error) => disk::set_len(&file, 0),
                result => result,
            };
        }
        let same_boot = header[16..] == boot.0;
        let words = read_words(&file)?;
        for (number, page) in words.chunks(PAGE).enumerate() {
            // Most of a large map is holes.
            if *page == ZEROS[..page.len()] {
                continue;
            }
            let mut page = page.to_vec();
            for (index, bytes) in page.chunks_exact_mut(WORD_SIZE).enumerate() {
                self.load_word(number * (PAGE / WORD_SIZE) + index, bytes, same_boot);
            }
            if !same_boot {
                disk::write_at(&file, &page, WORDS_START + (number * PAGE) as u64)?;
            }
        }
        // The header last: until then the words, old or new, are read as claims.
        if same_boot { Ok(()) } else { disk::write_at(&file, &encode_header(boot), 0) }
    }

    /// Takes a word over from the file, and makes it one of this boot there.
    fn load_word(&self, index: usize, bytes: &mut [u8], same_boot: bool) {
        let (mut ready, mut claimed) = decode_word(bytes);
        if !same_boot {
            (ready, claimed) = (0, ready | claimed);
            bytes.copy_from_slice(&encode_word(ready, claimed));
        }
        if ready | claimed != 0 {
            let word = self.word_or_new(index);
            word.ready.store(ready, Ordering::Release);
            word.claimed.store(claimed, Ordering::Release);
        }
    }

    /// What the cache holds of the chunk.
    pub fn state(&self, chunk: ChunkIndex) -> ChunkState {
        let (index, bit) = position(chunk);
        let Some(word) = self.word(index) else { return ChunkState::Missing };
        // Acquire: who sees the bit sees the chunk that was written before it was set.
        if word.ready.load(Ordering::Acquire) & bit != 0 {
            ChunkState::Ready
        } else if word.claimed.load(Ordering::Acquire) & bit != 0 {
            ChunkState::Claimed
        } else {
            ChunkState::Missing
        }
    }

    /// Records that the chunk is in the cache and verified: call it after it is written.
    ///
    /// # Errors
    ///
    /// The file cannot be written. The chunk counts as ready nevertheless, for this process.
    pub fn set_ready(&self, chunk: ChunkIndex) -> io::Result<()> {
        let (index, bit) = position(chunk);
        self.change(index, |word| {
            word.ready.fetch_or(bit, Ordering::AcqRel);
            word.claimed.fetch_and(!bit, Ordering::AcqRel);
        })
    }

    /// Records that the cache does not hold the chunk after all.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn clear(&self, chunk: ChunkIndex) -> io::Result<()> {
        let (index, bit) = position(chunk);
        self.change(index, |word| {
            word.ready.fetch_and(!bit, Ordering::AcqRel);
            word.claimed.fetch_and(!bit, Ordering::AcqRel);
        })
    }

    /// Records that the cache may hold the chunk: it is to be verified before use.
    ///
    /// # Errors
    ///
    /// The file cannot be written. The chunk counts as claimed nevertheless, for this process.
    pub(super) fn claim(&self, chunk: ChunkIndex) -> io::Result<()> {
        let (index, bit) = position(chunk);
        self.change(index, |word| {
            word.claimed.fetch_or(bit, Ordering::AcqRel);
        })
    }

    /// Records that the chunk, if the cache holds it, is to be verified before use.
    ///
    /// # Errors
    ///
    /// The file cannot be written. The chunk counts as claimed nevertheless, for this process.
    pub fn doubt(&self, chunk: ChunkIndex) -> io::Result<()> {
        if self.state(chunk) != ChunkState::Ready {
            return Ok(());
        }
        let (index, bit) = position(chunk);
        self.change(index, |word| {
            word.claimed.fetch_or(bit, Ordering::AcqRel);
            word.ready.fetch_and(!bit, Ordering::AcqRel);
        })
    }

    /// Records that all that the cache holds is to be verified before use.
    ///
    /// # Errors
    ///
    /// The file cannot be written, from some chunk on. All chunks count as claimed nevertheless, for this process.
    pub fn doubt_all(&self) -> io::Result<()> {
        let mut result = Ok(());
        for (number, segment) in self.segments.iter().enumerate() {
            for (index, word) in segment.get().into_iter().flatten().enumerate() {
                if word.ready.load(Ordering::Acquire) != 0 {
                    let changed = self.change(number * SEGMENT_WORDS + index, |word| {
                        let ready = word.ready.load(Ordering::Acquire);
                        word.claimed.fetch_or(ready, Ordering::AcqRel);
                        word.ready.fetch_and(!ready, Ordering::AcqRel);
                    });
                    result = result.and(changed);
                }
            }
        }
        result
    }

    /// Has the file say nothing, so that the next process finds an empty map; this one knows what it knew.
    ///
    /// # Errors
    ///
    /// The file cannot be changed.
    pub(super) fn forget(&self) -> io::Result<()> {
        disk::set_len(&self.file.lock().unwrap_or_else(PoisonError::into_inner), 0)
    }

    /// Bytes on disk that the file takes.
    ///
    /// # Errors
    ///
    /// The file cannot be looked at.
    pub(super) fn bytes_on_disk(&self) -> io::Result<u64> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(on_disk(&file.metadata()?))
    }

    fn change(&self, index: usize, change: impl FnOnce(&Word)) -> io::Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let word = self.word_or_new(index);
        change(word);
        let bytes = encode_word(word.ready.load(Ordering::Acquire), word.claimed.load(Ordering::Acquire));
        disk::write_at(&file, &bytes, WORDS_START + (index * WORD_SIZE) as u64)
    }

    fn word(&self, index: usize) -> Option<&Word> {
        self.segments.get(index / SEGMENT_WORDS)?.get()?.get(index % SEGMENT_WORDS)
    }

    fn word_or_new(&self, index: usize) -> &Word {
        let segment = self.segments[index / SEGMENT_WORDS]
            .get_or_init(|| (0..SEGMENT_WORDS).map(|_| Word::default()).collect());
        &segment[index % SEGMENT_WORDS]
    }
}

impl std::fmt::Debug for ChunkMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkMap").finish_non_exhaustive()
    }
}

/// The word of a chunk and its bit there. Indexes beyond the limit share a word with others below it; the format's
/// reader refuses them long before.
fn position(ChunkIndex(chunk): ChunkIndex) -> (usize, u64) {
    let chunk = chunk % CHUNK_LIMIT;
    (chunk as usize / 64, 1 << (chunk % 64))
}

/// All words of the file that a map can have; of a torn last one nothing.
fn read_words(file: &File) -> io::Result<Vec<u8>> {
    let most = SEGMENTS * SEGMENT_WORDS * WORD_SIZE;
    let size = usize::try_from(file.metadata()?.len().saturating_sub(WORDS_START)).unwrap_or(most);
    let mut words = vec![0; size.min(most) / WORD_SIZE * WORD_SIZE];
    file.read_exact_at(&mut words, WORDS_START)?;
    Ok(words)
}

fn encode_header(boot: BootId) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..].copy_from_slice(&boot.0);
    header
}

fn encode_word(ready: u64, claimed: u64) -> [u8; WORD_SIZE] {
    let mut bytes = [0; WORD_SIZE];
    bytes[..8].copy_from_slice(&ready.to_le_bytes());
    bytes[8..].copy_from_slice(&claimed.to_le_bytes());
    bytes
}

fn decode_word(bytes: &[u8]) -> (u64, u64) {
    let number = |half: &[u8]| half.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    (number(&bytes[..8]), number(&bytes[8..]))
}
