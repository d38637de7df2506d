//! Tar streams that are worth more than their size, built as layers.

use std::io::Read;

use rafs::build::{BuildError, BuildOptions, PathProblem, build_layer};
use rafs::compress::Compressor;
use rafs::tree::Layer;

use super::{alone, within};

const MEGABYTE: usize = 1 << 20;

/// What a build has at a time: units of work, and a compressor's memory.
const FIXED: usize = 32 << 20;

fn build(archive: impl Read + Send) -> Result<Layer, BuildError> {
    let options =
        BuildOptions { threads: 1, compressor: Compressor::Zstd { level: 1 }, ..Default::default() };
    build_layer(archive, std::io::sink(), &options)
}

/// A header with a checksum.
fn header(name: &[u8], typeflag: u8, link: &[u8], size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[156] = typeflag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum = block.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn entry(name: &[u8], typeflag: u8, link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, typeflag, link, content.len() as u64).to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let length = (rest.len()..).find(|length| *length == rest.len() + length.to_string().len()).unwrap();
    [length.to_string().as_bytes(), &rest].concat()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let records: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
    entry(b"pax", b'x', b"", &records)
}

/// Each entry names two thousand directories that nothing else has.
#[test]
fn parents_that_are_missing_are_made_up_to_a_limit() {
    let _alone = alone();
    let deep = b"/a".repeat(2000);
    let archive: Vec<u8> = (0..400)
        .flat_map(|number| {
            let path = [format!("{number}").as_bytes(), &deep].concat();
            [pax(&[("path", &path)]), entry(b"f", b'0', b"", b"")].concat()
        })
        .collect();
    assert!(archive.len() < 2 * MEGABYTE);
    let error = within(FIXED + (64 << 20), FIXED + (256 << 20), || build(&archive[..])).unwrap_err();
    assert!(matches!(error, BuildError::Path { problem: PathProblem::TooManyMissing, .. }), "{error}");
    // Many files in few directories are no reason to refuse.
    let honest: Vec<u8> = (0..2000)
        .flat_map(|number| entry(format!("a/b/{}/{number}", number / 2).as_bytes(), b'0', b"", b""))
        .collect();
    build(&honest[..]).unwrap();
}

/// Links to links that follow, the last of which leads nowhere; and in a circle.
#[test]
fn chains_of_hard_links_take_linear_time() {
    let _alone = alone();
    let count = 2000;
    let link = |number: usize| {
        entry(format!("{number}").as_bytes(), b'1', format!("{}", number + 1).as_bytes(), b"")
    };
    let open: Vec<u8> = (0..count).flat_map(link).collect();
    let error = within(FIXED, FIXED + (64 << 20), || build(&open[..])).unwrap_err();
    assert!(matches!(error, BuildError::LinkTarget { .. }), "{error}");
    let closed = [&open[..], &entry(format!("{count}").as_bytes(), b'0', b"", b"x")].concat();
    let layer = within(FIXED, FIXED + (64 << 20), || build(&closed[..])).unwrap();
    assert_eq!(layer.tree.entries(rafs::tree::Tree::ROOT).unwrap().len(), count + 1);
    let circle = [&open[..], &entry(format!("{count}").as_bytes(), b'1', b"0", b"")].concat();
    within(FIXED, FIXED + (64 << 20), || build(&circle[..])).unwrap_err();
}

/// Links that lead through links, each twice through the next: two to the power of their number.
#[test]
fn symbolic_links_that_multiply_are_refused() {
    let _alone = alone();
    let mut archive = Vec::new();
    for number in 0..40 {
        let target = format!("{0}/../{0}", number + 1);
        archive.extend_from_slice(&entry(format!("{number}").as_bytes(), b'2', target.as_bytes(), b""));
    }
    archive.extend_from_slice(&entry(b"40", b'5', b"", b""));
    archive.extend_from_slice(&entry(b"0/file", b'0', b"", b""));
    let error = within(FIXED, FIXED + (16 << 20), || build(&archive[..])).unwrap_err();
    assert!(matches!(error, BuildError::Path { problem: PathProblem::TooManyLinks, .. }), "{error}");
}

