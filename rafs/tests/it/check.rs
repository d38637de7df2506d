//! A check finds what is wrong, and nothing else.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Mutex;

use rafs::blob::Blob;
use rafs::blob::source::BlobSource;
use rafs::bootstrap::{Bootstrap, WriteOptions};
use rafs::build::{BuildOptions, build_layer};
use rafs::check::{Options, Report, blobs, structure};
use rafs::compress::Compressor;
use rafs::digest::Digest;
use rafs::merge::merge;
use rafs::tree::Layer;
use test_support::text;

use crate::support::{Format, OneBlob, sample, written};

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
    assert_eq!(finding.to_string(), "/etc/linked: its link count is 3; it has 2 names");
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

/// The blobs of an image by their ids, with what was read of them.
#[derive(Default)]
struct Blobs {
    streams: HashMap<Digest, Vec<u8>>,
    /// Cannot be read.
    refused: Option<Digest>,
    read: Mutex<HashMap<Digest, u64>>,
}

impl BlobSource for Blobs {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        let id = blob.id.unwrap();
        if self.refused == Some(id) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(self.streams[&id].len() as u64)
    }

    fn read(&self, blob: &Blob, range: Range<u64>) -> io::Result<Vec<u8>> {
        *self.read.lock().unwrap().entry(blob.id.unwrap()).or_default() += range.end - range.start;
        Ok(self.streams[&blob.id.unwrap()][range.start as usize..range.end as usize].to_vec())
    }
}

/// An image of as many layers with a file of five chunks each.
fn image(layers: u64, options: &BuildOptions) -> (Bootstrap, Blobs, Vec<Digest>) {
    let mut blobs = Blobs::default();
    let mut built = Vec::new();
    for number in 0..layers {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        let content = text(number + 1, 4 * options.chunk_size as usize + 100);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, format!("file-{number}"), &content[..]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        tar.append_data(&mut header, format!("small-{number}"), format!("{number:5}").as_bytes()).unwrap();
        let mut stream = Vec::new();
        let layer = build_layer(&tar.into_inner().unwrap()[..], &mut stream, options).unwrap();
        blobs.streams.insert(layer.blobs[0].id.unwrap(), stream);
        built.push(layer);
    }
    let ids = built.iter().map(|layer| layer.blobs[0].id.unwrap()).collect();
    let mut bytes = Vec::new();
    rafs::bootstrap::write(&merge(built).unwrap(), &WriteOptions::default(), &mut bytes).unwrap();
    (Bootstrap::from_bytes(bytes).unwrap(), blobs, ids)
}

fn formats() -> Vec<BuildOptions> {
    let small = BuildOptions { chunk_size: 64 << 10, ..BuildOptions::default() };
    vec![
        small.clone(),
        BuildOptions { batch_size: Some(16 << 10), ..small.clone() },
        BuildOptions { compressor: Compressor::Lz4, ..small.clone() },
        BuildOptions { compressor: Compressor::None, ..small },
        // Larger than what is read at once.
        BuildOptions { chunk_size: 4 << 20, ..BuildOptions::default() },
    ]
}

#[test]
fn no_byte_of_a_blob_is_read_twice_and_none_is_left_out() {
    for options in formats() {
        let (mut bootstrap, source, ids) = image(2, &options);
        let report = blobs(&mut bootstrap, &source, Options::default());
        assert!(report.is_clean(), "{:?}", report.findings);
        for id in ids {
            assert_eq!(source.read.lock().unwrap()[&id], source.streams[&id].len() as u64, "{options:?}");
        }
    }
}

#[test]
fn every_chunk_counts_once() {
    let (mut bootstrap, source, _) = image(1, &BuildOptions { chunk_size: 4096, ..BuildOptions::default() });
    let mut report = structure(&bootstrap);
    report.merge(blobs(&mut bootstrap, &source, Options::default()));
    assert_eq!((report.chunks, report.bytes), (6, 4 * 4096 + 105));
}

