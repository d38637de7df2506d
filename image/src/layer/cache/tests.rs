//! The cache on disk: whole layers come back, whoever else writes, is killed, or breaks files.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use rafs::bootstrap::WriteOptions;
use rafs::build::build_layer;
use rafs::tree::Layer;
use registry::digest::{Digest, sha256};

use super::*;
use crate::layer::conversion::sha256_digest;
use crate::options::{Fingerprint, Options};

/// Says to a child process of a test where to write.
const DIR: &str = "LAYER_CACHE_TEST_DIR";

/// Layers that are written.
const LAYERS: u8 = 12;

fn recipe(batch_size: Option<u32>) -> Recipe {
    let options = Options { chunk_size: 65536, batch_size, ..Options::default() };
    Recipe::new(options, None, Vec::new(), 1).unwrap()
}

fn key(fingerprint: &Fingerprint, layer: &ConvertedLayer) -> Key {
    Key::new(fingerprint, layer.source.as_ref().unwrap())
}

/// A layer with directories of its own and implied ones, links, files of several chunks, and one that is overwritten.
fn layer(number: u8, recipe: &Recipe) -> ConvertedLayer {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o750);
        header.set_mtime(1234);
        header.set_size(size);
        header
    };
    let content = |salt: u8, size: usize| -> Vec<u8> {
        (0..size).map(|at| (at as u8).wrapping_mul(salt).wrapping_add(number)).collect()
    };
    tar.append_data(&mut header(tar::EntryType::Directory, 0), "own/", std::io::empty()).unwrap();
    for (name, salt, size) in
        [("own/a", 1, 200_000), ("gone", 2, 70_000), ("gone", 3, 10), ("implied/b/c", 5, 9)]
    {
        let content = content(salt, size);
        tar.append_data(&mut header(tar::EntryType::Regular, size as u64), name, content.as_slice()).unwrap();
    }
    tar.append_link(&mut header(tar::EntryType::Link, 0), "own/hard", "own/a").unwrap();
    tar.append_link(&mut header(tar::EntryType::Symlink, 0), "soft", "own/a").unwrap();
    let tar = tar.into_inner().unwrap();
    let layer = build_layer(tar.as_slice(), std::io::sink(), recipe.build()).unwrap();
    let own = &layer.blobs[0];
    let (digest, toc, size) = (own.id.unwrap(), own.toc.unwrap().0, own.stored_size);
    let source = sha256(&[&tar[..], b"compressed"].concat());
    ConvertedLayer {
        layer,
        digest: sha256_digest(digest),
        size,
        source: Some(source),
        diff_id: Some(sha256(&tar)),
        toc: Some(sha256_digest(toc)),
    }
}

/// The image of one layer over another, which shows what of a layer matters.
fn image(below: &Layer, above: &Layer) -> Vec<u8> {
    let image = rafs::merge::merge(vec![below.clone(), above.clone()]).unwrap();
    let mut bytes = Vec::new();
    rafs::bootstrap::write(&image, &WriteOptions::default(), &mut bytes).unwrap();
    for blob in image.blobs {
        bytes.extend(rafs::blob::meta::encode(&blob, 0).unwrap().to_file());
    }
    bytes
}

fn repository(name: &str) -> Repository {
    Repository::parse(name).unwrap()
}

#[test]
fn a_layer_comes_back_as_it_was_by_its_source_and_by_its_diff_id() {
    for batch_size in [None, Some(65536)] {
        let dir = tempfile::tempdir().unwrap();
        let recipe = recipe(batch_size);
        let fingerprint = recipe.fingerprint();
        let [below, above] = [1, 2].map(|number| layer(number, &recipe));
        let disk = DiskCache::new(dir.path(), 1 << 20);
        let place = repository("host:1/a");
        disk.write(&key(fingerprint, &above), &above, Some(&place));
        for digest in [&above.source, &above.diff_id] {
            let key = Key::new(fingerprint, digest.as_ref().unwrap());
            let known = disk.read(&key, &recipe).unwrap();
            assert_eq!(known.repositories, std::slice::from_ref(&place));
            let ConvertedLayer { layer, digest, size, source, diff_id, toc } = &*known.layer;
            assert_eq!((digest, *size), (&above.digest, above.size));
            assert_eq!((source, diff_id, toc), (&above.source, &above.diff_id, &above.toc));
            assert!(image(&below.layer, layer) == image(&below.layer, &above.layer), "{batch_size:?}");
            assert!(image(layer, &below.layer) == image(&above.layer, &below.layer), "{batch_size:?}");
        }
        let other = Recipe::default();
        assert!(disk.read(&key(other.fingerprint(), &above), &other).is_none());
    }
}

