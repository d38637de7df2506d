//! Packages: written from registries of this process, read, served by ours and CNCF distribution's, copied on.

mod killed;
mod lazily;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cluster::discover::{self, Options};
use cluster::lock::{Lock, ResolveOptions, resolve};
use cluster::package::{Contents, NotPackaged, Package, PackageTarget, cluster_image, write};
use cluster::save::{Forms, NotSaved, Report, SaveOptions};
use cluster::saved::SavedImages;
use image::copy::copy_image;
use image::destination::{Destination as _, InRegistry};
use image::location::{InFile, Location};
use image::source::Source;
use registry::client::{Client, PlacedBlobs};
use registry::server::{ServerConfig, serve_read_only};
use registry::{Reference, Repository, digest};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::peers;
use crate::support::{self, Registry, index};

const AMD64: &str = "linux/amd64";

fn client() -> Client {
    Client::new(support::config()).unwrap()
}

/// A registry with a cluster image for two platforms, which asks for two images.
struct Site {
    registry: Registry,
    cluster: Reference,
    lock: Lock,
    /// With an archive for a tree.
    root: TempDir,
    /// The digest of the application's index, and of its manifest for another platform.
    app: (String, String),
}

impl Site {
    async fn start() -> Self {
        let registry = Registry::start().await;
        let host = registry.host();
        let shared = vec![7_u8; 3 << 20];
        let amd64 = registry.image("team/app", AMD64, &[&shared, b"a"]).await;
        let arm64 = registry.image("team/app", "linux/arm64", &[&shared, b"b"]).await;
        let app = registry.tag("team/app", "v1", index(&[&amd64, &arm64])).await;
        let db = registry.image("db", AMD64, &[&shared, b"db"]).await;
        registry.tag("db", "v2", db.content.clone()).await;
        let one = registry.image("k8s", AMD64, &[b"root file system"]).await;
        let other = registry.image("k8s", "linux/arm64", &[b"for arm64"]).await;
        registry.tag("k8s", "v1", index(&[&one, &other])).await;
        let cluster = Reference::parse(&format!("{host}/k8s:v1")).unwrap();
        let root = tempfile::tempdir().unwrap();
        let lock = locked(&root, &format!("{host}/team/app:v1\n{host}/db:v2\n")).await;
        Self { registry, cluster, lock, root, app: (app, arm64.digest) }
    }

    /// Writes the package with images as they are; the bytes that were fetched.
    async fn write(&self, target: &PackageTarget) -> Result<u64, NotPackaged> {
        written(&self.cluster, &self.lock, self.root.path(), None, target, Forms::PLAIN).await
    }
}

/// Writes the package of a cluster image with two container images, of which `saved` was saved before; the bytes that were fetched.
async fn written(
    cluster: &Reference,
    lock: &Lock,
    root: &Path,
    saved: Option<&SavedImages>,
    target: &PackageTarget,
    forms: Forms,
) -> Result<u64, NotPackaged> {
    let client = client();
    let source = Source::open(&Location::Registry(cluster.clone()), &client).await.unwrap();
    let cluster = cluster_image(cluster, &source, &[]).await.unwrap();
    let contents = Contents { cluster: Some(&cluster), lock, root, saved };
    let reports: Mutex<Vec<Report>> = Mutex::default();
    let done = |report: &Report| reports.lock().unwrap().push(report.clone());
    write(&contents, &client, target, &SaveOptions { forms, ..SaveOptions::default() }, &done).await?;
    let reports = reports.into_inner().unwrap();
    assert_eq!(reports.len(), 3, "a report an image");
    Ok(reports.iter().map(|report| report.fetched).sum())
}

async fn locked(dir: &TempDir, images: &str) -> Lock {
    fs::write(dir.path().join("imageList"), images).unwrap();
    let found = discover::discover(dir.path(), &Options::default()).await.unwrap();
    let options = ResolveOptions { platforms: vec![AMD64.parse().unwrap()], ..ResolveOptions::default() };
    let resolved = resolve(&found, dir.path(), &client(), &options, None).await.unwrap();
    assert_eq!(resolved.problems, []);
    resolved.lock
}

