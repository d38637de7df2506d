//! Bootstraps that the daemon makes, of a layer with one and of layers' own trees.

use std::path::Path;

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{BackendSpec, BlobId, BootstrapRequest, BootstrapSource, LayerTree};
use rafs::blob::stream::Toc;
use rafs::build::BuildOptions;
use rafs::digest::{Digest, DigestAlgorithm};
use rafs::layout::toc::BOOTSTRAP;
use test_support::{gzip, noise, tar_of};

use crate::can_mount;
use crate::control::{Daemon, FILE_SERVER, http_directory, kind, read};
use crate::image::TestImage;

fn sha256(bytes: &[u8]) -> BlobId {
    BlobId(DigestAlgorithm::Sha256.digest(bytes))
}

/// A request for a bootstrap in a directory of its own, of what `blobs` has.
fn request(daemon: &Daemon, name: &str, blobs: &Path, source: BootstrapSource) -> BootstrapRequest {
    let folder = daemon.dir.path().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    BootstrapRequest {
        target: folder.join("image.boot"),
        image: name.to_owned(),
        backends: vec![BackendSpec::Directory { path: blobs.to_owned() }],
        source,
    }
}

/// Names in the directory of a request's target.
fn names(request: &BootstrapRequest) -> Vec<String> {
    let entries = std::fs::read_dir(request.target.parent().unwrap()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Stores a blob as a directory of blobs has it.
fn store(blobs: &Path, bytes: &[u8]) -> BlobId {
    let id = sha256(bytes);
    std::fs::write(blobs.join(id.0.to_string()), bytes).unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_of_an_images_layer_is_taken_out_of_it() {
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let bootstrap = std::fs::read(image.bootstrap()).unwrap();
    let digits = "a".repeat(64);
    let files = [
        ("image/image.boot".to_owned(), bootstrap.clone()),
        (format!("image/{digits}.blob.meta"), b"chunks".to_vec()),
        ("image/other".to_owned(), b"nobody wants it".to_vec()),
    ];
    let tar = tar_of(&files);
    let blob = store(&image.blobs(), &gzip(&tar));
    let size = std::fs::metadata(image.blobs().join(blob.0.to_string())).unwrap().len();
    let daemon = Daemon::start().await;
    let packed = |blob, diff_id| BootstrapSource::Packed { blob, size, diff_id };
    let good = request(&daemon, "good", &image.blobs(), packed(blob, sha256(&tar)));
    daemon.client.make_bootstrap(&good).await.unwrap();
    daemon.client.make_bootstrap(&good).await.expect("it is made again");
    assert_eq!(std::fs::read(&good.target).unwrap(), bootstrap);
    assert_eq!(names(&good), [format!("{digits}.blob.meta"), "image.boot".to_owned()]);

    let other = request(&daemon, "other", &image.blobs(), packed(blob, sha256(b"other")));
    let said = daemon.client.make_bootstrap(&other).await;
    assert!(format!("{said:?}").contains("has SHA-256"), "{said:?}");
    assert_eq!((kind(said), names(&other).len()), (Some(ErrorKind::Bootstrap), 0));
    let gone = request(&daemon, "gone", &image.blobs(), packed(sha256(b"gone"), sha256(&tar)));
    assert_eq!(kind(daemon.client.make_bootstrap(&gone).await), Some(ErrorKind::Failed));
    let empty = tar_of(&[("image/other", b"no bootstrap")]);
    let stored = store(&image.blobs(), &empty);
    let source = BootstrapSource::Packed { blob: stored, size: empty.len() as u64, diff_id: stored };
    let none = request(&daemon, "none", &image.blobs(), source);
    assert_eq!(kind(daemon.client.make_bootstrap(&none).await), Some(ErrorKind::Bootstrap));
    let relative = BootstrapRequest { target: "relative".into(), ..good.clone() };
    assert_eq!(kind(daemon.client.make_bootstrap(&relative).await), Some(ErrorKind::Invalid));
    let nobody = BootstrapRequest { backends: Vec::new(), ..good };
    assert_eq!(kind(daemon.client.make_bootstrap(&nobody).await), Some(ErrorKind::Invalid));
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_keeps_no_other_image_from_its_bootstrap() {
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let tree = tree_of(&image.blobs(), image.blob_ids()[0]);
    let layers = || BootstrapSource::Layers { layers: vec![tree] };
    let daemon = Daemon::start().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let repository = format!("{}/app", silent.local_addr().unwrap());
    let mut waits = request(&daemon, "waits", &image.blobs(), layers());
    waits.backends = vec![BackendSpec::Registry { repository }];
    let client = daemon.client.clone();
    let waiting = tokio::spawn(async move { client.make_bootstrap(&waits).await });
    // From here on it has its turn.
    let _connection = silent.accept().await.unwrap();
    let good = request(&daemon, "good", &image.blobs(), layers());
    daemon.client.make_bootstrap(&good).await.unwrap();
    assert_eq!(names(&good), ["image.boot"]);
    assert!(!waiting.is_finished(), "it waits for its registry");
    waiting.abort();
    daemon.end().await;
}

/// Where the tree of the layer in a blob is.
fn tree_of(blobs: &Path, id: Digest) -> LayerTree {
    let bytes = std::fs::read(blobs.join(id.to_string())).unwrap();
    let size = bytes.len() as u64;
    let toc = Toc::parse(&bytes[Toc::range(size).start as usize..], size, None).unwrap();
    let part = toc.part(BOOTSTRAP).unwrap();
    LayerTree {
        blob: BlobId(id),
        size,
        toc: BlobId(toc.digest),
        offset: part.range.start,
        stored_bytes: part.stored_size(),
        digest: BlobId(part.digest),
        bytes: part.uncompressed_size,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trees_of_layers_are_merged_and_mounted() {
    if !can_mount() {
        return;
    }
    let (kept, replaced, new) = (noise(1, 300_000), noise(2, 200_000), noise(3, 100_000));
    let lower = tar_of(&[("kept", &kept), ("replaced", &replaced), ("removed", &replaced)]);
    let upper = tar_of(&[("replaced", new.as_slice()), (".wh.removed", b"")]);
    let image = TestImage::build_layers(&[&lower, &upper], &BuildOptions::default());
    // The lower one's chunks of what was replaced are used by none, its blob is all the same.
    let trees: Vec<_> = image.blob_ids().into_iter().map(|id| tree_of(&image.blobs(), id)).collect();
    let [below, above] = trees[..] else { panic!("two blobs: {trees:?}") };
    let daemon = Daemon::start().await;
    let layers = |layers: Vec<LayerTree>| BootstrapSource::Layers { layers };
    let both = request(&daemon, "both", &image.blobs(), layers(vec![below, above]));
    daemon.client.make_bootstrap(&both).await.unwrap();
    assert_eq!(names(&both), ["image.boot"]);
    let mut mount = daemon.request("both", &both.target, "127.0.0.1:1/demo:v1");
    mount.backends = both.backends.clone();
    daemon.client.mount(&mount).await.unwrap();
    assert_eq!(read(mount.mountpoint.join("kept")).await.unwrap(), kept);
    assert_eq!(read(mount.mountpoint.join("replaced")).await.unwrap(), new);
    assert!(!mount.mountpoint.join("removed").exists());

    let one = request(&daemon, "one", &image.blobs(), layers(vec![below]));
    daemon.client.make_bootstrap(&one).await.unwrap();
    let mut mount = daemon.request("one", &one.target, "127.0.0.1:1/demo:v1");
    mount.backends = one.backends.clone();
    daemon.client.mount(&mount).await.unwrap();
    assert_eq!(read(mount.mountpoint.join("removed")).await.unwrap(), replaced);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_that_are_not_what_was_asked_for_are_refused_by_name() {
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let tree = tree_of(&image.blobs(), image.blob_ids()[0]);
    let daemon = Daemon::start().await;
    let other = sha256(b"other");
    let cases: [(&str, LayerTree, Option<ErrorKind>, &str); 5] = [
        ("digest", LayerTree { digest: other, ..tree }, Some(ErrorKind::Bootstrap), "the tree of blob"),
        ("toc", LayerTree { toc: other, ..tree }, Some(ErrorKind::Bootstrap), "table of contents"),
        (
            "short",
            LayerTree { bytes: tree.bytes - 1, ..tree },
            Some(ErrorKind::Failed),
            "unpacks to more than",
        ),
        ("large", LayerTree { bytes: u64::MAX, ..tree }, Some(ErrorKind::Bootstrap), "expected at most"),
        ("place", LayerTree { offset: 0, ..tree }, Some(ErrorKind::Bootstrap), "the tree of blob"),
    ];
    for (name, tree, expected, text) in cases {
        let request = request(&daemon, name, &image.blobs(), BootstrapSource::Layers { layers: vec![tree] });
        let said = daemon.client.make_bootstrap(&request).await;
        assert!(format!("{said:?}").contains(text), "{name}: {said:?}");
        assert_eq!(kind(said), expected, "{name}");
        assert_eq!(names(&request), [""; 0], "{name}");
    }
    let none = request(&daemon, "none", &image.blobs(), BootstrapSource::Layers { layers: Vec::new() });
    assert_eq!(kind(daemon.client.make_bootstrap(&none).await), Some(ErrorKind::Bootstrap));
    daemon.end().await;
}

/// A directory in which a blob is not what its name says.
fn false_directory(blob: BlobId, bytes: &[u8]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(blob.0.to_string()), bytes).unwrap();
    directory
}

/// A zstd stream of `length` bytes that unpacks to `unpacked` zeros.
fn zeros(unpacked: usize, length: usize) -> Vec<u8> {
    let mut stream = zstd::encode_all(vec![0; unpacked].as_slice(), 3).unwrap();
    let skipped = u32::try_from(length - stream.len() - 8).unwrap();
    stream.extend([0x184d_2a50, skipped].map(u32::to_le_bytes).concat());
    stream.resize(length, 0);
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_server_delivers_what_is_wrong_another_is_asked() {
    let image = TestImage::build(&tar_of(&[("file", noise(4, 100_000))]), &BuildOptions::default());
    let bootstrap = std::fs::read(image.bootstrap()).unwrap();
    let padding = noise(5, 20_000);
    let tar = tar_of(&[("image/image.boot", &bootstrap), ("image/other", &padding)]);
    let stored = gzip(&tar);
    let (packed, size) = (store(&image.blobs(), &stored), stored.len() as u64);
    let packed_source = || BootstrapSource::Packed { blob: packed, size, diff_id: sha256(&tar) };
    let layer = tree_of(&image.blobs(), image.blob_ids()[0]);
    let layer_source = || BootstrapSource::Layers { layers: vec![layer] };
    let blob = std::fs::read(image.blobs().join(layer.blob.0.to_string())).unwrap();
    let changed = |at: usize, with: &[u8]| {
        let mut blob = blob.clone();
        blob[at..at + with.len()].copy_from_slice(with);
        blob
    };
    let (tree, tree_length) = (layer.offset as usize, layer.stored_bytes as usize);
    let cut = [&stored[..stored.len() - 1000], &[0; 1000]].concat();
    let cases = [
        ("other bytes", packed, stored.iter().map(|byte| !byte).collect(), packed_source()),
        ("a stream that is cut off", packed, cut, packed_source()),
        ("half of an answer", packed, stored[..stored.len() / 2].to_vec(), packed_source()),
        ("too much", packed, zeros(2048 * stored.len(), stored.len()), packed_source()),
        ("another tar", packed, zeros(tar.len(), stored.len()), packed_source()),
        ("another tree", layer.blob, changed(tree, &zeros(100, tree_length)), layer_source()),
        ("a larger tree", layer.blob, changed(tree, &zeros(100_000, tree_length)), layer_source()),
        ("a broken tree", layer.blob, changed(tree, &vec![0xff; tree_length]), layer_source()),
        ("another table", layer.blob, changed(blob.len() - 600, &[0xff; 16]), layer_source()),
        ("no table", layer.blob, changed(blob.len() - 512, &[0xff; 512]), layer_source()),
    ];
    let daemon = Daemon::start().await;
    let (good, good_server) = http_directory(image.blobs(), FILE_SERVER).await;
    for (number, (what, id, bytes, source)) in cases.into_iter().enumerate() {
        let directory = false_directory(id, &bytes);
        let (lying, lying_server) = http_directory(directory.path().to_owned(), FILE_SERVER).await;
        let mut asks = request(&daemon, &number.to_string(), &image.blobs(), source);
        asks.backends = [lying, good.clone()].map(|url| BackendSpec::HttpDirectory { url }).into();
        let made = daemon.client.make_bootstrap(&asks).await;
        assert!(made.is_ok(), "{what}: {made:?}");
        assert_eq!(names(&asks), ["image.boot"], "{what}");
        asks.backends.pop();
        assert!(daemon.client.make_bootstrap(&asks).await.is_err(), "{what}, and nobody else has it");
        lying_server.abort();
    }
    daemon.end().await;
    good_server.abort();
}