#[test]
fn a_blob_s_places_are_remembered_whatever_the_layer_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(None);
    let fingerprint = recipe.fingerprint();
    let layer = layer(1, &recipe);
    let key = key(fingerprint, &layer);
    let disk = DiskCache::new(dir.path(), 1 << 20);
    disk.write(&key, &layer, None);
    for name in ["host:1/a", "host:1/b", "host:1/a"] {
        disk.used(&key, Some(&repository(name)));
    }
    let by_diff_id = Key::new(fingerprint, layer.diff_id.as_ref().unwrap());
    let known = disk.read(&by_diff_id, &recipe).unwrap();
    assert_eq!(known.repositories, [repository("host:1/b"), repository("host:1/a")]);
}

#[test]
fn what_a_repository_says_of_a_layer_holds_there_alone() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(None);
    let layer = layer(1, &recipe);
    let key = key(recipe.fingerprint(), &layer);
    let disk = DiskCache::new(dir.path(), 1 << 20);
    let within = key.within(&repository("host:1/a"));
    disk.write(&within, &layer, None);
    for (key, found) in [(&within, true), (&key, false), (&key.within(&repository("host:1/b")), false)] {
        assert_eq!(disk.read(key, &recipe).is_some(), found);
        let by_diff_id = key.with(layer.diff_id.as_ref().unwrap());
        assert_eq!(disk.read(&by_diff_id, &recipe).is_some(), found);
    }
}

#[test]
fn what_was_used_longest_ago_makes_room_with_all_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(None);
    let fingerprint = recipe.fingerprint();
    let layers: Vec<_> = (0..4).map(|number| layer(number, &recipe)).collect();
    let bytes = entry::encode(&layers[0], &key(fingerprint, &layers[0])).unwrap().len() as u64;
    // Three fit: what files take beyond their content is counted.
    let disk = DiskCache::new(dir.path(), 3 * bytes + 4 * 4096);
    let found = |number: usize| disk.read(&key(fingerprint, &layers[number]), &recipe).is_some();
    for layer in &layers[..3] {
        disk.write(&key(fingerprint, layer), layer, Some(&repository("host:1/a")));
        disk.used(&key(fingerprint, &layers[0]), None);
    }
    disk.write(&key(fingerprint, &layers[3]), &layers[3], None);
    assert_eq!([0, 1, 2, 3].map(found), [true, false, true, true]);
    // The lock, and for each layer two names and a list of places.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1 + 3 * 3);
    let small = DiskCache::new(dir.path(), bytes);
    small.write(&key(fingerprint, &layers[1]), &layers[1], None);
    assert!(!found(1), "a layer that does not fit was written");
}

#[test]
fn a_broken_file_is_deleted_and_the_layer_can_be_kept_again() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(Some(65536));
    let fingerprint = recipe.fingerprint();
    let layer = layer(1, &recipe);
    let key = key(fingerprint, &layer);
    let disk = DiskCache::new(dir.path(), 1 << 20);
    let whole = entry::encode(&layer, &key).unwrap();
    let path = dir.path().join(key.file_name());
    let cuts = [0, 7, 8, 12, 300, whole.len() - 65, whole.len() - 1].map(|length| whole[..length].to_vec());
    let changes = [0, 9, 200, whole.len() / 2, whole.len() - 1].map(|at| {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        changed
    });
    for broken in cuts.into_iter().chain(changes) {
        disk.write(&key, &layer, None);
        std::fs::write(&path, broken).unwrap();
        assert!(disk.read(&key, &recipe).is_none() && !path.exists());
    }
    // Whole, but of another layer.
    let other = super::tests::layer(2, &recipe);
    let other = entry::encode(&other, &super::tests::key(fingerprint, &other));
    std::fs::write(&path, other.unwrap()).unwrap();
    assert!(disk.read(&key, &recipe).is_none());
    disk.write(&key, &layer, None);
    assert!(disk.read(&key, &recipe).is_some());
}

