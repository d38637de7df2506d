//! Chunk information, digests and tables of contents that decompress to much more than they are.

use std::io::{self, Read};
use std::ops::Range;

use rafs::blob::source::{BlobError, BlobSource, load_chunk_info, read_meta};
use rafs::blob::stream::{Part, TocError};
use rafs::blob::{Blob, MetaLocation};
use rafs::bootstrap::{Bootstrap, WriteOptions};
use rafs::compress::Compressor;
use rafs::digest::{Digest, DigestAlgorithm};
use rafs::layout::blob_meta::{Header, MAGIC};
use rafs::layout::flags::blob as features;
use sha2::Digest as _;
use zerocopy::{FromZeros, IntoBytes};

use super::support::{Builder, Format, OneBlob, noise, written};
use super::within;

const MEGABYTE: usize = 1 << 20;

/// A blob whose chunk information is `array`, said to be `size` bytes when it is decompressed.
fn blob(array: &[u8], size: u64, compressor: Compressor) -> (Blob, OneBlob) {
    let mut header = Header::new_zeroed();
    header.magic.set(MAGIC);
    header.magic2.set(MAGIC);
    header.compressed_size.set(array.len() as u64);
    header.uncompressed_size.set(size);
    let blob = Blob {
        id: None,
        stored_size: 0,
        compressed_size: 1 << 30,
        uncompressed_size: 1 << 30,
        chunk_size: 4096,
        compressor,
        digester: DigestAlgorithm::Blake3,
        features: features::ALIGNED,
        meta: Some(MetaLocation {
            offset: 0,
            compressed_size: array.len() as u64,
            uncompressed_size: size,
            compressor,
        }),
        toc: None,
        chunks: Vec::new(),
    };
    (blob, OneBlob([array, header.as_bytes()].concat()))
}

/// Memory grows with what comes out, and stops at what was said.
#[test]
fn chunk_information_is_no_larger_than_it_says() {
    let bomb = zstd::bulk::compress(&vec![0; 256 * MEGABYTE], 1).unwrap();
    for size in [100, 20 * MEGABYTE] {
        let (blob, source) = blob(&bomb, size as u64, Compressor::Zstd { level: 0 });
        within(3 * size + MEGABYTE, 6 * size + MEGABYTE, || read_meta(&source, &blob)).unwrap_err();
    }
    // And takes no memory for what is only said.
    for compressor in [Compressor::Zstd { level: 0 }, Compressor::Lz4, Compressor::None] {
        let (blob, source) = blob(b"short", 1 << 30, compressor);
        within(MEGABYTE, MEGABYTE, || read_meta(&source, &blob)).unwrap_err();
    }
}

/// Says that it has as much as is asked for.
struct Endless;

impl BlobSource for Endless {
    fn size(&self, _: &Blob) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn read(&self, _: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        Ok(vec![0; (range.end - range.start) as usize])
    }
}

#[test]
fn an_image_has_a_limit_of_chunk_information() {
    let mut builder = Builder::new(Format::default());
    builder.file(rafs::tree::Tree::ROOT, b"file", &noise(1, 5000));
    let (layer, _) = builder.finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    // No chunk table; and the blob's chunk information has 256 MiB.
    bytes[1176..1192].fill(0);
    bytes[4096 + 128..4096 + 136].copy_from_slice(&(256_u64 << 20).to_le_bytes());
    let mut bootstrap = Bootstrap::from_bytes(bytes).unwrap();
    let error = within(MEGABYTE, MEGABYTE, || load_chunk_info(&mut bootstrap, &Endless)).unwrap_err();
    assert!(matches!(error, BlobError::TooMuchChunkInfo { .. }), "{error}");
}

/// A part that is a gigabyte is verified, and not kept.
#[test]
fn large_parts_are_verified_as_they_decompress() {
    let size = 256 * MEGABYTE;
    let stored = zstd::stream::encode_all(io::repeat(0).take(size as u64), 1).unwrap();
    let mut hash = sha2::Sha256::new();
    let zeros = vec![0; MEGABYTE];
    (0..256).for_each(|_| hash.update(&zeros));
    let part = Part {
        name: "image.boot".to_owned(),
        compressor: Compressor::Zstd { level: 0 },
        digest: Digest(hash.finalize().into()),
        range: 0..stored.len() as u64,
        uncompressed_size: size as u64,
    };
    within(MEGABYTE, MEGABYTE, || part.verify(&stored)).unwrap();
    for wrong in [size - 1, size + 1] {
        let part = Part { uncompressed_size: wrong as u64, ..part.clone() };
        assert!(matches!(part.verify(&stored), Err(TocError::Decompress { .. })));
    }
    let part = Part { digest: Digest([0; 32]), ..part };
    assert!(matches!(part.verify(&stored), Err(TocError::PartDigest { .. })));
}

/// Found by fuzzing: one way took what the other refused.
#[test]
fn a_part_is_decoded_if_it_is_verified_and_only_then() {
    let frame = zstd::bulk::compress(b"content", 1).unwrap();
    let large_window = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8, 0x39, 0, 0][..], b"content"].concat();
    let skippable = [&[0x50, 0x2A, 0x4D, 0x18, 1, 0, 0, 0, 7][..], &frame].concat();
    let cases: [(&[u8], &[u8]); 6] = [
        (b"", b""),
        (b"content", &frame),
        (b"contentcontent", &[&frame[..], &frame].concat()),
        (b"content", &frame[..frame.len() - 1]),
        (b"content", &large_window),
        (b"content", &skippable),
    ];
    for (number, (content, stored)) in cases.into_iter().enumerate() {
        let part = Part {
            name: "image.boot".to_owned(),
            compressor: Compressor::Zstd { level: 0 },
            digest: DigestAlgorithm::Sha256.digest(content),
            range: 0..stored.len() as u64,
            uncompressed_size: content.len() as u64,
        };
        assert_eq!(part.decode(stored).is_ok(), part.verify(stored).is_ok(), "case {number}");
    }
}

/// The table of contents may say that 32 bytes a chunk are gigabytes.
#[test]
fn digests_are_as_many_as_chunks() {
    let mut builder = Builder::new(Format::default());
    builder.file(rafs::tree::Tree::ROOT, b"file", &noise(1, 5000));
    let (layer, mut stream) = builder.finish();
    let blob = Blob { toc: None, ..layer.blobs[0].clone() };
    let at = stream.windows(16).rposition(|name| name == b"blob.digest\0\0\0\0\0").unwrap() - 8;
    // Its uncompressed size, and the checksum of the whole table does not matter: the bootstrap has none here.
    stream[at + 72..at + 80].copy_from_slice(&(4_u64 << 30).to_le_bytes());
    let error = within(MEGABYTE, MEGABYTE, || read_meta(&OneBlob(stream), &blob)).unwrap_err();
    assert!(matches!(error, BlobError::Meta { .. }), "{error}");
}
