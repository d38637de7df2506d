//! Layers are opened from files, and an image is held against what it was made from.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use rafs::blob::stream::own_bootstrap;
use rafs::bootstrap::{Bootstrap, WriteOptions, write, write_layer};
use rafs::build::{BuildOptions, build_layer};
use rafs::check::{against_source, source_options};
use rafs::digest::DigestAlgorithm;
use rafs::merge::{OpenLayerError, merge, open_layer};
use rafs::tree::Layer;

/// A tar of files with these contents; modes are 0644 unless told otherwise.
fn tar(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, path, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn built(tar: &[u8], options: &BuildOptions) -> (Layer, Vec<u8>) {
    let mut blob = Vec::new();
    let layer = build_layer(tar, &mut blob, options).unwrap();
    (layer, blob)
}

fn with_batches() -> BuildOptions {
    BuildOptions { batch_size: Some(1 << 16), ..BuildOptions::default() }
}

#[test]
fn a_layer_is_opened_from_its_blob_under_any_name() {
    let directory = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8], u32); 3] =
        [("a", b"content", 0o644), (".wh.b", b"", 0o644), ("c", b"other", 0o644)];
    for options in [BuildOptions::default(), with_batches()] {
        let (layer, blob) = built(&tar(&files), &options);
        let id = layer.blobs[0].id.unwrap();
        for name in [format!("{id}"), format!("{id}.blob.tar"), "anything".to_owned()] {
            let path = directory.path().join(name);
            fs::write(&path, &blob).unwrap();
            let opened = open_layer(&path).unwrap();
            assert_eq!((opened.blobs[0].id, opened.blobs[0].stored_size), (Some(id), blob.len() as u64));
            assert_eq!(opened.blobs[0].toc, layer.blobs[0].toc);
            let image = merge(vec![opened]).unwrap();
            assert_eq!(image.tree, merge(vec![layer.clone()]).unwrap().tree);
        }
    }
}

#[test]
fn a_layer_is_opened_from_its_bootstrap_if_the_file_names_the_blob() {
    let directory = tempfile::tempdir().unwrap();
    let (layer, _) = built(&tar(&[("a", b"content", 0o644)]), &BuildOptions::default());
    let id = layer.blobs[0].id.unwrap();
    let mut bootstrap = Vec::new();
    write_layer(&layer, &WriteOptions::default(), &mut bootstrap).unwrap();
    let named = directory.path().join(format!("{id}.boot"));
    fs::write(&named, &bootstrap).unwrap();
    assert_eq!(open_layer(&named).unwrap().blobs[0].id, Some(id));
    let nameless = directory.path().join("layer.boot");
    fs::write(&nameless, &bootstrap).unwrap();
    assert!(matches!(open_layer(&nameless), Err(OpenLayerError::Unnamed { .. })));
}

#[test]
fn what_is_no_layer_is_refused_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let v5 = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v5-lz4.boot");
    assert!(matches!(open_layer(&v5), Err(OpenLayerError::Version { .. })));
    let (_, mut blob) = built(&tar(&[("a", b"content", 0o644)]), &BuildOptions::default());
    // A byte of the bootstrap in the stream.
    let end = blob.len() - 512 - 5 * 128 - 512;
    blob[end - 20] ^= 1;
    let cases: [(&str, &[u8]); 4] =
        [("empty", b""), ("text", b"text"), ("zeros", &[0; 8192]), ("broken", &blob)];
    for (name, bytes) in cases {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = open_layer(&path).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    assert!(matches!(open_layer(&directory.path().join("absent")), Err(OpenLayerError::Io { .. })));
}

#[test]
fn a_stream_that_is_cut_off_has_no_bootstrap() {
    let (_, blob) = built(&tar(&[("a", b"content", 0o644)]), &BuildOptions::default());
    for size in [0, 1, 511, 512, blob.len() - 1] {
        let read = |range: std::ops::Range<u64>| Ok(blob[range.start as usize..range.end as usize].to_vec());
        let found = own_bootstrap(size as u64, read).unwrap();
        assert!(!matches!(found, Ok(Some(_))), "{size} bytes");
    }
}

#[test]
fn an_image_is_compared_with_its_source_whatever_its_format() {
    let large = vec![7; 3 << 20];
    let lower = tar(&[("gone", b"gone", 0o644), ("kept", &large, 0o755), ("small", b"small", 0o600)]);
    let upper = tar(&[(".wh.gone", b"", 0o644), ("new", b"new", 0o644)]);
    let other = tar(&[(".wh.gone", b"", 0o644), ("new", b"NEW", 0o644), ("small", b"small", 0o640)]);
    for options in [
        BuildOptions::default(),
        with_batches(),
        BuildOptions { digester: DigestAlgorithm::Sha256, chunk_size: 1 << 16, ..BuildOptions::default() },
    ] {
        let image = merge([&lower, &upper].map(|tar| built(tar, &options).0).to_vec()).unwrap();
        let mut bytes = Vec::new();
        write(&image, &WriteOptions::default(), &mut bytes).unwrap();
        let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
        let found = bootstrap.to_image().unwrap();
        let source = |layers: [&Vec<u8>; 2]| {
            let options = source_options(&bootstrap);
            let build = |tar: &Vec<u8>| build_layer(&tar[..], std::io::sink(), &options).unwrap();
            merge(layers.map(build).to_vec()).unwrap()
        };
        let report = against_source(&source([&lower, &upper]), &found);
        assert!(report.is_clean(), "{:?}", report.findings);
        let report = against_source(&source([&lower, &other]), &found);
        let lines: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
        let expected = [
            "/new: its content from byte 0 on is not that of the source",
            "/small: its mode is 0600; expected 0640",
        ];
        assert_eq!(lines, expected);
    }
}
