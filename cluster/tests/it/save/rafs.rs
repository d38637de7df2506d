//! Images saved as RAFS: what they share, what comes again, and whether they are what they were.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use cluster::lock::Lock;
use cluster::save::{Destination, Failed, Forms, LayerSpace, Report, SaveOptions};
use cluster::saved::{SavedAt, SavedImages, Table};
use registry::client::{Client, ClientConfig, UploadConfig};
use registry::digest::sha256;
use registry::{Digest, Reference, Repository};
use serde_json::Value;
use tempfile::TempDir;

use super::{client, fetched, locked, saved_in};
use crate::peers::{self, have, noise};
pub(crate) use crate::support::images::{Files, files};
use crate::support::{self, Registry, index, layer};

/// A client whose converted layers wait in `dir`.
pub(crate) fn client_in(dir: &Path) -> Client {
    let upload = UploadConfig { spool_dir: dir.to_owned(), ..UploadConfig::default() };
    Client::new(ClientConfig { upload, ..support::config() }).unwrap()
}

async fn saved(lock: &Lock, dir: &TempDir, to: &Destination) -> (Vec<Report>, Vec<Failed>) {
    saved_in(&client_in(dir.path()), lock, dir.path(), to, &SaveOptions::default()).await
}

pub(crate) fn repository_of(to: &Registry, tag: &str) -> Reference {
    Reference::parse(&format!("{}/team/cluster:{tag}", to.host())).unwrap()
}

pub(crate) async fn opened(reference: &Reference) -> SavedImages {
    SavedImages::open(&SavedAt::Repository(reference.clone()), &client()).await.unwrap()
}

fn expected(files: &[(&str, &Bytes)]) -> Files {
    files.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect()
}

pub(crate) fn stored(table: &Table) -> u64 {
    table.blobs.values().map(|blob| blob.size).sum()
}

pub(crate) fn blobs(table: &Table) -> BTreeSet<String> {
    table.blobs.keys().map(ToString::to_string).collect()
}

