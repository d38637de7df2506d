//! Chunk information of any bytes. The first bytes say what the bootstrap claims about it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rafs::blob::meta::BlobMeta;
use rafs::blob::{Blob, ChunkIndex, MetaLocation};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;

fuzz_target!(|input: (u8, u32, u64, u64, &[u8])| {
    let (kind, features, offset, size, bytes) = input;
    let compressor = match kind % 3 {
        0 => Compressor::None,
        1 => Compressor::Lz4,
        _ => Compressor::Zstd { level: 0 },
    };
    let stored = (bytes.len() as u64).saturating_sub(4096);
    let uncompressed_size = if kind & 0x80 != 0 { stored } else { size % (1 << 20) };
    let blob = Blob {
        id: None,
        stored_size: u64::MAX,
        compressed_size: size,
        uncompressed_size: size % (1 << 45),
        chunk_size: 1 << 20,
        compressor,
        digester: DigestAlgorithm::Blake3,
        features,
        meta: Some(MetaLocation { offset, compressed_size: stored, uncompressed_size, compressor }),
        toc: None,
        chunks: Vec::new(),
    };
    let from_file = BlobMeta::from_file(&blob, bytes.to_vec());
    for mut meta in BlobMeta::from_stored(&blob, bytes).into_iter().chain(from_file) {
        let _ = meta.set_digests(vec![0; meta.len() as usize * 32]);
        for index in 0..meta.len() {
            if let Ok(info) = meta.chunk(ChunkIndex(index)) {
                assert!(info.digest.is_some());
            }
        }
        assert!(meta.chunk(ChunkIndex(meta.len())).is_err());
    }
});
