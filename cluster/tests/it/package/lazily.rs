//! Packages whose container images are there as RAFS.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use cluster::lock::Lock;
use cluster::package::{NotPackaged, PackageTarget};
use cluster::save::{Destination, Forms, NotSaved, SaveOptions, save};
use cluster::saved::{SavedAt, SavedImages};
use registry::digest::sha256;
use registry::server::{ServerConfig, serve_read_only};
use registry::{Reference, Repository};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{AMD64, client, locked, names, open, unpack, written};
use crate::peers::{self, noise};
use crate::support::{Registry, index, layer};

const BOTH: Forms = Forms { rafs: true, plain: true };

/// A registry with a cluster image that asks for two images on one base, with a library that both have in layers of their own.
struct World {
    from: Registry,
    cluster: Reference,
    lock: Lock,
    root: TempDir,
    /// The layers of the images: the base, the application's, the database's.
    layers: [Vec<u8>; 3],
    /// The application's index.
    app: Vec<u8>,
    lib: Bytes,
}

impl World {
    async fn start() -> Self {
        let from = Registry::start().await;
        let (base, lib, own) = (noise(1, 400_000), noise(2, 1_500_000), noise(3, 300_000));
        let layers = [
            layer(&[("base", &base)]),
            layer(&[("app", &own), ("lib/app", &lib)]),
            layer(&[("db", b"db"), ("lib/db", &lib)]),
        ];
        let image = from.image("team/app", AMD64, &[&layers[0], &layers[1]]).await;
        let app = index(&[&image]);
        from.tag("team/app", "v1", app.clone()).await;
        let db = from.image("db", AMD64, &[&layers[0], &layers[2]]).await;
        from.tag("db", "v2", db.content).await;
        let k8s = from.image("k8s", AMD64, &[b"root file system"]).await;
        from.tag("k8s", "v1", index(&[&k8s])).await;
        let cluster = Reference::parse(&format!("{}/k8s:v1", from.host())).unwrap();
        let root = tempfile::tempdir().unwrap();
        let lock = locked(&root, &format!("{0}/team/app:v1\n{0}/db:v2\n", from.host())).await;
        Self { from, cluster, lock, root, layers, app, lib }
    }

    async fn write(&self, path: &Path, forms: Forms) -> Result<u64, NotPackaged> {
        self.write_with(None, &PackageTarget::File(path.to_owned()), forms).await
    }

    async fn write_with(
        &self,
        saved: Option<&SavedImages>,
        target: &PackageTarget,
        forms: Forms,
    ) -> Result<u64, NotPackaged> {
        written(&self.cluster, &self.lock, self.root.path(), saved, target, forms).await
    }

    /// Whether the package has the layers as they are.
    fn has_layers(&self, path: &Path) -> bool {
        let package = open(path);
        let there = self.layers.iter().filter(|layer| package.blob(&sha256(layer)).unwrap().is_some());
        let (there, all) = (there.count(), self.layers.len());
        assert!(there == 0 || there == all, "{there} of {all} layers are there");
        there == all
    }
}

async fn saved_in(path: &Path) -> SavedImages {
    let place = open(path).saved().unwrap();
    SavedImages::open(&place, &client()).await.unwrap()
}

