//! What is known of a blob's chunks, on disk: `<blob>.places` beside the data. It says what the bits of the chunk map
//! mean, so that a daemon that starts again need not verify what this boot has verified.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `NYDPLACE` |
//! | 8 | 4 | version | 2; files without the magic are of version 1, and not read |
//! | 12 | 4 | chunk size | in bytes |
//! | 16 | 4 | compressor | 0 none, 1 lz4, 3 zstd |
//! | 20 | 4 | digester | 0 BLAKE3, 1 SHA-256 |
//! | 24 | 8 | length | bytes that the data file was given; where it is shorter, somebody else has changed it |
//! | 32 | 32 | – | 0 |
//! | 64 + 72 n | 8 | offset | of a chunk in the uncompressed blob, in bytes |
//! | 72 + 72 n | 8 | stored offset | of its stored bytes in the blob |
//! | 80 + 72 n | 4 | index | of the chunk; they ascend |
//! | 84 + 72 n | 4 | flags | 1: compressed, 2: member of a batch |
//! | 88 + 72 n | 4 | size | uncompressed, in bytes |
//! | 92 + 72 n | 4 | stored size | in bytes; of a batch member, that of the batch |
//! | 96 + 72 n | 4 | batch | its index, for members |
//! | 100 + 72 n | 4 | offset in the batch | for members, in bytes |
//! | 104 + 72 n | 32 | digest | of the uncompressed bytes |
//!
//! Numbers are little-endian. The file is replaced as a whole, never changed.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rafs::blob::{BatchMember, Blob, Chunk, ChunkIndex};
use rafs::compress::Compressor;
use rafs::digest::{Digest, DigestAlgorithm};

use super::chunk_map::CHUNK_LIMIT;
use super::description::{Descriptions, Record};
use super::disk;

const MAGIC: &[u8; 8] = b"NYDPLACE";
const VERSION: u32 = 2;
const HEADER_SIZE: usize = 64;
const RECORD_SIZE: usize = 72;

const COMPRESSED: u32 = 1;
const IN_BATCH: u32 = 2;

/// Writes what is known, and the length that the data file was given.
///
/// # Errors
///
/// The file cannot be written or replaced.
pub(super) fn save(path: &Path, known: &Descriptions, length: u64) -> io::Result<()> {
    disk::replace(path, |file| {
        file.write_all(&encode_header(known.coding.as_deref(), length))?;
        known.records().iter().try_for_each(|record| file.write_all(&encode(record)))
    })?;
    // Not synced: after another boot nothing relies on it.
    Ok(())
}

/// Deletes the file, if it is there.
///
/// # Errors
///
/// It cannot be deleted.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    disk::remove(path)?;
    disk::remove(&disk::unfinished(path)).map(drop)
}

/// What is known, all of it from images that are gone, and the length of the data file; `None` if the file is not there,
/// of another version, or broken.
///
/// # Errors
///
/// The file is there and cannot be read.
pub(super) fn load(path: &Path) -> io::Result<Option<(Descriptions, u64)>> {
    let most = (HEADER_SIZE + CHUNK_LIMIT as usize * RECORD_SIZE) as u64;
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() <= most => Ok(parse(&std::fs::read(path)?)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(bytes: &[u8]) -> Option<(Descriptions, u64)> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_SIZE>()?;
    let (records, []) = rest.as_chunks::<RECORD_SIZE>() else { return None };
    if header[..8] != *MAGIC || number_4(header, 8) != VERSION {
        return None;
    }
    let coding = match number_4(header, 12) {
        0 => None,
        chunk_size => Some(Arc::new(coding(chunk_size, number_4(header, 16), number_4(header, 20))?)),
    };
    let records = records.iter().map(decode).collect::<Option<Vec<_>>>()?;
    Some((Descriptions::of_gone(coding, records)?, number_8(header, 24)))
}

fn encode_header(coding: Option<&Blob>, length: u64) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    if let Some(coding) = coding {
        let compressor: u32 = match coding.compressor {
            Compressor::None => 0,
            Compressor::Lz4 => 1,
            Compressor::Zstd { .. } => 3,
        };
        let digester: u32 = match coding.digester {
            DigestAlgorithm::Blake3 => 0,
            DigestAlgorithm::Sha256 => 1,
        };
        header[12..16].copy_from_slice(&coding.chunk_size.to_le_bytes());
        header[16..20].copy_from_slice(&compressor.to_le_bytes());
        header[20..24].copy_from_slice(&digester.to_le_bytes());
    }
    header[24..32].copy_from_slice(&length.to_le_bytes());
    header
}

fn coding(chunk_size: u32, compressor: u32, digester: u32) -> Option<Blob> {
    let compressor = match compressor {
        0 => Compressor::None,
        1 => Compressor::Lz4,
        3 => Compressor::Zstd { level: 0 },
        _ => return None,
    };
    let digester = match digester {
        0 => DigestAlgorithm::Blake3,
        1 => DigestAlgorithm::Sha256,
        _ => return None,
    };
    Some(Blob::coding(chunk_size, compressor, digester))
}

fn encode(record: &Record) -> [u8; RECORD_SIZE] {
    let mut bytes = [0; RECORD_SIZE];
    let chunk = &record.chunk;
    let compressed = if chunk.compressed { COMPRESSED } else { 0 };
    let in_batch = if chunk.batch.is_some() { IN_BATCH } else { 0 };
    let batch = chunk.batch.unwrap_or(BatchMember { index: 0, offset: 0 });
    bytes[..8].copy_from_slice(&chunk.uncompressed_offset.to_le_bytes());
    bytes[8..16].copy_from_slice(&chunk.compressed_offset.to_le_bytes());
    let numbers = [
        record.index.0,
        compressed | in_batch,
        chunk.uncompressed_size,
        chunk.compressed_size,
        batch.index,
        batch.offset,
    ];
    for (place, number) in bytes[16..40].as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
        *place = number.to_le_bytes();
    }
    bytes[40..].copy_from_slice(&chunk.digest.0);
    bytes
}

fn decode(bytes: &[u8; RECORD_SIZE]) -> Option<Record> {
    let flags = number_4(bytes, 20);
    let batch = BatchMember { index: number_4(bytes, 32), offset: number_4(bytes, 36) };
    let chunk = Chunk {
        digest: Digest(*bytes.last_chunk::<32>()?),
        compressed_offset: number_8(bytes, 8),
        compressed_size: number_4(bytes, 28),
        uncompressed_offset: number_8(bytes, 0),
        uncompressed_size: number_4(bytes, 24),
        compressed: flags & COMPRESSED != 0,
        batch: (flags & IN_BATCH != 0).then_some(batch),
    };
    let index = number_4(bytes, 16);
    (index < CHUNK_LIMIT && chunk.uncompressed_size > 0).then(|| Record::of_gone(ChunkIndex(index), chunk))
}

fn number_4(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

fn number_8(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}