#[test]
fn damaged_chunks_are_findings_by_number_and_all_blobs_are_looked_at() {
    for options in formats() {
        let (mut bootstrap, mut source, ids) = image(3, &options);
        let mut expected = Vec::new();
        for id in [ids[0], ids[2]] {
            // The first chunk or batch: what decompresses it fails, or the digest is another one.
            source.streams.get_mut(&id).unwrap()[2] ^= 0xff;
            expected.push(format!("blob {id}, chunk        0"));
        }
        let report = blobs(&mut bootstrap, &source, Options::default());
        assert!(report.unknown.is_empty(), "damage is no reason not to know: {:?}", report.unknown);
        for subject in expected {
            let found = report.findings.iter().any(|finding| finding.subject == subject);
            assert!(found, "{subject}: {:?}", report.findings);
        }
        let texts: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
        assert!(texts.iter().all(|text| !text.contains(['{', '('])), "Rust's own notation: {texts:?}");
    }
}

#[test]
fn a_damaged_part_is_a_finding() {
    let (mut bootstrap, mut source, ids) = image(2, &BuildOptions::default());
    let stream = source.streams.get_mut(&ids[0]).unwrap();
    // A byte of the layer's own bootstrap, which is compressed.
    let at = stream.len() - 512 - 5 * 128 - 512 - 20;
    stream[at] ^= 1;
    let report = blobs(&mut bootstrap, &source, Options::default());
    assert!(report.unknown.is_empty(), "{:?}", report.unknown);
    let subjects: Vec<_> = report.findings.iter().map(|finding| &finding.subject[..]).collect();
    assert_eq!(subjects, [format!("blob {}", ids[0]), format!("blob {}, image.boot", ids[0])]);
}

#[test]
fn what_cannot_be_read_is_no_finding_and_hides_none() {
    let (mut bootstrap, mut source, ids) = image(3, &BuildOptions::default());
    source.refused = Some(ids[0]);
    source.streams.get_mut(&ids[1]).unwrap()[0] ^= 1;
    let report = blobs(&mut bootstrap, &source, Options::default());
    let subjects = |findings: &[rafs::check::Finding]| -> Vec<String> {
        findings.iter().map(|finding| finding.subject.clone()).collect()
    };
    assert_eq!(subjects(&report.unknown), [format!("blob {}", ids[0])]);
    assert!(subjects(&report.findings).contains(&format!("blob {}, chunk        0", ids[1])));
    // The other blobs were looked at, and the last one is good.
    assert!(!report.findings.iter().any(|finding| finding.subject.contains(&ids[2].to_string())));
    assert_eq!(source.read.lock().unwrap()[&ids[2]], source.streams[&ids[2]].len() as u64);
}

#[test]
fn an_error_of_a_bootstrap_says_which_where_and_what_was_found() {
    let (layer, _) = sample(Format::default()).finish();
    let bytes = written(&layer, &WriteOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.boot");
    // The chunk size in the extension superblock.
    let mut broken = bytes.clone();
    broken[1152 + 20..1152 + 24].copy_from_slice(&5000_u32.to_le_bytes());
    std::fs::write(&path, &broken).unwrap();
    let expected = format!(
        "bootstrap {}: corrupt superblock at byte 1024: expected a chunk size that is a power of two from 4 KiB to 16 MiB, \
         found 5000; fetch or make it again",
        path.display()
    );
    assert_eq!(Bootstrap::open(&path).unwrap_err().to_string(), expected);
    let named = Bootstrap::open_as(&path, "registry.example/app:v1").unwrap_err().to_string();
    assert!(named.starts_with("registry.example/app:v1: corrupt"), "{named}");
    // What shows only when all of it is read has the name too, with inode and offset.
    let bootstrap = Bootstrap::from_bytes(bytes.clone()).unwrap();
    let nid = bootstrap.lookup_path(b"etc/passwd").unwrap().unwrap();
    let meta = u32::from_le_bytes(bytes[1024 + 40..1024 + 44].try_into().unwrap()) as usize * 4096;
    let at = meta + nid.0 as usize * 32;
    let mut broken = bytes;
    broken[at + 4..at + 6].copy_from_slice(&0o170_644_u16.to_le_bytes());
    std::fs::write(&path, &broken).unwrap();
    let error = Bootstrap::open(&path).unwrap().to_image().unwrap_err().to_string();
    let expected = format!("corrupt inode {nid} at byte {at}: expected a known file type, found mode 170644");
    assert!(error.contains(&expected) && error.contains("image.boot"), "{error}");
}
