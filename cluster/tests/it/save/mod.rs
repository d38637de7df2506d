//! Saving the images of a lock, from and to registries of this process.

mod archives;
mod at_once;
mod cluster_image;
mod credentials;
mod killed;
mod level;
mod own_nydus;
mod rafs;
mod registries;
mod served;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use cluster::discover::{self, Options};
use cluster::lock::{Lock, ResolveOptions, resolve};
use cluster::save::{Destination, Failed, Forms, NotSaved, Report, SaveOptions, save};
use registry::client::Client;
use registry::server::{ServerConfig, serve};
use registry::{Reference, Repository};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::support::{self, Registry, index};

fn client() -> Client {
    Client::new(support::config()).unwrap()
}

/// The lock of a tree that asks for `images`.
async fn locked(dir: &TempDir, images: &str, platforms: &[&str]) -> Lock {
    locked_as(&client(), dir, images, platforms).await
}

async fn locked_as(client: &Client, dir: &TempDir, images: &str, platforms: &[&str]) -> Lock {
    fs::write(dir.path().join("imageList"), images).unwrap();
    let found = discover::discover(dir.path(), &Options::default()).await.unwrap();
    let platforms = platforms.iter().map(|platform| platform.parse().unwrap()).collect();
    let options = ResolveOptions { platforms, ..ResolveOptions::default() };
    let resolved = resolve(&found, dir.path(), client, &options, None).await.unwrap();
    assert_eq!(resolved.problems, []);
    resolved.lock
}

/// Saves; what was said of each image, by name, and what failed.
async fn saved(lock: &Lock, root: &Path, to: &Destination) -> (Vec<Report>, Vec<Failed>) {
    saved_as(&client(), lock, root, to).await
}

async fn saved_as(client: &Client, lock: &Lock, root: &Path, to: &Destination) -> (Vec<Report>, Vec<Failed>) {
    saved_in(client, lock, root, to, &plain()).await
}

/// Images as they are alone.
fn plain() -> SaveOptions {
    SaveOptions { forms: Forms::PLAIN, ..SaveOptions::default() }
}

async fn saved_in(
    client: &Client,
    lock: &Lock,
    root: &Path,
    to: &Destination,
    options: &SaveOptions,
) -> (Vec<Report>, Vec<Failed>) {
    let reports = Mutex::new(Vec::new());
    let done = |report: &Report| reports.lock().unwrap().push(report.clone());
    let failed = match save(lock, root, client, to, options, &done).await {
        Ok(_) => Vec::new(),
        Err(NotSaved::Images(failed)) => failed,
        Err(error) => panic!("{error}"),
    };
    let mut reports = reports.into_inner().unwrap();
    reports.sort_by_key(|report| report.image.to_string());
    (reports, failed)
}

/// Why nothing of the lock can be saved to `registry` in `dir`.
async fn refused(lock: &Lock, dir: &TempDir) -> String {
    let to = Destination::Directory(dir.path().join("registry"));
    let error = save(lock, dir.path(), &client(), &to, &plain(), &|_| {}).await.unwrap_err();
    assert!(matches!(error, NotSaved::Destination(_)), "{error}");
    error.to_string()
}

fn fetched(reports: &[Report]) -> u64 {
    reports.iter().map(|report| report.fetched).sum()
}

/// All blobs of the manifest under `reference` are there, as they should be.
async fn check_image(repository: &Repository, digest: &str) {
    check_image_as(&client(), repository, digest).await;
}

async fn check_image_as(client: &Client, repository: &Repository, digest: &str) {
    let reference = repository.with_digest(digest.parse().unwrap());
    let (_, content) = client.manifest(&reference).await.unwrap();
    let manifest: Value = serde_json::from_slice(&content).unwrap();
    for blob in [&manifest["config"]].into_iter().chain(manifest["layers"].as_array().unwrap()) {
        let digest = blob["digest"].as_str().unwrap().parse().unwrap();
        let mut reader = client.blob(repository, &digest).unwrap();
        while reader.next().await.unwrap().is_some() {}
    }
}

