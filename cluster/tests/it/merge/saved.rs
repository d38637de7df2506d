//! Cluster images for which `cluster save` brought their container images: the merged image has all of these.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use cluster::discover::{self, Options};
use cluster::lock::{Lock, ResolveOptions, resolve};
use cluster::merge::{Conflict, MergedImage, NotMerged, merge};
use cluster::package::{Contents, Package, PackageTarget, cluster_image, write};
use cluster::save::{Destination, Forms, SaveOptions, save};
use cluster::saved::{SavedAt, SavedImages, bind, bound};
use cluster::serve::Kept;
use image::location::Location;
use image::source::Source;
use registry::client::{Client, ClientConfig, UploadConfig};
use registry::digest::sha256;
use registry::{Digest, Reference};
use serde_json::{Value, json};
use snapshotter::control::BackendSpec;
use tempfile::TempDir;

use crate::peers::proxy::{Proxy, Way};
use crate::peers::{self, noise};
use crate::support::images::{Files, files};
use crate::support::{self, Registry, layer, manifest};

pub(crate) const AMD64: &str = "linux/amd64";

/// A registry with container images, and one with cluster images, of which it is counted what leaves it.
pub(crate) struct World {
    from: Registry,
    pub(crate) to: Registry,
    counted: Proxy,
    dir: TempDir,
    base: Bytes,
    lib: Bytes,
}

/// A container image that was pushed.
#[derive(Clone)]
pub(crate) struct Pushed {
    manifest: Vec<u8>,
    files: Files,
}

impl Pushed {
    fn digest(&self) -> Digest {
        sha256(&self.manifest)
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        let (from, to) = (Registry::start().await, Registry::start().await);
        let counted = Proxy::start(to.host(), Way::ToClient, Vec::new()).await;
        let dir = tempfile::tempdir().unwrap();
        Self { from, to, counted, dir, base: noise(1, 700_000), lib: noise(2, 900_000) }
    }

    /// A client whose converted layers wait where no other test has any.
    pub(crate) fn client(&self) -> Client {
        let upload = UploadConfig { spool_dir: self.dir.path().to_owned(), ..UploadConfig::default() };
        Client::new(ClientConfig { upload, ..support::config() }).unwrap()
    }

