//! What a blob stream holds behind its chunks is what its layer has.

use rafs::blob::decode::{DecodeError, decode};
use rafs::blob::meta::{BlobMeta, MetaError, encode};
use rafs::blob::stream::{Toc, TocError};
use rafs::blob::{BatchMember, Chunk, ChunkIndex};
use rafs::bootstrap::{self, WriteOptions};
use rafs::compress::Compressor;
use rafs::digest::DigestAlgorithm;
use rafs::layout::{flags, toc};
use rafs::tree::{Layer, Tree};

use crate::support::{Builder, Format, sample};

const COMPRESSORS: [Compressor; 3] = [Compressor::None, Compressor::Lz4, Compressor::Zstd { level: 3 }];

fn table(layer: &Layer, stream: &[u8]) -> Toc {
    let size = stream.len() as u64;
    let digest = layer.blobs[0].toc.map(|(digest, _)| digest);
    Toc::parse(&stream[Toc::range(size).start as usize..], size, digest).unwrap()
}

fn part(layer: &Layer, stream: &[u8], name: &str) -> Vec<u8> {
    let table = table(layer, stream);
    let part = table.part(name).unwrap();
    part.decode(&stream[part.range.start as usize..part.range.end as usize]).unwrap()
}

#[test]
fn the_id_is_the_digest_of_the_stream() {
    let (layer, stream) = sample(Format::default()).finish();
    assert_eq!(layer.blobs[0].id, Some(DigestAlgorithm::Sha256.digest(&stream)));
    assert_eq!(layer.blobs[0].stored_size, stream.len() as u64);
}

#[test]
fn the_table_of_contents_names_every_part_with_its_digest() {
    for compressor in COMPRESSORS {
        let (layer, stream) = sample(Format { compressor, ..Format::default() }).finish();
        let names: Vec<_> = table(&layer, &stream).parts.into_iter().map(|part| part.name).collect();
        assert_eq!(names, [toc::BLOB, toc::META, toc::META_HEADER, toc::DIGESTS, toc::BOOTSTRAP]);
        let digests: Vec<u8> = layer.blobs[0].chunks.iter().flat_map(|chunk| chunk.digest.0).collect();
        assert!(part(&layer, &stream, toc::DIGESTS) == digests);
        let boot = rafs::bootstrap::Bootstrap::from_bytes(part(&layer, &stream, toc::BOOTSTRAP)).unwrap();
        assert_eq!(boot.blobs()[0].id, None);
        let range = &table(&layer, &stream).parts[0].range.clone();
        assert_eq!(*range, 0..layer.blobs[0].compressed_size);
    }
}

#[test]
fn a_layer_without_content_has_a_bootstrap_alone() {
    let mut builder = Builder::new(Format::default());
    builder.directory(Tree::ROOT, b"empty");
    let (layer, stream) = builder.finish();
    let names: Vec<_> = table(&layer, &stream).parts.into_iter().map(|part| part.name).collect();
    assert_eq!(names, [toc::BOOTSTRAP]);
    let boot = rafs::bootstrap::Bootstrap::from_bytes(part(&layer, &stream, toc::BOOTSTRAP)).unwrap();
    assert!(boot.lookup_path(b"empty").unwrap().is_some());
}

#[test]
fn another_table_of_contents_is_refused() {
    let (layer, stream) = sample(Format::default()).finish();
    let size = stream.len() as u64;
    let parse = |stream: &[u8]| {
        let digest = layer.blobs[0].toc.map(|(digest, _)| digest);
        Toc::parse(&stream[Toc::range(size).start as usize..], size, digest)
    };
    let mut changed = stream.clone();
    *changed.iter_mut().nth_back(700).unwrap() ^= 1;
    assert!(matches!(parse(&changed), Err(TocError::Digest { .. })));
    let mut changed = stream.clone();
    *changed.iter_mut().nth_back(400).unwrap() ^= 1;
    assert!(matches!(parse(&changed), Err(TocError::Missing)), "the tar header's checksum is wrong");
    assert!(matches!(Toc::parse(&stream[..4096], 4096, None), Err(TocError::Missing)));
    assert!(matches!(Toc::parse(&[], 0, None), Err(TocError::Missing)));
}