/// A target of a megabyte, which each of many links that wait for theirs leads through.
#[test]
fn targets_that_are_too_long_to_follow_are_not_taken_apart() {
    let _alone = alone();
    let target = b"a/".repeat(MEGABYTE / 2 - 100);
    let mut archive = Vec::new();
    for number in 0..1000 {
        archive.extend_from_slice(&entry(format!("d/{number}").as_bytes(), b'1', b"d/none", b""));
    }
    archive.extend_from_slice(&pax(&[("linkpath", &target)]));
    archive.extend_from_slice(&entry(b"d", b'2', b"x", b""));
    let error = within(FIXED, FIXED + (64 << 20), || build(&archive[..])).unwrap_err();
    assert!(
        error.to_string().contains("bootstrap"),
        "what cannot be followed cannot be written either: {error}"
    );
}

/// Extension headers one after the other, each of which takes back the one before.
#[test]
fn chains_of_extension_headers_are_not_kept() {
    let _alone = alone();
    let large = pax(&[("SCHILY.xattr.user.a", &[b'v'; MEGABYTE / 2])]);
    let long = entry(b"l", b'L', b"", &[b'n'; MEGABYTE / 2]);
    let global = entry(b"g", b'g', b"", &record("comment", &[b'c'; MEGABYTE / 2]));
    let archive: Vec<u8> = [large, long, global].into_iter().cycle().take(60).flatten().collect();
    within(FIXED, FIXED + 4 * archive.len(), || build(&archive[..])).unwrap_err();
}

/// A thousand bytes that claim a file of 2^60, and one that claims more segments than there are.
#[test]
fn holes_are_not_built_without_end() {
    let _alone = alone();
    let size = (1_u64 << 60).to_string();
    let sparse = pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", b"0,0")]);
    let archive = [sparse, entry(b"hole", b'0', b"", b"")].concat();
    let error = within(FIXED, FIXED, || build(&archive[..])).unwrap_err();
    assert!(
        matches!(error, BuildError::ContentTooLarge { .. }) && error.to_string().contains("hole"),
        "{error}"
    );
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")];
    let archive = [pax(&records), header(b"f", b'0', b"", 4 << 30).to_vec(), b"1048576\n".to_vec()].concat();
    within(FIXED, FIXED, || build(&archive[..])).unwrap_err();
}

/// As many attributes as a header holds.
#[test]
fn attributes_by_the_thousand_are_refused_or_read() {
    let _alone = alone();
    let keys: Vec<_> = (0..30_000).map(|number| format!("SCHILY.xattr.user.{number}")).collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (&key[..], &b""[..])).collect();
    let archive: Vec<u8> = [pax(&records), entry(b"f", b'0', b"", b"")].concat();
    let error =
        within(FIXED + 16 * archive.len(), FIXED + 32 * archive.len(), || build(&archive[..])).unwrap_err();
    assert!(error.to_string().contains("layer"), "{error}");
}

/// Streams that are all compression and no content.
#[test]
fn empty_members_and_frames_are_passed_over() {
    let _alone = alone();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &[]).unwrap();
    let gzip = gzip.finish().unwrap().repeat(MEGABYTE / 20);
    let zstd = zstd::bulk::compress(&[], 1).unwrap().repeat(MEGABYTE / 9);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0].repeat(MEGABYTE / 8);
    for stream in [gzip, zstd, skippable] {
        let layer = within(FIXED, FIXED + 64 * stream.len(), || build(&stream[..])).unwrap();
        assert!(layer.tree.entries(rafs::tree::Tree::ROOT).unwrap().is_empty());
    }
}

/// A gigabyte of nothing behind the end of an archive, and a frame that wants a window of gigabytes.
#[test]
fn what_a_stream_decompresses_to_is_not_kept() {
    let _alone = alone();
    let zeros = std::io::repeat(0).take(256 << 20);
    let bomb = zstd::stream::encode_all(zeros, 1).unwrap();
    assert!(bomb.len() < MEGABYTE);
    within(FIXED, FIXED + 16 * bomb.len(), || build(&bomb[..])).unwrap();
    // The window descriptor's exponent is 31: 2 TiB.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00];
    let error = within(FIXED, FIXED, || build(&window[..])).unwrap_err();
    assert!(error.to_string().contains("zstd"), "{error}");
}
