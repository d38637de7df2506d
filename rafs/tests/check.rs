//! A check finds what is wrong, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use rafs::blob::Blob;
use rafs::bootstrap::{Bootstrap, WriteOptions};
use rafs::check::{Options, Report, blobs, structure};
use rafs::compress::Compressor;
use rafs::tree::Layer;
use support::{Format, OneBlob, sample, written};

fn check(layer: &Layer, stream: &[u8]) -> Report {
    let mut bootstrap = Bootstrap::from_bytes(written(layer, &WriteOptions::default())).unwrap();
    let mut report = structure(&bootstrap);
    report.merge(blobs(&mut bootstrap, &OneBlob(stream.to_vec()), Options::default()));
    report
}

fn offset_of(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).unwrap()
}

#[test]
fn a_good_image_is_clean() {
    for compressor in [Compressor::None, Compressor::Lz4, Compressor::Zstd { level: 3 }] {
        let (layer, stream) = sample(Format { compressor, ..Format::default() }).finish();
        let report = check(&layer, &stream);
        assert!(report.is_clean(), "{:?}", report.findings);
        let content: u64 = layer.blobs[0].chunks.iter().map(|chunk| u64::from(chunk.uncompressed_size)).sum();
        assert_eq!(report.bytes, content);
    }
}

#[test]
fn a_changed_byte_anywhere_in_the_blob_is_found() {
    let (layer, stream) = sample(Format::default()).finish();
    for at in (0..stream.len()).step_by(stream.len() / 12) {
        let mut changed = stream.clone();
        changed[at] ^= 1;
        let report = check(&layer, &changed);
        assert!(!report.is_clean(), "the byte at {at} of {}", stream.len());
        let Blob { id, .. } = layer.blobs[0];
        assert!(report.findings.iter().all(|finding| finding.subject.contains(&id.unwrap().to_string())));
    }
}

#[test]
fn a_blob_that_is_cut_off_is_found() {
    let (layer, stream) = sample(Format::default()).finish();
    for len in [0, 1, 4096, stream.len() / 2, stream.len() - 1] {
        assert!(!check(&layer, &stream[..len]).is_clean(), "{len} bytes");
    }
}

#[test]
fn names_out_of_order_are_found() {
    let (layer, _) = sample(Format::default()).finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    let at = offset_of(&bytes, b"file-0001");
    bytes[at + 8] = b'9';
    let report = structure(&Bootstrap::from_bytes(bytes).unwrap());
    assert!(
        report.findings.iter().any(|finding| finding.subject == "/many/file-0002"),
        "{:?}",
        report.findings
    );
}

/// Checks an image whose inode at `path` states this number of links.
fn with_link_count(path: &[u8], links: u8) -> Report {
    let (layer, _) = sample(Format::default()).finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    let bootstrap = Bootstrap::from_bytes(bytes.clone()).unwrap();
    let nid = bootstrap.lookup_path(path).unwrap().unwrap();
    let meta = u32::from_le_bytes(bytes[1024 + 40..1024 + 44].try_into().unwrap()) as usize * 4096;
    bytes[meta + nid.0 as usize * 32 + 44] = links;
    structure(&Bootstrap::from_bytes(bytes).unwrap())
}

#[test]
fn a_wrong_link_count_is_found() {
    let report = with_link_count(b"etc/linked", 3);
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!(finding.to_string(), "/hard link: its link count is 3; it has 2 names");
    assert!(!with_link_count(b"symlink", 0).is_clean());
}

/// nydus-image leaves the names of such a file their common count when it makes files of their own of them.
#[test]
fn what_is_no_regular_file_may_state_more_links_than_it_has() {
    for path in [&b"symlink"[..], b"null", b"disk", b"pipe", b"socket"] {
        let report = with_link_count(path, 2);
        assert!(report.is_clean(), "{:?}", report.findings);
    }
}

#[test]
fn a_chunk_table_that_contradicts_the_files_is_found() {
    let (layer, _) = sample(Format::default()).finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    let digest = layer.blobs[0].chunks[0].digest;
    // The uncompressed offset of the chunk's entry.
    let at = offset_of(&bytes, &digest.0) + 56;
    bytes[at + 1] ^= 0x10;
    let report = structure(&Bootstrap::from_bytes(bytes).unwrap());
    assert!(!report.is_clean());
}

#[test]
fn findings_are_limited() {
    let (mut layer, stream) = sample(Format::default()).finish();
    for chunk in &mut layer.blobs[0].chunks {
        chunk.digest.0[0] ^= 1;
    }
    let mut many = Report::default();
    for _ in 0..20 {
        many.merge(check(&layer, &stream));
    }
    assert_eq!(many.findings.len(), 1000);
    assert!(many.omitted > 0);
}
