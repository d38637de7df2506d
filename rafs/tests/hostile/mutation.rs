//! Images with single bytes and single structures changed.

use std::path::Path;

use super::support::{Builder, Format, OneBlob, metadata, written};
use super::{Sink, alone};
use rafs::blob::source::load_chunk_info;
use rafs::bootstrap::{Bootstrap, ReadError, WriteOptions};
use rafs::check::{Options, Report, blobs, structure};
use rafs::tree::Tree;
use test_support::text;

/// Asserts that an error is told in words, and not as Rust writes its values: `Some(Nid(3))`, `Zstd { level: 0 }`.
fn assert_readable(error: &dyn std::error::Error) {
    let mut next = Some(error);
    while let Some(error) = next {
        assert_is_readable(&error.to_string());
        next = error.source();
    }
}

fn assert_is_readable(message: &str) {
    let call = message.match_indices('(').any(|(at, _)| message[..at].ends_with(char::is_alphanumeric));
    assert!(!call && !message.contains(" { "), "{message}");
}

fn assert_findings_are_readable(report: &Report) {
    for finding in report.findings.iter().chain(&report.unknown) {
        assert_is_readable(&finding.to_string());
    }
}

/// Does all that is done with an image. Errors are fine, as long as people can read them.
fn use_image(bootstrap: Vec<u8>, blob: &OneBlob) {
    let mut bootstrap = match Bootstrap::from_bytes(bootstrap) {
        Ok(bootstrap) => bootstrap,
        Err(error) => return assert_readable(&error),
    };
    assert_findings_are_readable(&structure(&bootstrap));
    let prefetch = bootstrap.prefetch().err();
    let image = match bootstrap.to_image() {
        Ok(image) => {
            let _ = rafs::bootstrap::write(&image, &WriteOptions::default(), &mut Sink);
            None
        }
        Err(error) => Some(error),
    };
    prefetch.iter().chain(&image).for_each(|error| assert_readable(error));
    if let Err(error) = load_chunk_info(&mut bootstrap, blob) {
        assert_readable(&error);
    }
    if let Err(error) = rafs::unpack::to_tar(&bootstrap, blob, &mut Sink) {
        assert_readable(&error);
    }
}

/// A small image of ours, and those of nydus-image.
fn images() -> Vec<(Vec<u8>, OneBlob)> {
    let mut builder = Builder::new(Format::default());
    let directory = builder.directory(Tree::ROOT, b"directory");
    let file = builder.file(directory, b"file", &text(1, 5000));
    builder.link(Tree::ROOT, b"link", file);
    builder.tree.node_mut(file).metadata.xattrs.insert(b"user.a"[..].into(), b"value"[..].into());
    builder.add(Tree::ROOT, b"symlink", metadata(0o777), rafs::tree::Kind::Symlink(b"link"[..].into()));
    let (layer, stream) = builder.finish();
    let prefetch = vec![b"directory"[..].into()];
    let ours = (written(&layer, &WriteOptions { prefetch, ..WriteOptions::default() }), OneBlob(stream));
    let theirs = ["v5-lz4", "v5-none", "v6-zstd"].map(|name| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let read = |extension| std::fs::read(path.with_extension(extension)).unwrap();
        (read("boot"), OneBlob(read("blob")))
    });
    std::iter::once(ours).chain(theirs).collect()
}

#[test]
fn any_changed_byte_of_a_bootstrap_is_survived() {
    let _alone = alone();
    for (bootstrap, blob) in images() {
        for at in 0..bootstrap.len() {
            // Zeros are padding for the most part.
            if bootstrap[at] == 0 && at % 61 != 0 {
                continue;
            }
            for value in [bootstrap[at] ^ 1, 0xff] {
                let mut changed = bootstrap.clone();
                changed[at] = value;
                use_image(changed, &blob);
            }
        }
    }
}

#[test]
fn any_changed_byte_of_a_blob_is_survived() {
    let _alone = alone();
    for (bootstrap, mut blob) in images() {
        let mut bootstrap = Bootstrap::from_bytes(bootstrap).unwrap();
        for at in (0..blob.0.len()).rev().step_by(37) {
            let byte = std::mem::replace(&mut blob.0[at], 0xff);
            let report = blobs(&mut bootstrap, &blob, Options { threads: 1, ..Options::default() });
            assert!(!report.is_clean() || byte == 0xff);
            assert_findings_are_readable(&report);
            blob.0[at] = byte;
        }
    }
}

#[test]
fn a_bootstrap_that_is_cut_off_is_refused() {
    let _alone = alone();
    for (bootstrap, blob) in images() {
        for len in (0..bootstrap.len()).step_by(61) {
            use_image(bootstrap[..len].to_vec(), &blob);
        }
        let cut = bootstrap[..bootstrap.len() / 2].to_vec();
        assert!(Bootstrap::from_bytes(cut).is_err(), "tables at the end are missed when it is opened");
    }
    assert!(matches!(Bootstrap::from_bytes(Vec::new()), Err(ReadError::NotABootstrap)));
    assert!(matches!(Bootstrap::from_bytes(vec![0; 8192]), Err(ReadError::NotABootstrap)));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let _alone = alone();
    let (bootstrap, _) = images().swap_remove(0);
    let flags = 1152;
    for (byte, bit, name) in [(3, 0x02, "encrypted"), (1, 0x02, "tarfs"), (0, 0x40, "gzip")] {
        let mut changed = bootstrap.clone();
        changed[flags + byte] |= bit;
        let error = Bootstrap::from_bytes(changed).unwrap_err();
        assert!(matches!(error, ReadError::Unsupported(_)) && error.to_string().contains(name), "{error}");
    }
}