    /// A name in the registry with cluster images.
    pub(crate) fn name(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.counted.host)).unwrap()
    }

    /// Pushes the container image `name` of the base, `own`, and a library that several have.
    pub(crate) async fn push(&self, name: &str, own: &Bytes) -> Pushed {
        self.push_with(name, &[("own", own), ("lib/own", &self.lib)], &json!({})).await
    }

    /// The same, without the library: what is saved with it is not shared.
    pub(crate) async fn push_alone(&self, name: &str, own: &Bytes) -> Pushed {
        self.push_with(name, &[("own", own)], &json!({})).await
    }

    /// Pushes the container image `name` of the base and `files`, with these labels.
    async fn push_with(&self, name: &str, files: &[(&str, &Bytes)], labels: &Value) -> Pushed {
        let (repository, tag) = name.split_once(':').unwrap();
        let top: Vec<(&str, &[u8])> = files.iter().map(|(path, content)| (*path, content.as_ref())).collect();
        let layers = [layer(&[("base", &self.base)]), layer(&top)];
        let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer).to_string()).collect();
        let config = json!({
            "os": "linux", "architecture": "amd64", "config": {"Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.from.blob(repository, config.to_string().as_bytes()).await;
        let mut blobs = Vec::new();
        for layer in &layers {
            blobs.push(self.from.blob(repository, layer).await);
        }
        let manifest = manifest(&config, "application/vnd.oci.image.config.v1+json", &blobs);
        self.from.tag(repository, tag, manifest.clone()).await;
        let files = files.iter().copied().chain([("base", &self.base)]);
        let files = files.map(|(path, content)| (path.to_owned(), content.to_vec())).collect();
        Pushed { manifest, files }
    }

    /// The lock of these container images.
    pub(crate) async fn lock(&self, images: &[&str]) -> Lock {
        let dir = tempfile::tempdir().unwrap();
        let list: String = images.iter().map(|image| format!("{}/{image}\n", self.from.host())).collect();
        fs::write(dir.path().join("imageList"), list).unwrap();
        let found = discover::discover(dir.path(), &Options::default()).await.unwrap();
        let options = ResolveOptions { platforms: vec![AMD64.parse().unwrap()], ..ResolveOptions::default() };
        let resolved = resolve(&found, dir.path(), &self.client(), &options, None).await.unwrap();
        assert_eq!(resolved.problems, []);
        resolved.lock
    }

    /// Pushes the cluster image `name` with this lock in its root file system, if it is to have one.
    pub(crate) async fn cluster_image(&self, name: &str, lock: Option<&Lock>) {
        let text = lock.map(ToString::to_string);
        let mut files = vec![(name, name.as_bytes())];
        files.extend(text.as_ref().map(|text| ("images.lock", text.as_bytes())));
        let (repository, tag) = name.split_once(':').unwrap();
        let image = self.to.image(repository, AMD64, &[&layer(&files)]).await;
        self.to.tag(repository, tag, image.content).await;
    }

    /// Saves the container images of `lock` next to the cluster image `name`.
    async fn save(&self, name: &str, lock: &Lock, base: Option<&str>) -> SavedImages {
        let to = self.name(&format!("{name}-images"));
        let (root, destination) = (self.dir.path(), Destination::Repository(to.clone()));
        let base = base.map(|base| self.name(base));
        let options = SaveOptions { base, ..SaveOptions::default() };
        save(lock, root, &self.client(), &destination, &options, &|_| {}).await.unwrap();
        self.saved(&to).await
    }

    /// A cluster image with the lock of `images`, which are saved next to it.
    async fn filled(&self, name: &str, images: &[&str]) -> SavedImages {
        let lock = self.lock(images).await;
        self.cluster_image(name, Some(&lock)).await;
        self.save(name, &lock, None).await
    }

    async fn saved(&self, at: &Reference) -> SavedImages {
        SavedImages::open(&SavedAt::Repository(at.clone()), &self.client()).await.unwrap()
    }

    async fn merge(&self, names: &[&str], to: &Reference) -> Result<MergedImage, NotMerged> {
        let locations: Vec<Location> = names.iter().map(|name| Location::Registry(self.name(name))).collect();
        merge(&locations, &self.client(), to, &[]).await
    }

    /// What the cluster image `name` is bound to.
    async fn bound(&self, name: &Reference) -> Vec<Digest> {
        bound(&self.client().manifest(name).await.unwrap().1).unwrap()
    }

    /// The saved images to which the cluster image `name` is bound, and which are those next to it.
    async fn bound_images(&self, name: &str) -> SavedImages {
        let name = self.name(name);
        let bound = self.bound(&name).await;
        let [digest] = bound.as_slice() else { panic!("{name} is bound to {bound:?}") };
        let saved = self.saved(&name.at_digest(digest.clone())).await;
        let next_to_it = name.repository().with_tag(&format!("{}-images", name.tag().unwrap())).unwrap();
        assert_eq!(self.saved(&next_to_it).await.digest(), digest);
        saved
    }
}

/// Each of the images is in `saved`, to the last byte, and a node can run and answer for all of them.
pub(crate) async fn check(saved: &SavedImages, images: &[&Pushed]) {
    let table = saved.table().unwrap();
    for image in images {
        assert!(files(saved, image.digest().as_ref()).await == image.files);
        let document = saved.document(&image.digest()).await.unwrap();
        assert_eq!(document.unwrap(), image.manifest);
        let config: Value = serde_json::from_slice(&image.manifest).unwrap();
        let config = config["config"]["digest"].as_str().unwrap().parse().unwrap();
        assert_eq!(sha256(&saved.document(&config).await.unwrap().unwrap()), config);
    }
    for layer in table.layers.keys() {
        saved.layer(layer).await.unwrap();
    }
    assert_eq!((saved.lock().images.len(), table.images.len()), (images.len(), images.len()));
    let backend = BackendSpec::Registry { repository: "registry.example/cluster".to_owned() };
    let set = table.image_set("cluster", vec![backend]).unwrap();
    for entry in table.images.values() {
        let image = set.images.iter().find(|image| image.chain == entry.chain).unwrap();
        assert!(entry.blobs.iter().all(|blob| image.blobs.contains(blob)));
    }
    let documents = tempfile::tempdir().unwrap();
    let kept = Kept::keep(documents.path(), saved).await.unwrap();
    assert_eq!(kept.images(), saved.digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_merged_image_has_what_was_saved_for_each_and_no_data_moves() {
    let world = World::start().await;
    let [both, one, other] = [
        world.push("both:v1", &noise(3, 300_000)).await,
        world.push("one:v1", &noise(4, 300_000)).await,
        world.push_alone("other:v1", &noise(5, 300_000)).await,
    ];
    // What the two saves made of the image that both have is not the same: in one of them another image shares chunks with it.
    let first = world.filled("k8s:v1", &["both:v1", "one:v1"]).await;
    let second = world.filled("db:v1", &["both:v1", "other:v1"]).await;
    let manifest = |saved: &SavedImages| saved.table().unwrap().images[&both.digest()].manifest.clone();
    assert_ne!(manifest(&first), manifest(&second));
    let before = world.counted.passed();
    let merged = world.merge(&["k8s:v1", "db:v1"], &world.name("merged:v1")).await.unwrap();
    let moved = world.counted.passed() - before;
    assert!(moved < 200_000, "{moved} bytes left the registry");
    assert!(merged.unsaved.is_empty());

    let saved = world.bound_images("merged:v1").await;
    let names: Vec<String> = saved.lock().images.iter().map(|image| image.reference.to_string()).collect();
    assert_eq!(names, ["both", "one", "other"].map(|name| format!("{}/{name}:v1", world.from.host())));
    assert_eq!(manifest(&saved), manifest(&first));
    check(&saved, &[&both, &one, &other]).await;
    // Merged with others it is united again, and the same once more is the same.
    let again = world.merge(&["k8s:v1", "db:v1"], &world.name("again:v1")).await.unwrap();
    assert_eq!(again.digest, merged.digest);
    world.merge(&["merged:v1", "db:v1"], &world.name("more:v1")).await.unwrap();
    assert_eq!(world.bound_images("more:v1").await.lock(), saved.lock());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_of_the_merged_image_needs_no_other_registry() {
    let mut world = World::start().await;
    let (one, other) =
        (world.push("one:v1", &noise(4, 300_000)).await, world.push("other:v1", &noise(5, 300_000)).await);
    world.filled("k8s:v1", &["one:v1"]).await;
    world.filled("db:v1", &["other:v1"]).await;
    // What the container images come from is gone.
    world.from = Registry::start().await;
    let name = world.name("merged:v1");
    world.merge(&["k8s:v1", "db:v1"], &name).await.unwrap();
    let (saved, client) = (world.bound_images("merged:v1").await, world.client());
    let path = world.dir.path().join("cluster.tar");
    let source = Source::open(&Location::Registry(name.clone()), &client).await.unwrap();
    let cluster = cluster_image(&name, &source, &[]).await.unwrap();
    let contents =
        Contents { cluster: Some(&cluster), lock: saved.lock(), root: world.dir.path(), saved: Some(&saved) };
    let options = SaveOptions { forms: Forms::RAFS, ..SaveOptions::default() };
    write(&contents, &client, &PackageTarget::File(path.clone()), &options, &|_| {}).await.unwrap();
    let package = Package::open(&path, Path::new("/tmp")).unwrap();
    let packed = SavedImages::open(&package.saved().unwrap(), &client).await.unwrap();
    assert_eq!(packed.digest(), saved.digest());
    check(&packed, &[&one, &other]).await;

    // And back to a registry, merged with a third one.
    let more = world.push("more:v1", &noise(6, 300_000)).await;
    world.filled("app:v1", &["more:v1"]).await;
    let place = image::location::InFile { path, image: None };
    let locations = [Location::Package(place), Location::Registry(world.name("app:v1"))];
    merge(&locations, &client, &world.name("back:v1"), &[]).await.unwrap();
    check(&world.bound_images("back:v1").await, &[&more, &one, &other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_which_nothing_was_saved_leaves_the_others_as_they_are() {
    let world = World::start().await;
    let one = world.push("one:v1", &noise(4, 300_000)).await;
    world.push("other:v1", &noise(5, 300_000)).await;
    let filled = world.filled("k8s:v1", &["one:v1"]).await;
    world.cluster_image("db:v1", Some(&world.lock(&["other:v1"]).await)).await;
    for names in [["k8s:v1", "db:v1"], ["db:v1", "k8s:v1"]] {
        world.merge(&names, &world.name("merged:v1")).await.unwrap();
        let saved = world.bound_images("merged:v1").await;
        assert_eq!(saved.digest(), filled.digest());
        check(&saved, &[&one]).await;
    }
    // Where nothing was saved for any there is nothing to be bound to.
    world.cluster_image("app:v1", None).await;
    world.merge(&["app:v1", "db:v1"], &world.name("without:v1")).await.unwrap();
    assert_eq!(world.bound(&world.name("without:v1")).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_that_is_two_is_named_with_both_cluster_images() {
    let world = World::start().await;
    world.push("both:v1", &noise(3, 300_000)).await;
    let first = world.lock(&["both:v1"]).await;
    world.cluster_image("k8s:v1", None).await;
    world.save("k8s:v1", &first, None).await;
    world.push("both:v1", &noise(4, 300_000)).await;
    let second = world.lock(&["both:v1"]).await;
    // Saved for both, or for one, and the other has it in its lock alone.
    world.cluster_image("saved:v1", None).await;
    world.save("saved:v1", &second, None).await;
    world.cluster_image("locked:v1", Some(&second)).await;
    let reference = format!("{}/both:v1", world.from.host());
    for name in ["saved:v1", "locked:v1"] {
        let error = world.merge(&["k8s:v1", name], &world.name("merged:v1")).await.unwrap_err();
        let NotMerged::Conflict(Conflict::Locked { image, one, other }) = error else { panic!("{error}") };
        assert_eq!(image, reference);
        assert!(one.ends_with("/k8s:v1") && other.ends_with(name), "{one} {other}");
        assert!(world.client().head_manifest(&world.name("merged:v1")).await.unwrap().is_none());
    }
    // What was saved for an image is not what its own lock says.
    world.cluster_image("k8s:v1", Some(&second)).await;
    let error = world.merge(&["k8s:v1", "saved:v1"], &world.name("merged:v1")).await.unwrap_err();
    assert!(matches!(error, NotMerged::Conflict(_) | NotMerged::OtherImage { .. }), "{error}");
    world.cluster_image("app:v1", None).await;
    let error = world.merge(&["k8s:v1", "app:v1"], &world.name("merged:v1")).await.unwrap_err().to_string();
    assert!(error.contains("/k8s:v1") && error.contains(&reference), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_saved_images_are_gone_is_not_merged_without_them() {
    let world = World::start().await;
    world.push("one:v1", &noise(4, 300_000)).await;
    world.filled("k8s:v1", &["one:v1"]).await;
    world.cluster_image("db:v1", None).await;
    let (client, name) = (world.client(), world.name("db:v1"));
    let (described, root) = client.manifest(&name).await.unwrap();
    let root = bind(&root, &[sha256(b"gone")]).unwrap();
    client.put_manifest(&name, described.media_type().as_ref(), root).await.unwrap();
    let error = world.merge(&["k8s:v1", "db:v1"], &world.name("merged:v1")).await.unwrap_err().to_string();
    assert!(error.contains("/db:v1") && error.contains(sha256(b"gone").as_ref()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_on_a_merged_image_is_whole() {
    let world = World::start().await;
    let own = noise(3, 300_000);
    // The same layers, described by two configs, and saved with other images.
    let plain = world.push("plain:v1", &own).await;
    let labelled = [("own", &own), ("lib/own", &world.lib)];
    let labelled = world.push_with("labelled:v1", &labelled, &json!({"a": "b"})).await;
    let one = world.push("one:v1", &noise(4, 300_000)).await;
    let other = world.push_alone("other:v1", &noise(5, 300_000)).await;
    world.filled("k8s:v1", &["plain:v1", "one:v1"]).await;
    world.filled("db:v1", &["labelled:v1", "other:v1"]).await;
    world.merge(&["k8s:v1", "db:v1"], &world.name("merged:v1")).await.unwrap();
    let saved = world.bound_images("merged:v1").await;
    let all = [&labelled, &one, &other, &plain];
    check(&saved, &all).await;
    let again = world.save("merged:v2", saved.lock(), Some("merged:v1-images")).await;
    check(&again, &all).await;
    let (before, after) = (saved.table().unwrap(), again.table().unwrap());
    assert!(after.blobs.keys().all(|blob| before.blobs.contains_key(blob)), "nothing new was stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_another_registry_is_copied() {
    let world = World::start().await;
    let (one, other) =
        (world.push("one:v1", &noise(4, 300_000)).await, world.push("other:v1", &noise(5, 300_000)).await);
    world.filled("k8s:v1", &["one:v1"]).await;
    world.filled("db:v1", &["other:v1"]).await;
    let elsewhere = Registry::start().await;
    let mut hosts = vec![elsewhere.host()];
    // As CNCF distribution has it, which takes an index only when all that it names is there.
    let dir = peers::folder();
    let docker = peers::have("docker-registry").then(|| peers::Registry::docker(dir.path(), ""));
    hosts.extend(docker.as_ref().map(peers::Registry::host));
    for host in hosts {
        let name = Reference::parse(&format!("{host}/merged:v1")).unwrap();
        world.merge(&["k8s:v1", "db:v1"], &name).await.unwrap();
        let bound = world.bound(&name).await;
        let saved = world.saved(&name.at_digest(bound[0].clone())).await;
        check(&saved, &[&one, &other]).await;
    }
}