/// Every chain's bootstrap and every blob can be read to the last byte.
async fn read_all(saved: &SavedImages) {
    let table = saved.table().unwrap();
    for image in table.images.values() {
        saved.bootstrap(&image.chain).await.unwrap();
    }
    for (blob, entry) in &table.blobs {
        let mut stream = saved.blob(blob).await.unwrap();
        let mut bytes = 0;
        while let Some(piece) = stream.next().await.unwrap() {
            bytes += piece.len() as u64;
        }
        assert_eq!(bytes, entry.size);
        let end = saved.blob_range(blob, entry.size - 10..entry.size).await.unwrap();
        assert_eq!(end.len(), 10);
    }
    for layer in table.layers.keys() {
        saved.layer(layer).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_there_as_rafs_and_what_they_share_is_there_once() {
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (path, again) = (dir.path().join("cluster.tar"), dir.path().join("again.tar"));
    world.write(&path, Forms::RAFS).await.unwrap();
    assert_eq!(names(dir.path()), ["cluster.tar"], "nothing else is left");
    world.write(&again, Forms::RAFS).await.unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap(), "the same content is the same file");
    assert_eq!(world.write(&path, Forms::RAFS).await.unwrap(), 0, "a second one fetches nothing");
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap());

    assert!(!world.has_layers(&path));
    let distinct = world.layers.iter().map(Vec::len).sum::<usize>() - world.lib.len();
    let size = fs::metadata(&path).unwrap().len() as usize;
    assert!(size < distinct + 200_000, "{size} of {distinct}");
    let saved = saved_in(&path).await;
    assert_eq!(*saved.lock(), world.lock);
    read_all(&saved).await;
    // The images' own documents are there, word for word.
    assert_eq!(saved.document(&sha256(&world.app)).await.unwrap().unwrap(), world.app);

    // The same in a directory, and from a registry that serves the file.
    let folder = dir.path().join("package");
    world.write_with(None, &PackageTarget::Directory(folder.clone()), Forms::RAFS).await.unwrap();
    let unpacked = unpack(&path);
    assert_eq!(saved_in(&folder).await.table(), saved.table());
    assert_eq!(saved_in(unpacked.path()).await.digest(), saved.digest());
    assert_eq!(open(&folder).images().names().unwrap(), open(&path).images().names().unwrap());
    let stop = CancellationToken::new();
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::new(&path) };
    let layout = open(&path).images().layout().clone();
    let server = serve_read_only(config, layout, stop.clone()).await.unwrap();
    let repository = Repository::parse(&format!("{}/nydus-cluster/images", server.address())).unwrap();
    let place = SavedAt::Repository(repository.with_digest(saved.digest().clone()));
    read_all(&SavedImages::open(&place, &client()).await.unwrap()).await;
    let name = Reference::parse(&format!("{}/team/app:v1", server.address())).unwrap();
    let named: Value = serde_json::from_slice(&client().manifest(&name).await.unwrap().1).unwrap();
    assert_eq!(named["manifests"][0]["artifactType"], registry::nydus::ARTIFACT_TYPE_MANIFEST);
    stop.cancel();

    // And from CNCF distribution, of the directory.
    if peers::have("docker-registry") {
        fs::rename(unpacked.path().join("registry"), unpacked.path().join("root")).unwrap();
        let docker = peers::Registry::docker(unpacked.path(), "");
        let images = docker.repository("nydus-cluster/images").with_digest(saved.digest().clone());
        read_all(&SavedImages::open(&SavedAt::Repository(images), &client()).await.unwrap()).await;
        let (_, content) = client().manifest(&docker.reference("team/app:v1")).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&content).unwrap(), named);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_there_as_they_are_too_if_that_is_wanted() {
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (path, plain) = (dir.path().join("cluster.tar"), dir.path().join("plain.tar"));
    let fetched = world.write(&path, BOTH).await.unwrap();
    let layers: usize = world.layers.iter().map(Vec::len).sum();
    assert!((layers..layers + 20_000).contains(&(fetched as usize)), "{fetched} of {layers}: each came once");
    assert_eq!(names(dir.path()), ["cluster.tar"]);
    assert!(world.has_layers(&path));
    read_all(&saved_in(&path).await).await;
    for image in &world.lock.images {
        assert!(open(&path).has_as_it_is(image).unwrap());
        let (_, digest) = open(&path).images().image(Some(&image.reference.to_string())).unwrap();
        assert_eq!(digest, image.digest, "the name is that of the image as it is");
    }
    world.write(&plain, Forms::PLAIN).await.unwrap();
    assert!(world.has_layers(&plain) && open(&plain).saved().is_none());
    // In a directory that has both, what is said of it decides.
    let folder = dir.path().join("package");
    for (forms, has_rafs) in [(BOTH, true), (Forms::PLAIN, false), (BOTH, true)] {
        world.write_with(None, &PackageTarget::Directory(folder.clone()), forms).await.unwrap();
        assert_eq!(open(&folder).saved().is_some(), has_rafs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_converted_of_an_interrupted_package_is_not_fetched_again() {
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.tar");
    let damaged = world.from.data(&sha256(&world.layers[2]));
    fs::write(&damaged, b"xx").unwrap();
    let error = world.write(&path, Forms::RAFS).await.unwrap_err();
    let NotPackaged::Images(NotSaved::Images(failed)) = error else { panic!("{error}") };
    assert!(failed.len() == 1 && failed[0].to_string().contains("/db:v2: "), "{failed:?}");
    let left = names(dir.path());
    assert!(left.len() == 1 && left[0].ends_with(".images"), "no package, but what it is made of: {left:?}");
    fs::write(&damaged, &world.layers[2]).unwrap();
    let fetched = world.write(&path, Forms::RAFS).await.unwrap();
    let expected = world.layers[2].len();
    assert!((expected..expected + 20_000).contains(&(fetched as usize)), "{fetched} of {expected}");
    assert_eq!(names(dir.path()), ["cluster.tar"]);
    // It is no other than one that was not interrupted.
    let again = dir.path().join("again.tar");
    world.write(&again, Forms::RAFS).await.unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_before_is_taken_as_it_is_unless_it_is_of_another_lock() {
    let mut world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let to = Reference::parse(&format!("{}/k8s:v1-images", world.from.host())).unwrap();
    let destination = Destination::Repository(to.clone());
    let options = SaveOptions { forms: BOTH, ..SaveOptions::default() };
    let root = world.root.path();
    save(&world.lock, root, &client(), &destination, &options, &|_| {}).await.unwrap();
    let saved = SavedImages::open(&SavedAt::Repository(to), &client()).await.unwrap();
    // Only what is in the repository of the saved images is needed.
    let db = world.from.repository("db").with_tag("v2").unwrap();
    let of_db = client().manifest(&db).await.unwrap().0.digest().clone();
    let repository = world.from.data(&of_db).ancestors().nth(5).unwrap().join("repositories/db");
    let elsewhere = repository.with_extension("elsewhere");
    fs::rename(&repository, &elsewhere).unwrap();
    let file = dir.path().join("cluster.tar");
    for target in [PackageTarget::File(file.clone()), PackageTarget::Directory(dir.path().join("package"))] {
        let (PackageTarget::File(path) | PackageTarget::Directory(path)) = &target;
        world.write_with(Some(&saved), &target, Forms::RAFS).await.unwrap();
        assert_eq!(open(path).about().unwrap().images.as_ref(), Some(saved.digest()));
        assert!(!world.has_layers(path));
        read_all(&saved_in(path).await).await;
    }
    fs::rename(&elsewhere, &repository).unwrap();

    // An image of the lock is another one now.
    let newer = world.from.image("db", AMD64, &[&world.layers[0]]).await;
    world.from.tag("db", "v2", newer.content.clone()).await;
    world.lock = locked(&world.root, &format!("{0}/team/app:v1\n{0}/db:v2\n", world.from.host())).await;
    let target = PackageTarget::File(file);
    let error = world.write_with(Some(&saved), &target, Forms::RAFS).await.unwrap_err().to_string();
    for part in
        [format!("{}/db:v2 was saved as {of_db}", world.from.host()), format!("expected {}", newer.digest)]
    {
        assert!(error.contains(&part), "{error}: expected {part}");
    }
}