/// Two images on one base, one of them for two platforms, with a file that layers of both have.
pub(crate) struct World {
    pub(crate) from: Registry,
    base: Bytes,
    pub(crate) lib: Bytes,
    pub(crate) app: [Bytes; 2],
    db: Bytes,
    manifests: [support::Stored; 3],
    index: Vec<u8>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let from = Registry::start().await;
        let (base, lib) = (noise(1, 1_000_000), noise(2, 2_500_000));
        let (app, db) = ([noise(3, 300_000), noise(4, 400_000)], noise(5, 500_000));
        let lowest = layer(&[("base", &base)]);
        let mut manifests = Vec::new();
        for (platform, own) in ["linux/amd64", "linux/arm64"].iter().zip(&app) {
            let top = layer(&[("app", own), ("lib/app", &lib)]);
            manifests.push(from.image("team/app", platform, &[&lowest, &top]).await);
        }
        let index = index(&[&manifests[0], &manifests[1]]);
        from.tag("team/app", "v1", index.clone()).await;
        let top = layer(&[("db", &db), ("lib/db", &lib)]);
        let image = from.image("db", "linux/amd64", &[&lowest, &top]).await;
        from.tag("db", "v1", image.content.clone()).await;
        manifests.push(image);
        let manifests = manifests.try_into().ok().unwrap();
        Self { from, base, lib, app, db, manifests, index }
    }

    pub(crate) fn list(&self) -> String {
        Self::list_at(&self.from.host())
    }

    /// The same, where the registry is called so.
    pub(crate) fn list_at(host: &str) -> String {
        format!("{host}/team/app:v1\n{host}/db:v1\n")
    }

    /// The bytes of all contents, each once.
    pub(crate) fn distinct(&self) -> u64 {
        [&self.base, &self.lib, &self.app[0], &self.app[1], &self.db]
            .iter()
            .map(|file| file.len() as u64)
            .sum()
    }

    pub(crate) async fn check(&self, saved: &SavedImages) {
        self.check_these(saved, &[0, 1, 2]).await;
    }

    /// Those for one platform alone.
    pub(crate) async fn check_amd64(&self, saved: &SavedImages) {
        self.check_these(saved, &[0, 2]).await;
    }

    async fn check_these(&self, saved: &SavedImages, images: &[usize]) {
        let of_app = |own| expected(&[("app", own), ("base", &self.base), ("lib/app", &self.lib)]);
        let of_db = expected(&[("base", &self.base), ("db", &self.db), ("lib/db", &self.lib)]);
        let all = [of_app(&self.app[0]), of_app(&self.app[1]), of_db];
        for &number in images {
            let digest = &self.manifests[number].digest;
            assert!(files(saved, digest).await == all[number], "{digest}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_what_they_were_and_what_they_share_is_stored_once() {
    let world = World::new().await;
    let (to, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let lock = locked(&dir, &world.list(), &[]).await;
    let name = repository_of(&to, "images");
    let (reports, failed) = saved(&lock, &dir, &Destination::Repository(name.clone())).await;
    assert!(failed.is_empty() && reports.len() == 2, "{failed:?}");
    let images = opened(&name).await;
    assert_eq!(*images.lock(), lock);
    let table = images.table().unwrap();
    // Metadata of seven blobs beside the contents.
    assert!(stored(table) < world.distinct() + (64 << 10), "{} of {}", stored(table), world.distinct());
    assert_eq!((table.images.len(), table.layers.len(), table.blobs.len()), (3, 4, 5));
    world.check(&images).await;
    // What serves them has every document word for word.
    for document in world.manifests.iter().map(|image| &image.content).chain([&world.index]) {
        let found = images.document(&sha256(document)).await.unwrap();
        assert_eq!(found.as_deref(), Some(document.as_slice()));
        assert!(images.documents()[&sha256(document)].media_type.starts_with("application/vnd.oci.image."));
        let config: Value = serde_json::from_slice(document).unwrap();
        if let Some(config) = config["config"]["digest"].as_str() {
            let content = images.document(&config.parse().unwrap()).await.unwrap().unwrap();
            let config: Value = serde_json::from_slice(&content).unwrap();
            let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
            let top = sha256(
                format!("{} {}", diff_ids[0].as_str().unwrap(), diff_ids[1].as_str().unwrap()).as_bytes(),
            );
            assert!(table.chains[&top].bootstrap.is_some());
            assert_eq!(table.layers_of(&top).unwrap().len(), 2);
            let lowest: Digest = diff_ids[0].as_str().unwrap().parse().unwrap();
            assert!(table.chains[&lowest].bootstrap.is_none());
            assert_eq!(images.layer(&lowest).await.unwrap().blobs.len(), 1);
        }
    }
    // The tag keeps all of it, and nothing waits on this machine any more.
    let (_, content) = client().manifest(&name).await.unwrap();
    let named: Value = serde_json::from_slice(&content).unwrap();
    assert_eq!(named["manifests"].as_array().unwrap().len(), 4);
    assert!(fs::read_dir(dir.path()).unwrap().all(|entry| entry.unwrap().file_type().unwrap().is_file()));
    // The same again brings nothing and changes nothing.
    let (reports, failed) = saved(&lock, &dir, &Destination::Repository(name.clone())).await;
    assert_eq!((fetched(&reports), failed.len()), (0, 0));
    assert_eq!(client().manifest(&name).await.unwrap().1, content);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_images_under_other_names_and_in_rounds_give_blobs_by_content() {
    let world = World::new().await;
    let (to, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let lock = locked(&dir, &world.list(), &[]).await;
    let first = repository_of(&to, "first");
    saved(&lock, &dir, &Destination::Repository(first.clone())).await;
    // The other order of names, in a repository that has none of it.
    for image in &world.manifests[..2] {
        world.from.copy("team/app", "z/app", image).await;
    }
    world.from.tag("z/app", "v1", world.index.clone()).await;
    let list = format!("{0}/z/app:v1\n{0}/db:v1\n", world.from.host());
    let other = locked(&dir, &list, &[]).await;
    let second = Reference::parse(&format!("{}/other:v1", to.host())).unwrap();
    let (_, failed) = saved(&other, &dir, &Destination::Repository(second.clone())).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(opened(&first).await.table().unwrap(), opened(&second).await.table().unwrap());
    // A layer at a time: each finds what those before it stored.
    let third = Reference::parse(&format!("{}/rounds:v1", to.host())).unwrap();
    let options = SaveOptions { layer_space: LayerSpace::new(1), ..SaveOptions::default() };
    let client = client_in(dir.path());
    let to = Destination::Repository(third.clone());
    let (_, failed) = saved_in(&client, &lock, dir.path(), &to, &options).await;
    assert!(failed.is_empty(), "{failed:?}");
    let images = opened(&third).await;
    assert!(stored(images.table().unwrap()) < world.distinct() + (64 << 10));
    world.check(&images).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_brings_what_changed_and_changes_no_blob() {
    let world = World::new().await;
    let (to, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let lock = locked(&dir, &world.list(), &[]).await;
    let first = repository_of(&to, "v1");
    saved(&lock, &dir, &Destination::Repository(first.clone())).await;
    let before = opened(&first).await.table().unwrap().clone();
    // The service is rebuilt: its layer has the same library and another program.
    let db = noise(6, 450_000);
    let top = layer(&[("db", &db), ("lib/db", &world.lib)]);
    let lowest = layer(&[("base", &world.base)]);
    let image = world.from.image("db", "linux/amd64", &[&lowest, &top]).await;
    world.from.tag("db", "v1", image.content.clone()).await;
    let lock = locked(&dir, &world.list(), &[]).await;
    let second = repository_of(&to, "v2");
    let options = SaveOptions { base: Some(first.clone()), ..SaveOptions::default() };
    let destination = Destination::Repository(second.clone());
    let client = client_in(dir.path());
    let (reports, failed) = saved_in(&client, &lock, dir.path(), &destination, &options).await;
    assert!(failed.is_empty(), "{failed:?}");
    // No more than the new layer.
    assert_eq!(fetched(&reports), top.len() as u64);
    let images = opened(&second).await;
    let after = images.table().unwrap();
    let new: Vec<_> = after.blobs.iter().filter(|(blob, _)| !before.blobs.contains_key(blob)).collect();
    assert_eq!(new.len(), 1);
    assert!(new[0].1.size < db.len() as u64 + (16 << 10), "{}", new[0].1.size);
    let of_db = expected(&[("base", &world.base), ("db", &db), ("lib/db", &world.lib)]);
    assert!(files(&images, &image.digest).await == of_db);
    // Those of the first version are still what they were.
    world.check(&opened(&first).await).await;
    let elsewhere = SaveOptions {
        base: Some(Reference::parse("registry.example/other:v1").unwrap()),
        ..SaveOptions::default()
    };
    let error = cluster::save::save(&lock, dir.path(), &client, &destination, &elsewhere, &|_| {}).await;
    assert!(error.unwrap_err().to_string().contains("registry.example/other:v1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_served_with_the_images_under_their_names() {
    if !have("docker-registry") {
        return;
    }
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &world.list(), &[]).await;
    let served = peers::Registry::docker(dir.path(), "");
    let target = dir.path().join("root");
    let to = Destination::Directory(target.clone());
    let (reports, failed) = saved(&lock, &dir, &to).await;
    assert!(failed.is_empty() && reports.len() == 2, "{failed:?}");
    let place = SavedAt::Directory(target.clone());
    let images = SavedImages::open(&place, &client()).await.unwrap();
    world.check(&images).await;
    // The same from whatever serves the directory: by the name of all, and by that of each.
    let all = Reference::parse(&format!("{}/nydus-cluster/images:latest", served.host())).unwrap();
    let over_http = opened(&all).await;
    assert_eq!(over_http.table(), images.table());
    world.check(&over_http).await;
    let name = Repository::parse(&format!("{}/team/app", served.host())).unwrap();
    let (_, content) = client().manifest(&name.with_tag("v1").unwrap()).await.unwrap();
    let named: Value = serde_json::from_slice(&content).unwrap();
    for entry in named["manifests"].as_array().unwrap() {
        assert_eq!(entry["artifactType"], registry::nydus::ARTIFACT_TYPE_MANIFEST);
        super::check_image(&name, entry["digest"].as_str().unwrap()).await;
    }
    // Again, with the images as they are: these come, and the rest stays.
    let before = blobs(images.table().unwrap());
    let options = SaveOptions { forms: Forms { rafs: true, plain: true }, ..SaveOptions::default() };
    let (reports, failed) = saved_in(&client(), &lock, dir.path(), &to, &options).await;
    assert!(failed.is_empty() && fetched(&reports) > world.distinct(), "{failed:?}");
    let images = SavedImages::open(&place, &client()).await.unwrap();
    assert_eq!(blobs(images.table().unwrap()), before);
    let (found, _) = client().manifest(&name.with_tag("v1").unwrap()).await.unwrap();
    assert_eq!(*found.digest(), sha256(&world.index));
    super::check_image(&name, &world.manifests[0].digest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_collection_leaves_what_was_saved() {
    if !have("docker-registry") {
        return;
    }
    let (world, dir) = (World::new().await, tempfile::tempdir().unwrap());
    let lock = locked(&dir, &world.list(), &[]).await;
    let served = peers::Registry::docker(dir.path(), "");
    let name = served.reference("team/cluster:images");
    let (_, failed) = saved(&lock, &dir, &Destination::Repository(name.clone())).await;
    assert!(failed.is_empty(), "{failed:?}");
    let garbage = noise(7, 1000);
    client().push_blob(name.repository(), garbage.clone()).await.unwrap();
    served.stop().await;
    let config = peers::docker_config(dir.path(), "");
    let output = Command::new("docker-registry").arg("garbage-collect").arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (garbage, blobs) = (sha256(&garbage), dir.path().join("root/docker/registry/v2/blobs/sha256"));
    assert!(!blobs.join(&garbage.digest()[..2]).join(garbage.digest()).join("data").exists());
    let served = peers::Registry::docker(dir.path(), "");
    world.check(&opened(&served.reference("team/cluster:images")).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_its_config_says_fails_its_image_and_nothing_is_named() {
    let world = World::new().await;
    let (to, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    // A chain id of the good image's, over another content.
    let lowest = layer(&[("base", &world.base)]);
    let wrong = world.from.image_with("bad", &[&layer(&[("evil", b"evil")])], &[sha256(&lowest)]).await;
    world.from.tag("bad", "v1", wrong.content.clone()).await;
    let no_tar = world.from.image("broken", "linux/amd64", &[b"this is no tar"]).await;
    world.from.tag("broken", "v1", no_tar.content.clone()).await;
    // And one that is no longer there when it is saved.
    let gone = world.from.image("gone", "linux/amd64", &[b"gone"]).await;
    world.from.tag("gone", "v1", gone.content.clone()).await;
    let list = format!("{0}{1}/broken:v1\n{1}/gone:v1\n", world.list(), world.from.host());
    let lock = locked(&dir, &list, &[]).await;
    fs::remove_file(world.from.data(&gone.digest.parse().unwrap())).unwrap();
    let name = repository_of(&to, "images");
    let (_, failed) = saved(&lock, &dir, &Destination::Repository(name.clone())).await;
    assert_eq!(failed.len(), 2);
    for (failed, image) in failed.iter().zip(["broken", "gone"]) {
        let start = format!("{}/{image}:v1: ", world.from.host());
        assert!(failed.to_string().starts_with(&start), "{failed}");
    }
    assert!(client().head_manifest(&name).await.unwrap().is_none());
    let lock = locked(&dir, &format!("{}/bad:v1\n", world.from.host()), &[]).await;
    let (_, failed) = saved(&lock, &dir, &Destination::Repository(name.clone())).await;
    assert!(failed[0].to_string().contains("config says"), "{}", failed[0]);
    // What was converted of the good ones is not fetched again.
    let lock = locked(&dir, &world.list(), &[]).await;
    let (reports, failed) = saved(&lock, &dir, &Destination::Repository(name.clone())).await;
    assert_eq!((failed.len(), fetched(&reports)), (0, 0));
    world.check(&opened(&name).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_cannot_name_what_it_has_fetches_nothing_again() {
    let registry = Registry::start().await;
    let image = registry.image("app", "linux/amd64", &[&layer(&[("file", &noise(1, 100_000))])]).await;
    registry.tag("app", "v1", image.content).await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &format!("{}/app:v1\n", registry.host()), &[]).await;
    let target = dir.path().join("registry");
    let to = Destination::Directory(target.clone());
    let tag = target.join("docker/registry/v2/repositories/nydus-cluster/images/_manifests/tags/latest");
    fs::create_dir_all(&tag).unwrap();
    fs::write(tag.join("index"), "in the way").unwrap();
    let options = SaveOptions::default();
    let error = cluster::save::save(&lock, dir.path(), &client(), &to, &options, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("tags/latest/index"), "{error}");
    fs::remove_file(tag.join("index")).unwrap();
    let (reports, failed) = saved_in(&client(), &lock, dir.path(), &to, &options).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(reports[0].fetched, 0);
    assert_eq!(fs::read_dir(target.join(".nydus-cluster-save")).unwrap().count(), 0);
}
