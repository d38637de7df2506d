//! A package that is written by a process which is killed: there is none, and the next process finishes it.

use std::fs;
use std::path::Path;

use cluster::lock::Lock;
use cluster::package::PackageTarget;
use cluster::save::Forms;
use registry::Reference;
use registry::digest::sha256;
use tempfile::TempDir;

use super::{AMD64, locked, names, open, written};
use crate::peers::noise;
use crate::support::held::Held;
use crate::support::killed::{kill_when, work};
use crate::support::{Registry, index, layer};

const NAME: &str = "cluster.tar";
/// The work of a child, beside its lock: which cluster image, and as what its container images are.
const CLUSTER: &str = "cluster";
const FORM: &str = "form";

/// What the next tests kill.
#[tokio::test(flavor = "multi_thread")]
async fn writes_as_a_child() {
    let Some(dir) = work() else { return };
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let cluster = Reference::parse(&read(CLUSTER)).unwrap();
    let lock = Lock::read(&dir.join("images.lock")).unwrap();
    let forms = if read(FORM) == "plain" { Forms::PLAIN } else { Forms::RAFS };
    let target = PackageTarget::File(dir.join("out").join(NAME));
    let _ = written(&cluster, &lock, &dir, None, &target, forms).await;
}

/// A cluster image and two container images behind what lets through all but the end of the large one.
struct World {
    _registry: Registry,
    held: Held,
    cluster: Reference,
    small: Vec<u8>,
    large: Vec<u8>,
    lock: Lock,
    dir: TempDir,
}

impl World {
    async fn start() -> Self {
        let registry = Registry::start().await;
        let [small, large] =
            [("small", 100_000), ("large", 4 << 20)].map(|(name, size)| layer(&[(name, &noise(1, size))]));
        for (name, layer) in [("small", &small), ("large", &large)] {
            let image = registry.image(name, AMD64, &[layer]).await;
            registry.tag(name, "v1", image.content).await;
        }
        let k8s = registry.image("k8s", AMD64, &[b"root file system"]).await;
        registry.tag("k8s", "v1", index(&[&k8s])).await;
        let held = Held::start(registry.host()).await;
        let cluster = Reference::parse(&format!("{}/k8s:v1", held.host)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let lock = locked(&dir, &format!("{0}/small:v1\n{0}/large:v1\n", held.host)).await;
        held.let_through_each(3 << 20);
        Self { _registry: registry, held, cluster, small, large, lock, dir }
    }

    /// Kills a child that writes the package once all has come that is let through; what is there then.
    async fn killed(&self, form: &str) -> Vec<String> {
        let dir = self.dir.path();
        self.lock.write(&dir.join("images.lock")).unwrap();
        fs::write(dir.join(CLUSTER), self.cluster.to_string()).unwrap();
        fs::write(dir.join(FORM), form).unwrap();
        let out = self.out();
        fs::create_dir(&out).unwrap();
        kill_when("package::killed::writes_as_a_child", dir, || self.held.holds() && !names(&out).is_empty())
            .await;
        self.held.let_through(u64::MAX);
        names(&out)
    }

    fn out(&self) -> std::path::PathBuf {
        self.dir.path().join("out")
    }

    /// Writes it to its end; the bytes that were fetched.
    async fn write(&self, path: &Path, forms: Forms) -> u64 {
        let target = PackageTarget::File(path.to_owned());
        written(&self.cluster, &self.lock, self.dir.path(), None, &target, forms).await.unwrap()
    }

    /// The package is finished by the next process, and no other than one that was never interrupted.
    async fn is_finished(&self, forms: Forms) {
        let package = self.out().join(NAME);
        let fetched = self.write(&package, forms).await;
        assert!(fetched >= self.large.len() as u64, "{fetched}");
        assert_eq!(names(&self.out()), [NAME], "nothing half-written is left");
        open(&package);
        let again = self.dir.path().join("again.tar");
        self.write(&again, forms).await;
        assert!(fs::read(&package).unwrap() == fs::read(&again).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_whose_writer_is_killed_is_finished_by_the_next() {
    let world = World::start().await;
    let left = world.killed("plain").await;
    assert!(left.len() == 1 && left[0].ends_with(".partial"), "{left:?}");
    world.is_finished(Forms::PLAIN).await;
    let package = open(&world.out().join(NAME));
    for layer in [&world.small, &world.large] {
        assert!(package.blob(&sha256(layer)).unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_of_rafs_whose_writer_is_killed_is_finished_by_the_next() {
    let world = World::start().await;
    let left = world.killed("rafs").await;
    assert!(left.len() == 1 && left[0].ends_with(".images"), "{left:?}");
    world.is_finished(Forms::RAFS).await;
    assert!(open(&world.out().join(NAME)).saved().is_some());
}