fn open(path: &Path) -> Package {
    Package::open(path, Path::new("/tmp")).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Reads every image of the site from `host`, to the last byte.
async fn pull_all(host: &str, site: &Site) {
    for (name, platforms) in [("team/app:v1", 1), ("db:v2", 1), ("k8s:v1", 2)] {
        let reference = Reference::parse(&format!("{host}/{name}")).unwrap();
        let source = Source::open(&Location::Registry(reference.clone()), &client()).await.unwrap();
        let root = source.root().await.unwrap();
        let wanted = if platforms == 1 { vec![AMD64.parse().unwrap()] } else { Vec::new() };
        let images = source.images_in(root.clone(), &wanted).await.unwrap();
        assert_eq!(images.len(), platforms, "{name}");
        for image in images {
            for blob in image.layers.iter().chain([&image.config]) {
                let mut stream = source.blob(blob).await.unwrap();
                while stream.next().await.unwrap().is_some() {}
            }
        }
        if name == "team/app:v1" {
            // Its own index, although one of the manifests is not here.
            assert_eq!(root.descriptor.digest().to_string(), site.app.0);
            let absent = reference.at_digest(site.app.1.parse().unwrap());
            assert!(client().head_manifest(&absent).await.unwrap().is_none());
        }
    }
}

fn unpack(path: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    tar::Archive::new(fs::File::open(path).unwrap()).unpack(dir.path()).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_one_file_that_registries_serve_without_a_network() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.tar");
    let fetched = site.write(&PackageTarget::File(path.clone())).await.unwrap();
    // The layer that both images have came once.
    assert!((3 << 20..4 << 20).contains(&fetched), "{fetched}");
    let again = dir.path().join("again.tar");
    site.write(&PackageTarget::File(again.clone())).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap(), "the same content is the same file");
    fs::remove_file(&again).unwrap();
    assert_eq!(names(dir.path()), ["cluster.tar"]);
    // A second one fetches nothing.
    assert_eq!(site.write(&PackageTarget::File(path.clone())).await.unwrap(), 0);

    let package = open(&path);
    let about = package.about().unwrap().image.clone().unwrap();
    assert_eq!((about.reference, about.repository), (site.cluster.to_string(), "k8s".to_owned()));
    assert_eq!(about.platforms, [AMD64, "linux/arm64"]);
    assert_eq!(package.lock().unwrap(), &site.lock);
    let part = package.blob(&digest::sha256(&vec![7; 3 << 20])).unwrap().unwrap();
    assert_eq!(part.size, 3 << 20);

    let stop = CancellationToken::new();
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::new(&path) };
    let server = serve_read_only(config, package.images().layout().clone(), stop.clone()).await.unwrap();
    pull_all(&server.address().to_string(), &site).await;
    let repository = Repository::parse(&format!("{}/new", server.address())).unwrap();
    let refused = client().push_blob(&repository, "x".into()).await.unwrap_err().to_string();
    assert!(refused.contains("405") && refused.contains("UNSUPPORTED"), "{refused}");
    stop.cancel();

    let unpacked = unpack(&path);
    if peers::have("docker-registry") {
        fs::rename(unpacked.path().join("registry"), unpacked.path().join("root")).unwrap();
        let docker = peers::Registry::docker(unpacked.path(), "");
        pull_all(&docker.host(), &site).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_holds_the_same() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("package"), dir.path().join("cluster.tar"));
    site.write(&PackageTarget::Directory(path.clone())).await.unwrap();
    assert_eq!(site.write(&PackageTarget::Directory(path.clone())).await.unwrap(), 0);
    site.write(&PackageTarget::File(file.clone())).await.unwrap();
    let unpacked = unpack(&file);
    assert_eq!(names(unpacked.path()), ["images.lock", "package.json", "registry"]);
    for name in ["images.lock", "package.json"] {
        let read = |dir: &Path| fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(read(unpacked.path()), read(&path));
    }
    let (one, other) = (open(&path), open(unpacked.path()));
    assert_eq!(one.images().names().unwrap(), other.images().names().unwrap());
    assert!(Package::is_directory(&path) && !Package::is_directory(site.root.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_package_goes_on_where_it_was() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.tar");
    let target = PackageTarget::File(path.clone());
    // A layer is damaged where it lies: all else comes.
    let damaged = site.registry.data(&digest::sha256(b"db"));
    fs::write(&damaged, b"xx").unwrap();
    let error = site.write(&target).await.unwrap_err();
    let NotPackaged::Images(NotSaved::Images(failed)) = error else { panic!("{error}") };
    assert_eq!(failed.len(), 1);
    assert!(failed[0].to_string().contains("/db:v2: "), "{}", failed[0]);
    let left = names(dir.path());
    assert!(
        left.len() == 1 && left[0].ends_with(".partial"),
        "no package, but the beginning of one: {left:?}"
    );
    fs::write(&damaged, b"db").unwrap();
    assert_eq!(site.write(&target).await.unwrap(), 2, "only what was missing");
    assert_eq!(names(dir.path()), ["cluster.tar"]);
    open(&path);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_package_takes_what_the_one_before_has() {
    let mut site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let target = PackageTarget::File(dir.path().join("cluster.tar"));
    site.write(&target).await.unwrap();
    let next = site.registry.image("db", AMD64, &[&vec![7_u8; 3 << 20], b"db, newer"]).await;
    site.registry.tag("db", "v2", next.content.clone()).await;
    let host = site.registry.host();
    site.lock = locked(&site.root, &format!("{host}/team/app:v1\n{host}/db:v2\n")).await;
    let fetched = site.write(&target).await.unwrap();
    assert!((1..1024).contains(&fetched), "{fetched}");
    let package = open(&dir.path().join("cluster.tar"));
    let (_, digest) = package.images().image(Some("db:v2")).unwrap();
    assert_eq!(digest.to_string(), next.digest);
    assert!(package.blob(&digest::sha256(b"db")).unwrap().is_none(), "what is not needed any more is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_package_is_left_as_it_is() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("notes.txt"), dir.path().join("folder"));
    fs::write(&file, "notes").unwrap();
    fs::create_dir_all(folder.join("photos")).unwrap();
    for target in [PackageTarget::File(file.clone()), PackageTarget::Directory(folder.clone())] {
        let error = site.write(&target).await.unwrap_err().to_string();
        assert!(error.contains("is no package"), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"notes");
    assert_eq!(names(dir.path()), ["folder", "notes.txt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_was_changed_is_noticed() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    site.write(&PackageTarget::Directory(dir.path().to_owned())).await.unwrap();
    let lock = dir.path().join("images.lock");
    let text = fs::read_to_string(&lock).unwrap();
    fs::write(&lock, text.replace("db:v2", "db:v3")).unwrap();
    let error = Package::open(dir.path(), Path::new("/tmp")).unwrap_err().to_string();
    assert!(error.contains("images.lock of"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_on_to_a_registry_which_takes_an_index_with_what_is_here() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.tar");
    site.write(&PackageTarget::File(path.clone())).await.unwrap();
    let to = Registry::start().await;
    for (image, left_out) in [("k8s:v1", 0), ("team/app:v1", 1), ("db:v2", 0)] {
        let place = InFile { path: PathBuf::from(&path), image: Some(image.to_owned()) };
        let source = Source::open(&Location::Package(place), &client()).await.unwrap();
        let name = Reference::parse(&format!("{}/mine/{image}", to.host())).unwrap();
        let destination = InRegistry::new(client(), name.repository().clone());
        let (root, copied) = copy_image(&source, &destination, &PlacedBlobs::default()).await.unwrap();
        assert_eq!(copied.left_out.len(), left_out, "{image}");
        destination.publish(std::slice::from_ref(&name), Some(&root)).await.unwrap();
        let (found, content) = client().manifest(&name).await.unwrap();
        let same = found.digest() == source.root().await.unwrap().descriptor.digest();
        assert_eq!(same, left_out == 0, "{image}");
        assert!(!String::from_utf8_lossy(&content).contains(&site.app.1));
        // Nothing is sent twice.
        assert_eq!(copy_image(&source, &destination, &PlacedBlobs::default()).await.unwrap().1.bytes, 0);
    }
}