#[test]
fn a_changed_part_is_refused() {
    let (layer, mut stream) = sample(Format::default()).finish();
    let table = table(&layer, &stream);
    for part in table.parts.iter().filter(|part| part.name != toc::BLOB) {
        let range = part.range.start as usize..part.range.end as usize;
        stream[range.start + range.len() / 2] ^= 1;
        part.decode(&stream[range.clone()]).unwrap_err();
        part.decode(&stream[range.start..range.end - 1]).unwrap_err();
    }
}

#[test]
fn chunk_information_is_read_as_it_was_written() {
    for compressor in COMPRESSORS {
        let (layer, stream) = sample(Format { compressor, ..Format::default() }).finish();
        let blob = &layer.blobs[0];
        let range = BlobMeta::stored_range(blob).unwrap();
        let stored = BlobMeta::from_stored(blob, &stream[range.start as usize..range.end as usize]).unwrap();
        let file = BlobMeta::from_file(blob, encode(blob, range.start).unwrap().to_file()).unwrap();
        for mut meta in [stored, file] {
            assert_eq!(meta.len() as usize, blob.chunks.len());
            meta.set_digests(part(&layer, &stream, toc::DIGESTS)).unwrap();
            for (index, chunk) in blob.chunks.iter().enumerate() {
                let info = meta.chunk(ChunkIndex(index as u32)).unwrap();
                let digest = info.digest.unwrap();
                assert_eq!(info.with_digest(digest), *chunk);
            }
            let beyond = meta.chunk(ChunkIndex(meta.len()));
            assert!(matches!(beyond, Err(MetaError::NoSuchChunk { .. })));
            assert!(matches!(meta.set_digests(vec![0; 31]), Err(MetaError::Digests { found: 31, .. })));
        }
    }
}

/// A blob of one chunk of 2 MiB and a batch of two, whose stored bytes are `data`.
fn with_batch() -> (Builder, Vec<u8>, Vec<Vec<u8>>) {
    let mut builder = Builder::new(Format { chunk_size: 1 << 24, ..Format::default() });
    builder.blob.features = flags::blob::CHUNK_INFO_V2 | flags::blob::BATCH;
    let contents = [test_support::text(1, 2 << 20), test_support::text(2, 5000), test_support::text(3, 70)];
    let alone = zstd::bulk::compress(&contents[0], 3).unwrap();
    let batch = zstd::bulk::compress(&contents[1..].concat(), 3).unwrap();
    let digest = |index: usize| DigestAlgorithm::Blake3.digest(&contents[index]);
    let member = |index: usize, uncompressed_offset, offset| Chunk {
        digest: digest(index),
        compressed_offset: alone.len() as u64,
        compressed_size: batch.len() as u32,
        uncompressed_offset,
        uncompressed_size: contents[index].len() as u32,
        compressed: true,
        batch: Some(BatchMember { index: 0, offset }),
    };
    let first = Chunk {
        digest: digest(0),
        compressed_offset: 0,
        compressed_size: alone.len() as u32,
        uncompressed_offset: 0,
        uncompressed_size: 2 << 20,
        compressed: true,
        batch: None,
    };
    builder.blob.chunks = vec![first, member(1, 2 << 20, 0), member(2, (2 << 20) + 8192, 5000)];
    builder.blob.uncompressed_size = (2 << 20) + 12288;
    builder.blob.compressed_size = (alone.len() + batch.len()) as u64;
    (builder, [alone, batch].concat(), contents.to_vec())
}

#[test]
fn batches_are_described_and_decoded() {
    let (builder, data, contents) = with_batch();
    let mut blob = builder.blob;
    let encoded = encode(&blob, data.len() as u64).unwrap();
    blob.meta = Some(encoded.location);
    let meta = BlobMeta::from_file(&blob, encoded.to_file()).unwrap();
    for (index, chunk) in blob.chunks.iter().enumerate() {
        let info = meta.chunk(ChunkIndex(index as u32)).unwrap();
        assert_eq!(info.with_digest(chunk.digest), *chunk);
        let start = chunk.compressed_offset as usize;
        let stored = &data[start..start + chunk.compressed_size as usize];
        assert!(decode(&blob, chunk, stored).unwrap() == contents[index]);
    }
}

