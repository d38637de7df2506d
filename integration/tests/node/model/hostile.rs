//! Images that say of somebody's blob what is not so.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::Result;
use rafs::blob::Chunk;
use rafs::bootstrap::{self, WriteOptions};

use super::image::Image;
use super::random::Random;
use super::world::is_readable;

/// What is wrong of a chunk.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Its stored bytes are another's.
    Stored,
    /// Its place in the uncompressed blob is another's.
    Place,
    Digest,
    Size,
    /// All of it is another's.
    Everything,
}

const LIES: [Lie; 5] = [Lie::Stored, Lie::Place, Lie::Digest, Lie::Size, Lie::Everything];

/// An image like `victim`, the image of that number, which was written from `merged`, with lies about one of its blobs; none if it has nothing to
/// lie about.
pub(super) fn image(
    random: &mut Random,
    (number, victim): (usize, &Image),
    merged: &rafs::tree::Image,
    dir: &Path,
    name: String,
) -> Result<Option<Image>> {
    let mut merged = merged.clone();
    let candidates: Vec<usize> =
        (0..merged.blobs.len()).filter(|&blob| merged.blobs[blob].chunks.len() > 1).collect();
    if candidates.is_empty() {
        return Ok(None);
    }
    let chunks = &mut merged.blobs[*random.one_of(&candidates)].chunks;
    // A few of any kind, which other images may not describe; or many of the same.
    let (count, kind) = match random.chance(50) {
        true => (random.within(1..4), None),
        false => (chunks.len() as u64 / 2, Some(*random.one_of(&LIES))),
    };
    for _ in 0..count {
        let kind = kind.unwrap_or_else(|| *random.one_of(&LIES));
        lie(random, chunks, kind);
    }
    let path = dir.join(format!("{name}.boot"));
    let options = WriteOptions { chunk_size: merged.blobs[0].chunk_size, ..WriteOptions::default() };
    let written = bootstrap::write(&merged, &options, &mut File::create(&path)?);
    if written.is_err() || !is_readable(&path) {
        return Ok(None);
    }
    Ok(Some(Image {
        name: format!("{name} of {}", victim.name),
        bootstrap: path,
        blobs: victim.blobs.clone(),
        // They are looked for, whatever they hold.
        files: BTreeMap::new(),
        homes: victim.homes.clone(),
        hostile_to: Some(number),
        fetches_to_mount: victim.fetches_to_mount,
    }))
}

fn lie(random: &mut Random, chunks: &mut [Chunk], kind: Lie) {
    let count = chunks.len() as u64;
    let (liar, other) = (random.within(0..count) as usize, random.within(0..count) as usize);
    let other = chunks[other].clone();
    let chunk = &mut chunks[liar];
    if chunk.batch.is_some() || other.batch.is_some() {
        chunk.digest.0[0] ^= 0x55;
        return;
    }
    match kind {
        Lie::Stored if chunk.compressed && other.compressed => {
            (chunk.compressed_offset, chunk.compressed_size) =
                (other.compressed_offset, other.compressed_size);
        }
        // What is stored as it is has the size that it has.
        Lie::Stored => chunk.compressed_offset = chunk.compressed_offset.saturating_sub(1),
        Lie::Place => chunk.uncompressed_offset = other.uncompressed_offset,
        Lie::Digest => chunk.digest.0[0] ^= 0x55,
        Lie::Size if chunk.uncompressed_size > 1 => {
            chunk.uncompressed_size -= 1;
            chunk.compressed_size -= u32::from(!chunk.compressed);
        }
        Lie::Size => chunk.digest.0[1] ^= 0x55,
        Lie::Everything => *chunk = other,
    }
}
