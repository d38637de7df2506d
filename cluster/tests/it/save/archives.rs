//! Images in archives of the tree: for several platforms, and under other names.

use std::fs;
use std::path::Path;

use cluster::lock::Lock;
use cluster::save::{Destination, SaveOptions};
use registry::digest::sha256;
use registry::media_types::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::tar_of;

use super::rafs::{files, opened};
use super::{client, locked, saved_in};
use crate::support::Registry;

const NAME: &str = "docker.io/team/own:v1";
const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];

/// As `docker save` writes an image called `name` for several platforms, those without `absent`: an OCI layout with all of them, and the
/// manifest of old that names the first one.
fn archive(path: &Path, name: &str, absent: &[&str]) {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut blob = |media_type: &str, content: Vec<u8>, is_there: bool| {
        let (digest, size) = (sha256(&content), content.len());
        let place = format!("blobs/sha256/{}", digest.digest());
        if is_there {
            files.push((place.clone(), content));
        }
        (json!({"mediaType": media_type, "digest": digest.to_string(), "size": size}), place)
    };
    let (mut manifests, mut old) = (Vec::new(), Vec::new());
    for architecture in ["amd64", "arm64", "s390x"] {
        let is_there = !absent.contains(&architecture);
        let layer = tar_of(&[("own", format!("for {architecture}"))]);
        let rootfs = json!({"type": "layers", "diff_ids": [sha256(&layer).to_string()]});
        let config = json!({"os": "linux", "architecture": architecture, "rootfs": rootfs});
        let (config, config_place) = blob(OCI_CONFIG, config.to_string().into_bytes(), is_there);
        let (layer, layer_place) = blob(OCI_LAYER, layer, is_there);
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
        let (mut manifest, _) = blob(OCI_MANIFEST, manifest.to_string().into_bytes(), is_there);
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifests.push(manifest);
        old.push(json!({"Config": config_place, "RepoTags": [name], "Layers": [layer_place]}));
    }
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    let (mut root, _) = blob(OCI_INDEX, index.to_string().into_bytes(), true);
    root["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "v1"});
    let layout = json!({"schemaVersion": 2, "manifests": [root]});
    files.push(("index.json".to_owned(), layout.to_string().into_bytes()));
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    files.push(("manifest.json".to_owned(), Value::Array(old[..1].to_vec()).to_string().into_bytes()));
    fs::write(path, tar_of(&files)).unwrap();
}

/// A tree with such an archive of an image called `name`, that is asked for as [`NAME`].
fn tree(kind: &str, name: &str, absent: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("images/skopeo");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("tar.txt"), format!("{kind}:own.tar@team/own:v1\n")).unwrap();
    archive(&place.join("own.tar"), name, absent);
    dir
}

/// What each image that was saved has for a platform.
async fn check(lock: &Lock, dir: &TempDir, platforms: &[&str]) {
    let to = Registry::start().await;
    let reference = to.repository("team/cluster").with_tag("images").unwrap();
    let destination = Destination::Repository(reference.clone());
    let (reports, failed) =
        saved_in(&client(), lock, dir.path(), &destination, &SaveOptions::default()).await;
    assert!(failed.is_empty() && reports.len() == 1, "{failed:?}");
    let saved = opened(&reference).await;
    assert_eq!(saved.table().unwrap().images.len(), platforms.len());
    let [image] = &lock.images[..] else { panic!("{lock:?}") };
    assert_eq!(image.reference.to_string(), NAME);
    let names: Vec<String> = image.platforms.iter().map(|image| image.platform.to_string()).collect();
    assert_eq!(names, platforms);
    for image in &image.platforms {
        let found = files(&saved, image.digest.as_ref()).await;
        let expected = format!("for {}", image.platform.architecture());
        assert_eq!(found["own"], expected.into_bytes(), "{}", image.platform);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_platforms_of_an_archive_are_saved_each_with_its_own_files() {
    for kind in ["docker-archive", "oci-archive"] {
        let dir = tree(kind, NAME, &["s390x"]);
        check(&locked(&dir, "", &PLATFORMS).await, &dir, &PLATFORMS).await;
        check(&locked(&dir, "", &PLATFORMS[1..]).await, &dir, &PLATFORMS[1..]).await;
        // Those that were never pulled are named in the archive's index, and not there.
        check(&locked(&dir, "", &[]).await, &dir, &PLATFORMS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_image_of_an_archive_is_called_as_the_list_says() {
    for kind in ["docker-archive", "oci-archive"] {
        let dir = tree(kind, "build.example/other:v7", &["arm64", "s390x"]);
        check(&locked(&dir, "", &[]).await, &dir, &PLATFORMS[..1]).await;
    }
}