#[test]
fn a_chunk_that_is_not_what_its_digest_says_is_refused() {
    for compressor in COMPRESSORS {
        let (layer, stream) = sample(Format { compressor, ..Format::default() }).finish();
        let blob = &layer.blobs[0];
        for chunk in &blob.chunks {
            let start = chunk.compressed_offset as usize;
            let mut stored = stream[start..start + chunk.compressed_size as usize].to_vec();
            decode(blob, chunk, &stored).unwrap();
            let longer = Chunk { uncompressed_size: chunk.uncompressed_size + 1, ..chunk.clone() };
            decode(blob, &longer, &stored).unwrap_err();
            decode(blob, chunk, &stored[1..]).unwrap_err();
            let middle = stored.len() / 2;
            stored[middle] ^= 1;
            decode(blob, chunk, &stored).unwrap_err();
        }
        let huge = Chunk { uncompressed_size: u32::MAX, ..blob.chunks[0].clone() };
        let stored = vec![0; huge.compressed_size as usize];
        assert!(matches!(decode(blob, &huge, &stored), Err(DecodeError::TooLarge(u32::MAX))));
    }
}

#[test]
fn a_compression_bomb_is_cut_short() {
    let (layer, _) = sample(Format::default()).finish();
    let blob = &layer.blobs[0];
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    let small = Chunk { compressed_size: bomb.len() as u32, compressed: true, ..blob.chunks[0].clone() };
    decode(blob, &small, &bomb).unwrap_err();
    let member = Chunk { batch: Some(BatchMember { index: 0, offset: 0 }), ..small };
    decode(blob, &member, &bomb).unwrap_err();
}

/// Offsets and sizes at the limits of their fields.
#[test]
fn the_largest_chunks_fit() {
    for features in [0, flags::blob::CHUNK_INFO_V2] {
        let mut blob = Builder::new(Format { chunk_size: 1 << 24, ..Format::default() }).blob;
        blob.features = features;
        let digest = DigestAlgorithm::Blake3.digest(b"");
        let chunk = |compressed_offset, uncompressed_offset, compressed_size| Chunk {
            digest,
            compressed_offset,
            compressed_size,
            uncompressed_offset,
            uncompressed_size: 1 << 24,
            compressed: true,
            batch: None,
        };
        let largest = (1 << 24) - 1;
        blob.chunks = vec![chunk(0, 0, 1), chunk((1 << 40) - (1 << 24), (1 << 44) - (1 << 24), largest)];
        blob.compressed_size = 1 << 40;
        blob.uncompressed_size = 1 << 44;
        let encoded = encode(&blob, 1 << 40).unwrap();
        blob.meta = Some(encoded.location);
        let meta = BlobMeta::from_file(&blob, encoded.to_file()).unwrap();
        for (index, chunk) in blob.chunks.iter().enumerate() {
            let info = meta.chunk(ChunkIndex(index as u32)).unwrap();
            assert_eq!(info.with_digest(digest), *chunk);
        }
        blob.chunks[1].compressed_offset = 1 << 40;
        encode(&blob, 1 << 40).unwrap_err();
    }
}

/// The bytes of the format, pinned: without compression, no library decides about them.
#[test]
fn the_format_does_not_change() {
    let builder = sample(Format { compressor: Compressor::None, ..Format::default() });
    let (layer, stream) = builder.finish();
    let table = table(&layer, &stream);
    let sha256 = |bytes: &[u8]| DigestAlgorithm::Sha256.digest(bytes).to_string();
    // All but the layer's bootstrap, which zstd compresses.
    let boot = table.part(toc::BOOTSTRAP).unwrap().range.start as usize;
    let mut own = Vec::new();
    bootstrap::write_layer(&layer, &WriteOptions::default(), &mut own).unwrap();
    let digests = [sha256(&stream[..boot]), table.part(toc::BOOTSTRAP).unwrap().digest.to_string()];
    assert_eq!(
        digests,
        [
            "2d24c8b1bd55311e0a91eedc6d2e917eee109bea563ef20ec6eff0dbdca27093",
            "2a3a1b75954c383ea066f18fab27a96e27ed754a0dd79e545eb604f24a3c7ae7",
        ]
    );
}
