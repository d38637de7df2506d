//! Chunk information, digests and tables of contents that decompress to much more than they are.

use std::io::{self, Read};
use std::ops::Range;

use rafs::blob::BlobIndex;
use rafs::blob::source::{BlobError, BlobSource, load_chunk_info, load_chunk_info_within, read_meta};
use rafs::blob::stream::{Part, TocError};
use rafs::blob::{Blob, MetaLocation};
use rafs::bootstrap::{Bootstrap, WriteOptions};
use rafs::compress::Compressor;
use rafs::digest::{Digest, DigestAlgorithm};
use rafs::layout::blob_meta::{MAGIC, MetaHeader};
use rafs::layout::flags::blob as features;
use rafs::layout::v6::BlobEntry;
use rafs::limits::Limits;
use rafs::merge::merge;
use sha2::Digest as _;
use test_support::text;
use zerocopy::{FromZeros, IntoBytes};

use super::raw::Raw;
use super::support::{Builder, Format, OneBlob, written};
use super::{alone, within};

const MEGABYTE: usize = 1 << 20;

/// A blob whose chunk information is `array`, said to be `size` bytes when it is decompressed.
fn blob(array: &[u8], size: u64, compressor: Compressor) -> (Blob, OneBlob) {
    let mut header = MetaHeader::new_zeroed();
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
    let _alone = alone();
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
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    builder.file(rafs::tree::Tree::ROOT, b"file", &text(1, 5000));
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
    let _alone = alone();
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
    let _alone = alone();
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
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    builder.file(rafs::tree::Tree::ROOT, b"file", &text(1, 5000));
    let (layer, mut stream) = builder.finish();
    let blob = Blob { toc: None, ..layer.blobs[0].clone() };
    let at = stream.windows(16).rposition(|name| name == b"blob.digest\0\0\0\0\0").unwrap() - 8;
    // Its uncompressed size, and the checksum of the whole table does not matter: the bootstrap has none here.
    stream[at + 72..at + 80].copy_from_slice(&(4_u64 << 30).to_le_bytes());
    let error = within(MEGABYTE, MEGABYTE, || read_meta(&OneBlob(stream), &blob)).unwrap_err();
    assert!(matches!(error, BlobError::Meta { .. }), "{error}");
}

/// Every blob has the chunk information of a megabyte of chunks, in a few hundred bytes.
struct Bomb(Vec<u8>);

