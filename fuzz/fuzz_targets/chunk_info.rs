//! Chunk information of any bytes. The first bytes say what the bootstrap claims about it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs::blob::meta::BlobMeta;
use rafs::blob::{Blob, ChunkIndex, MetaLocation};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::layout::blob_meta::{MAGIC, MetaHeader};
use zerocopy::{FromZeros, IntoBytes};

/// What the first bytes say.
#[derive(Clone, Copy)]
struct Claims {
    kind: u8,
    features: u32,
    entries: u32,
    contexts: u32,
    size: u64,
}

fn claims(input: &[u8]) -> Option<(Claims, &[u8])> {
    let (head, rest) = input.split_first_chunk::<16>()?;
    let short = |at: usize| u32::from(u16::from_le_bytes([head[at], head[at + 1]]));
    let claims = Claims {
        kind: head[0],
        // The low bits say more than the others.
        features: short(1) | u32::from(head[3]) << 24,
        entries: short(4) | u32::from(head[6] & 1) << 24,
        contexts: short(7),
        size: u64::from(u32::from_le_bytes([head[9], head[10], head[11], head[12]])) << (head[13] & 31),
    };
    Some((claims, rest))
}

fuzz_target!(|input: &[u8]| {
    let Some((claims, bytes)) = claims(input) else { return };
    // Entries, and a header that is mended or not.
    let mut bytes = bytes.to_vec();
    let array = if claims.kind & 0x40 != 0 { bytes.len() } else { bytes.len().saturating_sub(4096) };
    let compressor = match claims.kind % 4 {
        0 => Compressor::Lz4,
        1 => Compressor::Zstd { level: 0 },
        _ => Compressor::None,
    };
    let uncompressed_size = if claims.kind & 0x80 != 0 { array as u64 } else { claims.size % (1 << 20) };
    if claims.kind & 0x40 != 0 {
        bytes.extend_from_slice(header(claims, array as u64, uncompressed_size).as_bytes());
    }
    let blob = Blob {
        id: None,
        stored_size: u64::MAX,
        compressed_size: claims.size,
        uncompressed_size: claims.size % (1 << 45),
        chunk_size: 1 << 20,
        compressor,
        digester: DigestAlgorithm::Blake3,
        features: claims.features,
        meta: Some(MetaLocation {
            offset: claims.size,
            compressed_size: array as u64,
            uncompressed_size,
            compressor,
        }),
        toc: None,
        chunks: Vec::new(),
    };
    let padded = bytes.clone();
    let from_file = BlobMeta::from_file(&blob, padded);
    for mut meta in BlobMeta::from_stored(&blob, &bytes).into_iter().chain(from_file) {
        let _ = meta.set_digests(vec![0; meta.len() as usize * 32]);
        for index in 0..meta.len() {
            if let Ok(info) = meta.chunk(ChunkIndex(index)) {
                assert!(info.digest.is_some());
            }
        }
        assert!(meta.chunk(ChunkIndex(meta.len())).is_err());
    }
});

fn header(claims: Claims, compressed_size: u64, uncompressed_size: u64) -> MetaHeader {
    let mut header = MetaHeader::new_zeroed();
    header.magic.set(MAGIC);
    header.magic2.set(MAGIC);
    header.features.set(claims.features);
    header.entries.set(claims.entries);
    header.offset.set(claims.size);
    header.compressed_size.set(compressed_size);
    header.uncompressed_size.set(uncompressed_size);
    header.context_offset.set(uncompressed_size.saturating_sub(u64::from(claims.contexts) * 40));
    header.context_count.set(claims.contexts);
    header
}