#[tokio::test]
async fn a_directory_is_served_and_what_is_there_is_not_fetched_again() {
    let registry = Registry::start().await;
    let host = registry.host();
    let shared = vec![7_u8; 3 << 20];
    let amd64 = registry.image("team/app", "linux/amd64", &[&shared, b"a"]).await;
    let arm64 = registry.image("team/app", "linux/arm64", &[&shared, b"b"]).await;
    let app = registry.tag("team/app", "v1", index(&[&amd64, &arm64])).await;
    let db = registry.image("db", "linux/amd64", &[&shared, b"db"]).await;
    registry.tag("db", "v2", db.content.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &format!("{host}/team/app:v1\n{host}/db:v2\n"), &["linux/amd64"]).await;
    let target = dir.path().join("registry");
    let to = Destination::Directory(target.clone());
    let (reports, failed) = saved(&lock, dir.path(), &to).await;
    assert!(failed.is_empty() && reports.len() == 2);
    // The layer that both have came once.
    assert!(fetched(&reports) < 4 << 20, "{}", fetched(&reports));
    assert_eq!(reports[0].bytes, db.bytes);
    let again = saved(&lock, dir.path(), &to).await;
    assert_eq!((again.0.len(), fetched(&again.0), again.1.len()), (2, 0, 0));
    // A new version brings what is new in it.
    let next = registry.image("db", "linux/amd64", &[&shared, b"db, newer"]).await;
    registry.tag("db", "v2", next.content.clone()).await;
    let lock = locked(&dir, &format!("{host}/team/app:v1\n{host}/db:v2\n"), &["linux/amd64"]).await;
    let (reports, _) = saved(&lock, dir.path(), &to).await;
    assert!((1..1024).contains(&fetched(&reports)), "{}", fetched(&reports));

    let shutdown = CancellationToken::new();
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::new(&target) };
    let served = serve(config, shutdown.clone()).await.unwrap();
    let repository = |name: &str| Repository::parse(&format!("{}/{name}", served.address())).unwrap();
    let (found, _) = client().manifest(&repository("team/app").with_tag("v1").unwrap()).await.unwrap();
    // The image's own index, although one of its manifests is not here.
    assert_eq!(found.digest().to_string(), app);
    check_image(&repository("team/app"), &amd64.digest).await;
    let absent = repository("team/app").with_digest(arm64.digest.parse().unwrap());
    assert!(client().head_manifest(&absent).await.unwrap().is_none());
    let (found, _) = client().manifest(&repository("db").with_tag("v2").unwrap()).await.unwrap();
    assert_eq!(found.digest().to_string(), next.digest);
    check_image(&repository("db"), &next.digest).await;
    shutdown.cancel();
}

#[tokio::test]
async fn names_that_differ_by_their_host_alone_are_a_conflict() {
    let (one, other) = (Registry::start().await, Registry::start().await);
    for (registry, layer) in [(&one, b"one".as_slice()), (&other, b"other".as_slice())] {
        let image = registry.image("app", "linux/amd64", &[layer]).await;
        registry.tag("app", "v1", image.content).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let list = format!("{}/app:v1\n{}/app:v1\n", one.host(), other.host());
    let lock = locked(&dir, &list, &[]).await;
    let error = refused(&lock, &dir).await;
    assert!(
        error.contains(&one.host()) && error.contains(&other.host()) && error.contains("app:v1"),
        "{error}"
    );
}

#[tokio::test]
async fn one_repository_holds_all_images_under_one_tag() {
    let (from, to) = (Registry::start().await, Registry::start().await);
    let host = from.host();
    let amd64 = from.image("app", "linux/amd64", &[b"a"]).await;
    let arm64 = from.image("app", "linux/arm64", &[b"b"]).await;
    let original = index(&[&amd64, &arm64]);
    let digest = from.tag("app", "v1", original.clone()).await;
    let db = from.image("db", "linux/amd64", &[b"a", b"db"]).await;
    from.tag("db", "v2", db.content.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &format!("{host}/app:v1\n{host}/db:v2\n"), &["linux/amd64"]).await;
    let name = Reference::parse(&format!("{}/cluster:v1-images", to.host())).unwrap();
    let destination = Destination::Repository(name.clone());
    let (reports, failed) = saved(&lock, dir.path(), &destination).await;
    assert!(failed.is_empty() && reports.len() == 2, "{failed:?}");
    let repository = name.repository();
    let (found, content) = client().manifest(&name).await.unwrap();
    let all: Value = serde_json::from_slice(&content).unwrap();
    let entries = all["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 3);
    let named: Vec<_> = entries[1..]
        .iter()
        .map(|entry| entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap())
        .collect();
    assert_eq!(named, [format!("{host}/app:v1"), format!("{host}/db:v2")]);
    for digest in [&amd64.digest, &db.digest] {
        check_image(repository, digest).await;
    }
    // The first is the lock, and the images' own indexes word for word.
    let (_, images) = client()
        .manifest(&repository.with_digest(entries[0]["digest"].as_str().unwrap().parse().unwrap()))
        .await
        .unwrap();
    let images: Value = serde_json::from_slice(&images).unwrap();
    assert_eq!(images["layers"][0]["digest"], digest.as_str());
    let mut reader = client().blob(repository, &digest.parse().unwrap()).unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), original);
    // The same again is the same, to the byte.
    let (reports, _) = saved(&lock, dir.path(), &destination).await;
    assert_eq!(fetched(&reports), 0);
    assert_eq!(client().manifest(&name).await.unwrap().0.digest(), found.digest());
}

