//! Images that say of somebody's blob what is not so.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use fuse_daemon::control::BlobId;
use rafs::blob::{Blob, Chunk};
use rafs::bootstrap::{self, Bootstrap, ChunkUse, WriteOptions};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;

use super::image::{Claim, ClaimedPiece, Image};
use super::random::Random;

/// What is wrong of a chunk.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Its stored bytes are another's.
    Stored,
    /// Its place in the uncompressed blob is another's.
    Place,
    /// It begins a block earlier or later, and overlaps what is there.
    Overlap,
    Digest,
    Size,
    /// At its place is another's content, digest and all: what it says is true of the bytes that it leads to.
    Content,
    /// It and another are in each other's place.
    Order,
    /// All of it is another's.
    Everything,
}

const LIES: [Lie; 8] = [
    Lie::Stored,
    Lie::Place,
    Lie::Overlap,
    Lie::Digest,
    Lie::Size,
    Lie::Content,
    Lie::Order,
    Lie::Everything,
];

/// What chunks in the uncompressed blob are aligned to, in bytes.
const BLOCK: u64 = 4096;

/// An image like `victim`, the image of that number, which was written from `merged`, with lies about one of its blobs; none if it has nothing to
/// lie about.
pub(super) fn liar(
    random: &mut Random,
    (number, victim): (usize, &Image),
    merged: &rafs::tree::Image,
    dir: &Path,
    name: &str,
) -> Result<Option<Image>> {
    let mut merged = merged.clone();
    let candidates: Vec<usize> =
        (0..merged.blobs.len()).filter(|&blob| merged.blobs[blob].chunks.len() > 1).collect();
    if candidates.is_empty() {
        return Ok(None);
    }
    let blob = &mut merged.blobs[*random.one_of(&candidates)];
    if random.chance(20) {
        lie_of_blob(random, blob);
    }
    // A few of any kind, which other images may not describe; or many of the same.
    let (count, kind) = match random.chance(50) {
        true => (random.within(1..4), None),
        false => (blob.chunks.len() as u64 / 2, Some(*random.one_of(&LIES))),
    };
    for _ in 0..count {
        let kind = kind.unwrap_or_else(|| *random.one_of(&LIES));
        lie(random, &mut blob.chunks, kind);
    }
    let path = dir.join(format!("{name}.boot"));
    let options = WriteOptions { chunk_size: merged.blobs[0].chunk_size, ..WriteOptions::default() };
    if bootstrap::write(&merged, &options, &mut File::create(&path)?).is_err() {
        return Ok(None);
    }
    Ok(image(format!("{name} of {}", victim.name), path, number, victim))
}

/// The bootstrap of `victim`, the image of that number, with bytes changed anywhere in it; none if it is not to be taken for a
/// bootstrap any more.
pub(super) fn garbled(
    random: &mut Random,
    (number, victim): (usize, &Image),
    dir: &Path,
    name: &str,
) -> Result<Option<Image>> {
    let mut bytes = fs::read(&victim.bootstrap)?;
    for _ in 0..random.within(1..12) {
        let at = random.within(0..bytes.len() as u64) as usize;
        bytes[at] =
            if random.chance(50) { bytes[at] ^ (1 << random.within(0..8)) } else { random.next() as u8 };
    }
    let path = dir.join(format!("{name}.boot"));
    fs::write(&path, bytes)?;
    Ok(image(format!("{name}, garbled, of {}", victim.name), path, number, victim))
}

/// The image that a bootstrap describes, if it is to be taken for one.
fn image(name: String, path: PathBuf, number: usize, victim: &Image) -> Option<Image> {
    let read = Bootstrap::open(&path).ok()?;
    let blobs: Option<Vec<BlobId>> = read.blobs().iter().map(|blob| blob.id.map(BlobId)).collect();
    let claims = victim.paths().filter_map(|file| Some((file.to_owned(), claims(&read, file)?))).collect();
    Some(Image {
        name,
        bootstrap: path,
        blobs: blobs?,
        files: BTreeMap::new(),
        claims,
        homes: victim.homes.clone(),
        hostile_to: Some(number),
        fetches_to_mount: victim.fetches_to_mount,
    })
}