/// Many directories that share the entries of one: a few bytes each, for a thousand names each.
#[test]
fn a_small_bootstrap_cannot_make_a_large_tree() {
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    let large = builder.directory(Tree::ROOT, b"large");
    for index in 0..2000 {
        builder.file(large, format!("{index:04}").as_bytes(), b"");
    }
    for index in 0..1000 {
        builder.directory(Tree::ROOT, format!("small-{index:04}").as_bytes());
    }
    let (layer, stream) = builder.finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    let bootstrap = Bootstrap::from_bytes(bytes.clone()).unwrap();
    let meta = u32::from_le_bytes(bytes[1024 + 40..1024 + 44].try_into().unwrap()) as usize * 4096;
    let offset = |path: &str| {
        let nid = bootstrap.lookup_path(path.as_bytes()).unwrap().unwrap();
        meta + nid.0 as usize * 32
    };
    let mut inode: [u8; 64] = bytes[offset("large")..offset("large") + 64].try_into().unwrap();
    // Whole blocks, and none of the entries behind the inode.
    inode[0] = 1;
    let size = u64::from_le_bytes(inode[8..16].try_into().unwrap()) / 4096 * 4096;
    inode[8..16].copy_from_slice(&size.to_le_bytes());
    for index in 0..1000 {
        let at = offset(&format!("small-{index:04}"));
        bytes[at..at + 64].copy_from_slice(&inode);
    }
    let hostile = Bootstrap::from_bytes(bytes).unwrap();
    let overlap = |error: ReadError| assert!(error.to_string().contains("overlap"), "{error}");
    overlap(hostile.to_image().unwrap_err());
    assert!(structure(&hostile).findings.iter().any(|finding| finding.problem.contains("overlap")));
    match rafs::unpack::to_tar(&hostile, &OneBlob(stream), &mut Sink).unwrap_err() {
        rafs::unpack::UnpackError::Bootstrap(error) => overlap(error),
        error => panic!("{error}"),
    }
}

#[test]
fn a_directory_inside_itself_is_refused() {
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    let outer = builder.directory(Tree::ROOT, b"outer");
    builder.directory(outer, b"inner-name-to-find");
    let (layer, _) = builder.finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    let bootstrap = Bootstrap::from_bytes(bytes.clone()).unwrap();
    let outer = bootstrap.lookup_path(b"outer").unwrap().unwrap();
    let inner = bootstrap.lookup_path(b"outer/inner-name-to-find").unwrap().unwrap();
    // The entry of the inner directory is the only one in addition to its own `.` to name it.
    let entries: Vec<_> = bytes
        .windows(12)
        .enumerate()
        .filter(|(_, entry)| entry[..8] == inner.0.to_le_bytes() && entry[10] == 2)
        .map(|(at, _)| at)
        .collect();
    bytes[entries[0]..entries[0] + 8].copy_from_slice(&outer.0.to_le_bytes());
    let hostile = Bootstrap::from_bytes(bytes).unwrap();
    assert!(hostile.to_image().is_err());
    assert!(!structure(&hostile).is_clean());
}

/// Memory is not taken for chunks that are only claimed.
#[test]
fn a_blob_cannot_claim_millions_of_chunks() {
    let _alone = alone();
    let (mut bootstrap, _) = images().swap_remove(0);
    let blob_table = 4096;
    bootstrap[blob_table + 72..blob_table + 76].copy_from_slice(&(1_u32 << 24).to_le_bytes());
    let hostile = Bootstrap::from_bytes(bootstrap).unwrap();
    let error = hostile.to_image().unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { what: "blob table", .. }), "{error}");
}

/// Found by mutation: a chunk address with another index was read as a chunk without size, and written so.
#[test]
fn a_file_whose_chunk_is_not_described_is_refused() {
    let _alone = alone();
    let mut builder = Builder::new(Format::default());
    builder.file(Tree::ROOT, b"file", &text(1, 5000));
    let (layer, _) = builder.finish();
    let mut bytes = written(&layer, &WriteOptions::default());
    let bootstrap = Bootstrap::from_bytes(bytes.clone()).unwrap();
    let nid = bootstrap.lookup_path(b"file").unwrap().unwrap();
    let meta = u32::from_le_bytes(bytes[1024 + 40..1024 + 44].try_into().unwrap()) as usize * 4096;
    // The first chunk address is right behind the inode; its first byte is of the index.
    bytes[meta + nid.0 as usize * 32 + 64] = 7;
    let hostile = Bootstrap::from_bytes(bytes).unwrap();
    assert!(matches!(hostile.to_image(), Err(ReadError::NoSuchChunk { blob: 0, chunk: 7 })));
    let mut image = bootstrap.to_image().unwrap();
    image.blobs[0].chunks[0].uncompressed_size = 0;
    let refused = rafs::bootstrap::write(&image, &WriteOptions::default(), &mut Sink).unwrap_err();
    assert!(matches!(refused, rafs::bootstrap::WriteError::MissingChunk { blob: 0, chunk: 0 }), "{refused}");
}