#[tokio::test]
async fn a_failure_names_its_image_and_the_others_are_saved() {
    let registry = Registry::start().await;
    let host = registry.host();
    let good = registry.image("good", "linux/amd64", &[b"good"]).await;
    registry.tag("good", "v1", good.content.clone()).await;
    let bad = registry.image("bad", "linux/amd64", &[b"bad"]).await;
    registry.tag("bad", "v1", bad.content.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &format!("{host}/good:v1\n{host}/bad:v1\n"), &[]).await;
    // A byte of a layer changes where it lies.
    let damaged = registry.data(&registry::digest::sha256(b"bad"));
    fs::write(&damaged, b"bax").unwrap();
    let target = dir.path().join("registry");
    let (reports, failed) = saved(&lock, dir.path(), &Destination::Directory(target.clone())).await;
    assert_eq!((reports.len(), failed.len()), (1, 1));
    assert!(failed[0].to_string().starts_with(&format!("{host}/bad:v1: ")), "{}", failed[0]);
    // The one that failed has no name there, and nothing that is damaged has its digest's.
    assert!(!target.join("docker/registry/v2/repositories/bad/_manifests/tags").exists());
    // To a repository: no tag, until all is there.
    let name = Reference::parse(&format!("{host}/cluster:v1")).unwrap();
    fs::write(&damaged, b"bad").unwrap();
    let shelf = damaged.parent().unwrap();
    fs::rename(shelf, shelf.with_extension("away")).unwrap();
    let (_, failed) = saved(&lock, dir.path(), &Destination::Repository(name.clone())).await;
    assert_eq!(failed.len(), 1);
    assert!(client().head_manifest(&name).await.unwrap().is_none());
    fs::rename(shelf.with_extension("away"), shelf).unwrap();
    let (_, failed) = saved(&lock, dir.path(), &Destination::Repository(name.clone())).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert!(client().head_manifest(&name).await.unwrap().is_some());
}

#[tokio::test]
async fn a_moved_tag_is_saved_as_it_was_locked() {
    let registry = Registry::start().await;
    let host = registry.host();
    let first = registry.image("app", "linux/amd64", &[b"first"]).await;
    registry.tag("app", "v1", first.content.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &format!("{host}/app:v1\n"), &[]).await;
    let second = registry.image("app", "linux/amd64", &[b"second"]).await;
    registry.tag("app", "v1", second.content.clone()).await;
    let target = dir.path().join("registry");
    let (_, failed) = saved(&lock, dir.path(), &Destination::Directory(target.clone())).await;
    assert!(failed.is_empty());
    let link = target.join("docker/registry/v2/repositories/app/_manifests/tags/v1/current/link");
    assert_eq!(fs::read_to_string(link).unwrap(), first.digest);
}

#[tokio::test]
async fn two_saves_to_one_directory_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("registry/.nydus-cluster-save")).unwrap();
    let held = fs::File::open(dir.path().join("registry/.nydus-cluster-save")).unwrap();
    held.lock().unwrap();
    let registry = Registry::start().await;
    let image = registry.image("app", "linux/amd64", &[b"x"]).await;
    registry.tag("app", "v1", image.content).await;
    let lock = locked(&dir, &format!("{}/app:v1\n", registry.host()), &[]).await;
    let error = refused(&lock, &dir).await;
    assert!(error.contains("another save"), "{error}");
}