/// What a bootstrap says of a file, as far as it says anything.
fn claims(read: &Bootstrap, file: &str) -> Option<Arc<[ClaimedPiece]>> {
    let nid = read.lookup_path(file.as_bytes()).ok()??;
    let pieces = read.chunks(nid, 0..u64::MAX).ok()?.map_while(Result::ok);
    Some(pieces.map(|piece| ClaimedPiece { range: range(&piece), claim: claim(read, &piece) }).collect())
}

fn range(piece: &ChunkUse) -> std::ops::Range<u64> {
    piece.file_offset..piece.file_offset.saturating_add(piece.len.into())
}

fn claim(read: &Bootstrap, piece: &ChunkUse) -> Claim {
    let blob: Option<&Blob> = read.blobs().get(usize::from(piece.blob.0));
    let (Some(blob), Ok(chunk)) = (blob, read.chunk(piece.blob, piece.chunk)) else { return Claim::Nothing };
    if read.needs_chunk_info(piece.blob) {
        // What comes with the blob then counts in place of what the bootstrap has.
        return Claim::Nothing;
    }
    let end = u64::from(piece.offset_in_chunk) + u64::from(piece.len);
    let size = u64::from(chunk.uncompressed_size);
    if (piece.offset_in_chunk, end) == (0, size) {
        Claim::Digest(blob.digester, chunk.digest)
    } else if end > size {
        Claim::Impossible
    } else {
        Claim::Nothing
    }
}

/// The blob as a whole is not what it is said to be.
fn lie_of_blob(random: &mut Random, blob: &mut Blob) {
    match random.within(0..4) {
        0 => {
            let others = [Compressor::Zstd { level: 1 }, Compressor::Lz4, Compressor::None];
            blob.compressor = *random.one_of(&others);
        }
        1 => {
            let others = [DigestAlgorithm::Blake3, DigestAlgorithm::Sha256];
            blob.digester = *random.one_of(&others);
        }
        2 => blob.stored_size /= 2,
        _ => (blob.stored_size, blob.compressed_size) = (blob.stored_size * 2, blob.compressed_size * 2),
    }
}

fn lie(random: &mut Random, chunks: &mut [Chunk], kind: Lie) {
    let count = chunks.len() as u64;
    let (liar, other_one) = (random.within(0..count) as usize, random.within(0..count) as usize);
    let other = chunks[other_one].clone();
    let is_batched = chunks[liar].batch.is_some() || other.batch.is_some();
    let chunk = &mut chunks[liar];
    match kind {
        Lie::Content => {
            *chunk = Chunk { uncompressed_offset: chunk.uncompressed_offset, ..other };
        }
        Lie::Order => chunks.swap(liar, other_one),
        Lie::Everything => *chunk = other,
        Lie::Overlap => {
            let later = chunk.uncompressed_offset + BLOCK;
            let earlier = chunk.uncompressed_offset.checked_sub(BLOCK);
            chunk.uncompressed_offset = earlier.filter(|_| random.chance(50)).unwrap_or(later);
        }
        Lie::Place => chunk.uncompressed_offset = other.uncompressed_offset,
        // Where the stored bytes of a batch are is not in the bootstrap.
        _ if is_batched => chunk.digest.0[0] ^= 0x55,
        Lie::Stored if chunk.compressed && other.compressed => {
            (chunk.compressed_offset, chunk.compressed_size) =
                (other.compressed_offset, other.compressed_size);
        }
        // What is stored as it is has the size that it has.
        Lie::Stored => chunk.compressed_offset = chunk.compressed_offset.saturating_sub(1),
        Lie::Digest => chunk.digest.0[0] ^= 0x55,
        Lie::Size if chunk.uncompressed_size > 1 => {
            chunk.uncompressed_size -= 1;
            chunk.compressed_size -= u32::from(!chunk.compressed);
        }
        Lie::Size => chunk.digest.0[1] ^= 0x55,
    }
}
