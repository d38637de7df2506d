//! The blob tables.

use crate::blob::{Blob, BlobIndex};
use crate::bootstrap::read::data::Data;
use crate::bootstrap::read::{At, ReadError};
use crate::compress::Compressor;
use crate::digest::DigestAlgorithm;
use crate::layout::excess;
use crate::layout::flags::{blob as features, superblock as flags};
use crate::layout::v5::{BlobDetails, RafsSuperblock};

const WHAT: &str = "blob table";

pub(super) fn read(data: &Data, sb: &RafsSuperblock) -> Result<Vec<(Blob, u32)>, ReadError> {
    let size = u64::from(sb.blob_table_size.get());
    let offset = if size == 0 { 0 } else { sb.blob_table_offset.get() };
    let ids = ids(data.bytes(WHAT, offset, size)?);
    let corrupt = |expected| ReadError::corrupt(WHAT, At::Byte(offset), expected);
    let ids = ids.ok_or(corrupt("ids of 64 hexadecimal digits"))?;
    if ids.len() > BlobIndex::LIMIT {
        return Err(corrupt("at most 254 entries"));
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let count = u64::from(sb.blob_details_entries.get());
    if count == 0 {
        return Err(ReadError::Unsupported("an image of nydus 1.x, without an extended blob table"));
    }
    if count != ids.len() as u64 {
        return Err(corrupt("as many entries as the extended blob table"));
    }
    let offset = sb.blob_details_offset.get();
    let details: &[BlobDetails] =
        data.table("extended blob table", offset, count * size_of::<BlobDetails>() as u64)?;
    ids.into_iter().zip(details).map(|(id, details)| blob(id, details, sb)).collect()
}

/// The ids in a blob table, padded at its end.
fn ids(mut table: &[u8]) -> Option<Vec<crate::digest::Digest>> {
    let mut ids = Vec::new();
    while table.len() > 8 {
        let id = table.get(8..72)?;
        ids.push(std::str::from_utf8(id).ok()?.parse().ok()?);
        table = &table[72..];
        match table.split_first() {
            // Between two ids, or padding behind the last one.
            Some((0, rest)) => table = rest,
            Some(_) => return None,
            None => {}
        }
    }
    Some(ids)
}

fn blob(
    id: crate::digest::Digest,
    details: &BlobDetails,
    sb: &RafsSuperblock,
) -> Result<(Blob, u32), ReadError> {
    let bits = details.features.get();
    let unsupported = [
        (features::ENCRYPTED, "an encrypted blob (AES-128-XTS)"),
        (features::ZRAN, "a blob that indexes a gzip stream (zran)"),
        (features::BATCH, "a blob with batches in RAFS v5"),
    ];
    if let Some((_, name)) = unsupported.into_iter().find(|(bit, _)| bits & bit != 0) {
        return Err(ReadError::Unsupported(name));
    }
    let flags = sb.flags.get();
    let compressor = match flags {
        _ if flags & flags::COMPRESSION_ZSTD != 0 => Compressor::Zstd { level: 0 },
        _ if flags & flags::COMPRESSION_LZ4 != 0 => Compressor::Lz4,
        _ => Compressor::None,
    };
    let digester = match flags {
        _ if flags & flags::HASH_SHA256 != 0 => DigestAlgorithm::Sha256,
        _ => DigestAlgorithm::Blake3,
    };
    let (chunks, stored) = (details.chunk_count.get(), details.compressed_size.get());
    let uncompressed = details.uncompressed_size.get();
    if let Some(expected) = excess(chunks, stored, uncompressed) {
        let found = format_args!("{chunks} chunks, {stored} and {uncompressed} bytes");
        return Err(ReadError::corrupt(WHAT, At::Byte(0), expected).found(found));
    }
    let blob = Blob {
        id: Some(id),
        stored_size: details.compressed_size.get(),
        compressed_size: details.compressed_size.get(),
        uncompressed_size: details.uncompressed_size.get(),
        chunk_size: sb.chunk_size.get(),
        compressor,
        digester,
        // What a stream has behind its chunks says RAFS v6 alone.
        features: bits & !(features::INLINED_FS_META | features::HAS_TOC | features::INLINED_CHUNK_DIGEST),
        meta: None,
        toc: None,
        chunks: Vec::new(),
    };
    Ok((blob, details.chunk_count.get()))
}
