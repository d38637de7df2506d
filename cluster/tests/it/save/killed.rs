//! Saves in a process of their own, which is killed: the next one goes on with what is there, and nobody saw half of anything.

use std::fs;
use std::path::{Path, PathBuf};

use cluster::lock::Lock;
use cluster::save::{Destination, SaveOptions};
use registry::Reference;
use registry::digest::sha256;
use tempfile::TempDir;

use super::rafs::client_in;
use super::{check_image, client, locked, plain, saved, saved_in};
use crate::peers::noise;
use crate::support::held::Held;
use crate::support::killed::{kill_when, work};
use crate::support::{Registry, layer};

/// Where a child saves to that is not to save to a directory.
const TO: &str = "to";

/// One conversion after the other, so that a save is killed with one done.
fn as_rafs() -> SaveOptions {
    SaveOptions { conversions: 1, ..SaveOptions::default() }
}

/// What the next tests kill.
#[tokio::test(flavor = "multi_thread")]
async fn saves_as_a_child() {
    save_as_a_child(&plain()).await;
}

/// What the next tests kill.
#[tokio::test(flavor = "multi_thread")]
async fn saves_rafs_as_a_child() {
    save_as_a_child(&as_rafs()).await;
}

/// As a child, saves what the work's lock names to its directory `registry`, or where it says.
async fn save_as_a_child(options: &SaveOptions) {
    let Some(dir) = work() else { return };
    let lock = Lock::read(&dir.join("images.lock")).unwrap();
    let to = fs::read_to_string(dir.join(TO)).map_or_else(
        |_| Destination::Directory(dir.join("registry")),
        |to| Destination::Repository(Reference::parse(&to).unwrap()),
    );
    let _ = saved_in(&client_in(&spool(&dir)), &lock, &dir, &to, options).await;
}

fn spool(dir: &Path) -> PathBuf {
    let spool = dir.join("spool");
    fs::create_dir_all(&spool).unwrap();
    spool
}

/// Runs the test of that name as a child that saves what `lock` names, and kills it once `reached` says so.
async fn kill_save_when(test: &str, lock: &Lock, dir: &Path, reached: impl Fn() -> bool) {
    lock.write(&dir.join("images.lock")).unwrap();
    kill_when(&format!("save::killed::{test}"), dir, reached).await;
}

/// Whether some layer of the folder is half-converted.
fn has_partial(layers: &Path) -> bool {
    let is_partial = |path: &Path| {
        path.extension().is_some_and(|extension| extension == "partial")
            && fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
    };
    let entries = fs::read_dir(layers).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| is_partial(&path))
}

/// A registry with two images on one layer, one of which has a large one of its own, behind what lets through all but the end of that one.
struct World {
    _registry: Registry,
    held: Held,
    small: Vec<u8>,
    large: Vec<u8>,
    dir: TempDir,
    lock: Lock,
}

impl World {
    async fn start() -> Self {
        let registry = Registry::start().await;
        let digest = |layer: &Vec<u8>| sha256(layer).digest().to_owned();
        let large = layer(&[("large", &noise(1, 4 << 20))]);
        // One that comes before it: layers are converted in the order of their diff ids.
        let mut small = (2..).map(|seed| layer(&[("small", &noise(seed, 100_000))]));
        let small = small.find(|small| digest(small) < digest(&large)).unwrap();
        for (name, layers) in [("small", vec![&small]), ("large", vec![&small, &large])] {
            let layers: Vec<&[u8]> = layers.into_iter().map(Vec::as_slice).collect();
            let image = registry.image(name, "linux/amd64", &layers).await;
            registry.tag(name, "v1", image.content).await;
        }
        let held = Held::start(registry.host()).await;
        let dir = tempfile::tempdir().unwrap();
        let lock = locked(&dir, &format!("{0}/small:v1\n{0}/large:v1\n", held.host), &[]).await;
        held.let_through_each(2 << 20);
        Self { _registry: registry, held, small, large, dir, lock }
    }

    /// Where converted layers wait for a repository.
    fn layers(&self) -> Option<PathBuf> {
        let mut folders = fs::read_dir(spool(self.dir.path())).unwrap();
        Some(folders.next()?.unwrap().path())
    }