impl BlobSource for Bomb {
    fn size(&self, _: &Blob) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, _: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        let found = self.0.get(range.start as usize..range.end as usize);
        found.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// An image of as many blobs as there can be, each of which is a bomb of `size` bytes of chunk information.
fn image_of_bombs(size: usize) -> (Vec<u8>, Bomb) {
    let array = zstd::bulk::compress(&vec![0; size], 1).unwrap();
    let mut header = MetaHeader::new_zeroed();
    header.magic.set(MAGIC);
    header.magic2.set(MAGIC);
    header.features.set(features::ALIGNED);
    header.entries.set((size / 16) as u32);
    header.compressed_size.set(array.len() as u64);
    header.uncompressed_size.set(size as u64);
    let table: Vec<u8> = (0..254_u32)
        .flat_map(|index| {
            let mut entry = BlobEntry::new_zeroed();
            entry.blob_id.copy_from_slice(format!("{index:064x}").as_bytes());
            entry.blob_index.set(index);
            entry.features.set(features::ALIGNED);
            entry.chunk_size.set(4096);
            entry.chunk_count.set((size / 16) as u32);
            entry.compressed_size.set(1 << 20);
            entry.uncompressed_size.set(1 << 20);
            entry.compressor.set(3);
            entry.meta_compressor.set(3);
            entry.meta_compressed_size.set(array.len() as u64);
            entry.meta_uncompressed_size.set(size as u64);
            entry.as_bytes().to_vec()
        })
        .collect();
    let mut raw = Raw::new(&table, 254);
    let root = super::raw::entries(&[
        (b".", 1, rafs::layout::v6::FileType::Directory),
        (b"..", 1, rafs::layout::v6::FileType::Directory),
    ]);
    let block = raw.next_block();
    raw.0.extend_from_slice(&root);
    raw.root(block, root.len() as u32);
    (raw.0, Bomb([&array, header.as_bytes()].concat()))
}

/// What a hundred kilobytes say is gigabytes, blob by blob. No command takes more than the limit and a few pieces.
#[test]
fn no_command_takes_more_chunk_information_than_an_image_may_have() {
    let _alone = alone();
    let (bytes, source) = image_of_bombs(2 * MEGABYTE);
    assert!(bytes.len() + source.0.len() < 200_000);
    let limits = Limits { chunk_info_bytes: 16 << 20, ..Limits::DEFAULT };
    let most = 32 << 20;
    let open = || Bootstrap::from_bytes(bytes.clone()).unwrap();

    let options = rafs::check::Options { limits, ..Default::default() };
    let report = within(most, 40 * most, || {
        let mut bootstrap = open();
        rafs::check::structure(&bootstrap);
        rafs::check::blobs(&mut bootstrap, &source, options)
    });
    let refused = |problem: &str| problem.contains("16777216 bytes together");
    assert!(report.unknown.iter().any(|unknown| refused(&unknown.problem)), "{:?}", report.unknown.first());

    // What mount, unpack, inspect and diff begin with, and what comes of it without.
    let (error, mut bootstrap) = within(most, 8 * most, || {
        let mut bootstrap = open();
        (load_chunk_info_within(&mut bootstrap, &source, limits).unwrap_err(), bootstrap)
    });
    assert!(refused(&error.to_string()), "{error}");
    within(most, 8 * most, || {
        let _ = rafs::unpack::to_tar(&bootstrap, &source, &mut super::Sink);
        for image in [bootstrap.to_image(), open().to_image()].into_iter().flatten() {
            let _ = rafs::diff::images(&image, &image, &mut |_, _| Ok(None), &mut |_| ());
        }
        let layers = [bootstrap.to_layer(), open().to_layer()].into_iter().flatten().collect();
        let _ = merge(layers);
    });
    let meta = read_meta(&source, &bootstrap.blobs()[200].clone()).unwrap();
    bootstrap.set_chunk_info(BlobIndex(200), meta).unwrap();
}

/// A table of contents may say that the layer's bootstrap is all of a large file.
#[test]
fn parts_are_not_read_before_their_sizes_are_checked() {
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    builder.file(rafs::tree::Tree::ROOT, b"file", &text(1, 5000));
    let (_, stream) = builder.finish();
    let read = |range: Range<u64>| {
        assert!(range.end - range.start < 1 << 20, "{range:?} is asked for");
        Ok(stream[range.start as usize..range.end as usize].to_vec())
    };
    let limits = Limits { part_bytes: 1000, ..Limits::DEFAULT };
    let own = rafs::blob::stream::own_bootstrap_within(stream.len() as u64, limits, read).unwrap();
    assert!(matches!(own, Err(TocError::TooLarge { limit: 1000, .. })), "{own:?}");
    // Without a table of contents, the tar header alone says it.
    let mut header = [0; 512];
    header[..10].copy_from_slice(b"image.boot");
    header[124..135].copy_from_slice(b"77777777777");
    header[257..265].copy_from_slice(b"ustar  \0");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let size = 1 << 40;
    let read = |range: Range<u64>| {
        assert!(range.end == size && range.end - range.start <= 4096, "{range:?} is asked for");
        let mut tail = vec![0; (range.end - range.start) as usize];
        let start = tail.len() - 512;
        tail[start..].copy_from_slice(&header);
        Ok(tail)
    };
    let own = within(MEGABYTE, MEGABYTE, || rafs::blob::stream::own_bootstrap(size, read).unwrap());
    assert!(matches!(own, Err(TocError::TooLarge { .. })), "{own:?}");
}