/// Layers are written and read for ever, in a directory with room for half of them.
fn churn(dir: &Path, seed: usize) {
    let recipe = recipe(None);
    let fingerprint = recipe.fingerprint();
    let layers: Vec<_> = (0..LAYERS).map(|number| layer(number, &recipe)).collect();
    let bytes = entry::encode(&layers[0], &key(fingerprint, &layers[0])).unwrap().len() as u64 + 4096;
    let disk = DiskCache::new(dir, bytes * u64::from(LAYERS) / 2);
    println!("ready");
    for turn in seed.. {
        let layer = &layers[turn * (seed + 5) % layers.len()];
        let key = key(fingerprint, layer);
        match disk.read(&key, &recipe) {
            Some(known) => {
                assert_eq!(known.layer.digest, layer.digest);
                disk.used(&key, Some(&repository(&format!("host:1/r{}", turn % 40))));
            }
            None => disk.write(&key, layer, Some(&repository("host:1/first"))),
        }
    }
}

/// Not a test of its own: what [`processes_that_are_killed_leave_nothing_broken`] runs in processes of its own.
#[test]
#[ignore = "runs until it is killed"]
fn child() {
    if let Some(dir) = std::env::var_os(DIR) {
        churn(Path::new(&dir), std::process::id() as usize);
    }
}

#[test]
fn processes_that_are_killed_leave_nothing_broken() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..6u64 {
        let children: Vec<_> = (0..3)
            .map(|_| {
                let mut child = Command::new(std::env::current_exe().unwrap());
                child.args(["--exact", "--ignored", "--nocapture", "layer::cache::tests::child"]);
                child.env(DIR, dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        // Until each has got through some layers; the pause varies where it is hit.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        while names() < 12 && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        std::thread::sleep(std::time::Duration::from_millis(40 + 7 * round));
        for mut child in children {
            child.kill().unwrap();
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.signal(), Some(9), "a writer failed: {said}");
            assert!(!said.contains("panicked"), "{said}");
        }
        let recipe = recipe(None);
        let fingerprint = recipe.fingerprint();
        let disk = DiskCache::new(dir.path(), 1 << 30);
        let mut whole = 0;
        for layer in (0..LAYERS).map(|number| layer(number, &recipe)) {
            let path = dir.path().join(key(fingerprint, &layer).file_name());
            if path.exists() {
                let known = disk.read(&key(fingerprint, &layer), &recipe);
                assert_eq!(known.map(|known| known.layer.digest.clone()), Some(layer.digest), "{round}");
                whole += 1;
            }
        }
        assert!(whole > 0 && whole <= LAYERS / 2, "{whole} layers where half of {LAYERS} fit");
    }
    // What was being written when somebody was killed goes when the next writes.
    std::fs::File::create(dir.path().join("leftover.partial")).unwrap().write_all(b"half").unwrap();
    let recipe = recipe(None);
    let (fingerprint, last) = (recipe.fingerprint(), layer(LAYERS, &recipe));
    DiskCache::new(dir.path(), 1 << 30).write(&key(fingerprint, &last), &last, None);
    let partial = std::fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
    assert_eq!(partial.filter(|entry| entry.path().extension() == Some("partial".as_ref())).count(), 0);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_costs_nothing_but_the_layers() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let recipe = Arc::new(recipe(None));
    let fingerprint = recipe.fingerprint();
    let layer = Arc::new(layer(1, &recipe));
    let key = key(fingerprint, &layer);
    let cache = LayerCache::new(1 << 20).on_disk(&file.join("below"), 1 << 20);
    cache.insert(&key, &layer, None);
    cache.settled().await;
    assert!(cache.find(&key, &recipe).await.is_some());
    let other = LayerCache::new(1 << 20).on_disk(&file.join("below"), 1 << 20);
    assert!(other.find(&key, &recipe).await.is_none());
}

#[tokio::test]
async fn another_process_finds_what_this_one_kept() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Arc::new(recipe(None));
    let fingerprint = recipe.fingerprint();
    let layer = Arc::new(layer(1, &recipe));
    let key = key(fingerprint, &layer);
    let cache = || LayerCache::new(1 << 20).on_disk(dir.path(), 1 << 20);
    let first = cache();
    first.insert(&key, &layer, Some(&repository("host:1/a")));
    first.used(&key, &layer, Some(&repository("host:1/b")));
    first.settled().await;
    let second = cache();
    let known = second.find(&key, &recipe).await.unwrap();
    assert_eq!(known.layer.digest, layer.digest);
    assert_eq!(known.repositories, [repository("host:1/b"), repository("host:1/a")]);
    // From now on it is in memory, places and all.
    std::fs::remove_dir_all(dir.path()).unwrap();
    let again = second.find(&key, &recipe).await.unwrap();
    assert_eq!(again.repositories, known.repositories);
    let digest: Option<&Digest> = layer.diff_id.as_ref();
    assert!(second.is_in_memory(&Key::new(fingerprint, digest.unwrap())));
}
