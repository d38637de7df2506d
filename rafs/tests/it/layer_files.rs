//! Layers are opened from files, and an image is held against what it was made from.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rafs::blob::Blob;
use rafs::blob::source::BlobSource;
use rafs::blob::stream::own_bootstrap;
use rafs::bootstrap::{Bootstrap, WriteOptions, write, write_layer};
use rafs::build::{BuildOptions, Dictionary, build_layer};
use rafs::check::{against_source, source_options};
use rafs::digest::{Digest, DigestAlgorithm};
use rafs::merge::{MergeError, OpenLayerError, merge, open_layer};
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

/// The layer's own bootstrap, which describes what the layer uses of other blobs, and no more.
fn own_bootstrap_file(directory: &Path, name: &str, layer: &Layer) -> PathBuf {
    let mut bytes = Vec::new();
    write_layer(layer, &WriteOptions::default(), &mut bytes).unwrap();
    let folder = directory.join(name);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(layer.blobs[0].id.unwrap().to_string());
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn layers_that_share_a_chunk_dictionary_are_merged() {
    let directory = tempfile::tempdir().unwrap();
    let small = BuildOptions { chunk_size: 4096, ..BuildOptions::default() };
    let contents: Vec<Vec<u8>> = (0..3_u8).map(|number| vec![number; 3000]).collect();
    let files = |numbers: &[usize]| -> Vec<u8> {
        let names = ["zero", "one", "two"];
        let files: Vec<_> = numbers.iter().map(|&at| (names[at], &contents[at][..], 0o644)).collect();
        tar(&files)
    };
    for batch_size in [None, Some(4096)] {
        let small = BuildOptions { batch_size, chunk_size: 8192, ..small.clone() };
        let (known, _) = built(&files(&[0, 1, 2]), &small);
        let dictionary = rafs::tree::Image { tree: known.tree, blobs: known.blobs };
        let id = dictionary.blobs[0].id;
        let options = BuildOptions { dictionary: Some(Arc::new(Dictionary::new(dictionary))), ..small };
        // Each knows another part of the dictionary.
        let layers: Vec<_> = [&[1][..], &[0], &[2]]
            .iter()
            .enumerate()
            .map(|(number, numbers)| {
                let (layer, _) = built(&files(numbers), &options);
                open_layer(&own_bootstrap_file(directory.path(), &format!("{batch_size:?}{number}"), &layer))
                    .unwrap()
            })
            .collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let image = merge(order.map(|at| layers[at].clone()).to_vec()).unwrap();
            assert_eq!(image.blobs.iter().map(|blob| blob.id).collect::<Vec<_>>(), [id]);
            let mut bytes = Vec::new();
            write(&image, &WriteOptions::default(), &mut bytes).unwrap();
            let read = Bootstrap::from_bytes(bytes).unwrap().to_image().unwrap();
            assert_eq!(read.blobs[0].chunks.len(), 3);
        }

        let mut changed = layers.clone();
        let wrong = changed[1].blobs.iter_mut().find(|blob| blob.id == id).unwrap();
        wrong.chunks[1] = layers[0].blobs.iter().find(|blob| blob.id == id).unwrap().chunks[1].clone();
        wrong.chunks[1].uncompressed_offset += 4096;
        let error = merge(changed).unwrap_err();
        let MergeError::Contradiction { layer: 1, blob, .. } = &error else { panic!("{error}") };
        assert_eq!(Some(*blob), id);
        let expected = "says of blob";
        assert!(
            error.to_string().contains(expected)
                && error.to_string().contains("of chunk 1 the uncompressed offset"),
            "{error}"
        );
    }
}

/// What nydus-image made as RAFS v5 has chunks at any byte. They are readable in a bootstrap of v6.
#[test]
fn layers_of_v5_are_merged() {
    for name in ["v5-lz4", "v5-none"] {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let v5 = Bootstrap::open(&data.with_extension("boot")).unwrap();
        let layer = open_layer(&data.with_extension("boot")).unwrap();
        let (upper, upper_blob) = built(
            &tar(&[("added", b"added", 0o644)]),
            &BuildOptions {
                digester: layer.blobs[0].digester,
                chunk_size: layer.blobs[0].chunk_size,
                ..BuildOptions::default()
            },
        );
        let upper_id = upper.blobs[0].id;
        let image = merge(vec![layer, upper]).unwrap();
        let mut bytes = Vec::new();
        write(&image, &WriteOptions::default(), &mut bytes).unwrap();
        let merged = Bootstrap::from_bytes(bytes).unwrap();
        assert!(rafs::check::structure(&merged).is_clean(), "{:?}", rafs::check::structure(&merged).findings);
        let v5_blob = fs::read(data.with_extension("blob")).unwrap();
        let source = Two { id: upper_id, upper: &upper_blob, lower: &v5_blob };
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        rafs::unpack::to_tar(&v5, &source, &mut expected).unwrap();
        rafs::unpack::to_tar(&merged, &source, &mut found).unwrap();
        let list = |tar: &[u8]| -> BTreeMap<PathBuf, Vec<u8>> {
            let mut archive = tar::Archive::new(tar);
            let entries = archive.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().into_owned(), content)
            });
            entries.collect()
        };
        let mut expected = list(&expected);
        expected.insert("added".into(), b"added".to_vec());
        assert_eq!(list(&found), expected);
    }
}

/// The upper blob by its id; every other one is the lower.
struct Two<'a> {
    id: Option<Digest>,
    upper: &'a [u8],
    lower: &'a [u8],
}

impl Two<'_> {
    fn stream(&self, blob: &Blob) -> &[u8] {
        if blob.id == self.id { self.upper } else { self.lower }
    }
}

impl BlobSource for Two<'_> {
    fn size(&self, blob: &Blob) -> io::Result<u64> {
        Ok(self.stream(blob).len() as u64)
    }

    fn read(&self, blob: &Blob, range: std::ops::Range<u64>) -> io::Result<Vec<u8>> {
        let found = self.stream(blob).get(range.start as usize..range.end as usize);
        found.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