    /// The layer's name where it is converted.
    fn converted(layer: &[u8]) -> String {
        let digest = sha256(layer);
        format!("{0}-{0}", digest.digest())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_is_killed_goes_on_where_it_was() {
    const LARGE: usize = 4 << 20;
    let registry = Registry::start().await;
    let small = registry.image("small", "linux/amd64", &[b"small"]).await;
    registry.tag("small", "v1", small.content.clone()).await;
    let large = registry.image("large", "linux/amd64", &[&noise(5, LARGE)]).await;
    registry.tag("large", "v1", large.content.clone()).await;
    let held = Held::start(registry.host()).await;
    let dir = tempfile::tempdir().unwrap();
    let lock = locked(&dir, &format!("{0}/small:v1\n{0}/large:v1\n", held.host), &[]).await;
    // Enough for all but the end of the large layer.
    held.let_through_each(3 << 20);
    let target = dir.path().join("registry");
    let tag = target.join("docker/registry/v2/repositories/small/_manifests/tags/v1/current/link");
    let partial = target.join(".nydus-cluster-save").join(sha256(&noise(5, LARGE)).digest());
    kill_save_when("saves_as_a_child", &lock, dir.path(), || {
        tag.exists() && fs::metadata(&partial).is_ok_and(|metadata| metadata.len() > 1 << 20)
    })
    .await;
    assert!(!target.join("docker/registry/v2/repositories/large").exists());
    held.let_through(u64::MAX);
    let (reports, failed) = saved(&lock, dir.path(), &Destination::Directory(target.clone())).await;
    assert!(failed.is_empty(), "{failed:?}");
    // By name: large, small.
    assert_eq!((reports[1].fetched, reports[1].bytes), (0, small.bytes));
    assert!(reports[0].fetched >= LARGE as u64);
    assert_eq!(fs::read_dir(target.join(".nydus-cluster-save")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_is_killed_fetches_no_complete_layer_again() {
    let world = World::start().await;
    let target = world.dir.path().join("registry");
    let layers = target.join(".nydus-cluster-save/layers");
    let complete = layers.join(World::converted(&world.small));
    kill_save_when("saves_rafs_as_a_child", &world.lock, world.dir.path(), || {
        complete.exists() && has_partial(&layers)
    })
    .await;
    assert!(!target.join("docker/registry/v2/repositories").exists());
    world.held.let_through(u64::MAX);
    let to = Destination::Directory(target.clone());
    let (reports, failed) =
        saved_in(&client(), &world.lock, world.dir.path(), &to, &SaveOptions::default()).await;
    assert!(failed.is_empty(), "{failed:?}");
    // By name: large, small.
    assert_eq!((reports[0].fetched, reports[1].fetched), (world.large.len() as u64, 0));
    assert_eq!(fs::read_dir(target.join(".nydus-cluster-save")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_to_a_registry_that_is_killed_is_finished_by_the_next() {
    let (world, to) = (World::start().await, Registry::start().await);
    let name = |tag: &str| Reference::parse(&format!("{}/cluster:{tag}", to.host())).unwrap();
    fs::write(world.dir.path().join(TO), name("images").to_string()).unwrap();
    let (small, large) = (to.data(&sha256(&world.small)), to.data(&sha256(&world.large)));
    kill_save_when("saves_as_a_child", &world.lock, world.dir.path(), || {
        small.exists() && world.held.holds()
    })
    .await;
    // Nobody finds what is not complete, and there is no half of a blob.
    assert!(client().head_manifest(&name("images")).await.unwrap().is_none());
    assert!(!large.exists());
    world.held.let_through(u64::MAX);
    let save = async |tag| saved(&world.lock, world.dir.path(), &Destination::Repository(name(tag))).await;
    let (reports, failed) = save("images").await;
    assert!(failed.is_empty(), "{failed:?}");
    // By name: large, small. Of the small one a config may have been missing.
    let large = world.large.len() as u64;
    assert!((large..large + 1000).contains(&reports[0].fetched) && reports[1].fetched < 1000, "{reports:?}");
    for image in &world.lock.images {
        check_image(name("images").repository(), image.platforms[0].digest.as_ref()).await;
    }
    // It is no other than one that was not killed.
    save("again").await;
    let digest = async |tag| client().head_manifest(&name(tag)).await.unwrap().unwrap().digest().clone();
    assert_eq!(digest("images").await, digest("again").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_of_rafs_to_a_registry_that_is_killed_is_finished_by_the_next() {
    let (world, to, other) = (World::start().await, Registry::start().await, Registry::start().await);
    let name = |at: &Registry| Reference::parse(&format!("{}/cluster:images", at.host())).unwrap();
    fs::write(world.dir.path().join(TO), name(&to).to_string()).unwrap();
    kill_save_when("saves_rafs_as_a_child", &world.lock, world.dir.path(), || {
        let layers = world.layers();
        layers.is_some_and(|layers| {
            layers.join(World::converted(&world.small)).exists() && has_partial(&layers)
        })
    })
    .await;
    assert!(client().head_manifest(&name(&to)).await.unwrap().is_none());
    world.held.let_through(u64::MAX);
    let save = async |at: &Registry, spool: &Path| {
        let to = Destination::Repository(name(at));
        saved_in(&client_in(spool), &world.lock, world.dir.path(), &to, &as_rafs()).await
    };
    let (reports, failed) = save(&to, &spool(world.dir.path())).await;
    assert!(failed.is_empty(), "{failed:?}");
    // By name: large, small.
    assert_eq!((reports[0].fetched, reports[1].fetched), (world.large.len() as u64, 0));
    // It is no other than one that was not killed, and what was converted for it is gone.
    let elsewhere = tempfile::tempdir().unwrap();
    save(&other, elsewhere.path()).await;
    let digest = async |at| client().head_manifest(&name(at)).await.unwrap().unwrap().digest().clone();
    assert_eq!(digest(&to).await, digest(&other).await);
    let left = |spool: &Path| -> Vec<PathBuf> {
        let folders = fs::read_dir(spool).unwrap().flatten();
        let entries = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
        entries.map(|entry| entry.file_name().into()).collect()
    };
    assert_eq!(left(&spool(world.dir.path())), left(elsewhere.path()));
}
