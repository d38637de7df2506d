//! Images for tests, and ways to have them mounted.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuse_daemon::Rights;
use fuse_daemon::cache::{BootId, Cache};
use fuse_daemon::control::BlobId;
use fuse_daemon::front::FrontConfig;
use fuse_daemon::mounts::{Engine, EngineConfig, Image, MountError, Mounted};
use fuse_daemon::prefetch::PrefetchConfig;
use fuse_daemon::worker::{Backend, DirectoryBackend, LocalWorker, WorkerConfig};
use rafs::bootstrap::Bootstrap;
use rafs::build::{BuildOptions, build_layer};
use rafs::digest::Digest;
use test_support::noise;

/// An image on disk: a bootstrap, and a directory of blobs.
pub(crate) struct TestImage {
    pub(crate) dir: tempfile::TempDir,
}

impl TestImage {
    /// Builds an image of one layer.
    pub(crate) fn build(tar: &[u8], options: &BuildOptions) -> Self {
        Self::build_layers(&[tar], options)
    }

    pub(crate) fn build_layers(tars: &[&[u8]], options: &BuildOptions) -> Self {
        Self::build_layers_with(tars, options, &[])
    }

    /// Builds an image whose prefetch table names these paths.
    pub(crate) fn build_layers_with(tars: &[&[u8]], options: &BuildOptions, prefetch: &[&str]) -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(image.blobs()).unwrap();
        let layers = tars.iter().map(|tar| {
            let mut blob = Vec::new();
            let layer = build_layer(*tar, &mut blob, options).unwrap();
            let id = layer.blobs[0].id.unwrap();
            std::fs::write(image.blobs().join(id.to_string()), blob).unwrap();
            layer
        });
        let merged = rafs::merge::merge(layers.collect()).unwrap();
        let mut bootstrap = File::create(image.bootstrap()).unwrap();
        let prefetch = prefetch.iter().map(|path| path.as_bytes().into()).collect();
        let options = rafs::bootstrap::WriteOptions { prefetch, ..Default::default() };
        rafs::bootstrap::write(&merged, &options, &mut bootstrap).unwrap();
        image
    }

    /// An image as it is described, with the blobs of another.
    pub(crate) fn of(described: &rafs::tree::Image, blobs: &Path) -> Self {
        let image = Self { dir: tempfile::tempdir().unwrap() };
        std::os::unix::fs::symlink(blobs, image.blobs()).unwrap();
        let mut bootstrap = File::create(image.bootstrap()).unwrap();
        rafs::bootstrap::write(described, &rafs::bootstrap::WriteOptions::default(), &mut bootstrap).unwrap();
        image
    }

    pub(crate) fn bootstrap(&self) -> PathBuf {
        self.dir.path().join("image.boot")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.path().join("blobs")
    }

    pub(crate) fn blob_ids(&self) -> Vec<Digest> {
        let bootstrap = Bootstrap::open(&self.bootstrap()).unwrap();
        bootstrap.blobs().iter().map(|blob| blob.id.unwrap()).collect()
    }

    pub(crate) fn blob_file(&self) -> PathBuf {
        self.blobs().join(self.blob_ids()[0].to_string())
    }

    pub(crate) fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(DirectoryBackend::new(self.blobs()))
    }

    /// Changes a byte in the stored bytes of each chunk of a file.
    pub(crate) fn corrupt(&self, path: &str) {
        let bootstrap = Bootstrap::open(&self.bootstrap()).unwrap();
        let nid = bootstrap.lookup_path(path.as_bytes()).unwrap().unwrap();
        let mut bytes = std::fs::read(self.blob_file()).unwrap();
        for piece in bootstrap.chunks(nid, 0..u64::MAX).unwrap() {
            let piece = piece.unwrap();
            let chunk = bootstrap.chunk(piece.blob, piece.chunk).unwrap();
            let middle = chunk.compressed_offset + u64::from(chunk.compressed_size / 2);
            bytes[middle as usize] ^= 0x55;
        }
        std::fs::write(self.blob_file(), bytes).unwrap();
    }
}

/// A hundred files of 2,000 bytes each.
pub(crate) fn small_files() -> Vec<(String, Vec<u8>)> {
    (0..100).map(|seed| (format!("f{seed:03}"), noise(seed, 2000))).collect()
}

pub(crate) const FIRST_BOOT: BootId = BootId([1; 16]);
pub(crate) const SECOND_BOOT: BootId = BootId([2; 16]);

/// What tests change of the engine's settings.
pub(crate) struct Settings {
    pub(crate) deadline: Duration,
    pub(crate) request_bytes: u64,
    pub(crate) boot: BootId,
    pub(crate) prefetch: PrefetchConfig,
    pub(crate) exact_xattrs: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let prefetch = PrefetchConfig { table: true, programs: true, complete_after: None };
        let (deadline, request_bytes) = (super::SOON, 1 << 20);
        Self { deadline, request_bytes, boot: FIRST_BOOT, prefetch, exact_xattrs: false }
    }
}

/// An engine with a runtime of its own.
pub(crate) struct Node {
    pub(crate) engine: Engine<LocalWorker>,
    /// Fetches as long as it is there.
    _runtime: tokio::runtime::Runtime,
}

impl Node {
    /// A node with the usual settings and an empty cache, whose directory lasts as long as the first part.
    pub(crate) fn fresh() -> (tempfile::TempDir, Self) {
        let cache = tempfile::tempdir().unwrap();
        let node = Self::new(cache.path(), &Settings::default());
        (cache, node)
    }

    pub(crate) fn new(cache_dir: &Path, settings: &Settings) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = EngineConfig {
            fuse_threads: 2,
            journal: None,
            exact_xattrs: settings.exact_xattrs,
            read_ahead_kib: Some(1024),
            prefetch: settings.prefetch.clone(),
            front: FrontConfig {
                deadline: settings.deadline,
                request_bytes: settings.request_bytes,
                ahead_bytes: 8 << 20,
                threads: 2,
                failure_memory: Duration::from_millis(300),
            },
        };
        let worker = WorkerConfig { buffer_bytes: 8 << 20, threads: 2, patience: settings.deadline / 6 };
        let worker = LocalWorker::new(worker, runtime.handle().clone()).unwrap();
        let cache = Cache::open(cache_dir, settings.boot).unwrap();
        let engine = Engine::new(cache, config, runtime.handle().clone(), worker).unwrap();
        Self { engine, _runtime: runtime }
    }

    pub(crate) fn mount(&self, image: &TestImage) -> TestMount {
        self.mount_from(image, image.backend())
    }

    pub(crate) fn mount_from(&self, image: &TestImage, backend: Arc<dyn Backend>) -> TestMount {
        self.try_mount_from(image, backend).unwrap()
    }

    pub(crate) fn try_mount_from(
        &self,
        image: &TestImage,
        backend: Arc<dyn Backend>,
    ) -> Result<TestMount, MountError> {
        self.try_mount_from_all(image, vec![backend])
    }

    /// Mounts an image whose blobs several backends have.
    pub(crate) fn try_mount_from_all(
        &self,
        image: &TestImage,
        backends: Vec<Arc<dyn Backend>>,
    ) -> Result<TestMount, MountError> {
        let dir = tempfile::tempdir().unwrap();
        let mountpoint = dir.path().join("made/on/demand");
        let mounted = self.engine.mount(&Image {
            id: "test",
            name: "test",
            bootstrap: &image.bootstrap(),
            mountpoint: &mountpoint,
            rights: Rights::CONTAINER,
            backends,
        })?;
        Ok(TestMount { mounted, mountpoint, _dir: dir })
    }

    pub(crate) fn usage(&self, image: &TestImage) -> u64 {
        image.blob_ids().into_iter().map(|id| self.engine.cache().usage(BlobId(id))).sum()
    }
}

/// A mount that is gone after the test.
pub(crate) struct TestMount {
    pub(crate) mounted: Mounted<LocalWorker>,
    pub(crate) mountpoint: PathBuf,
    _dir: tempfile::TempDir,
}

impl TestMount {
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.mountpoint.join(path)
    }

    pub(crate) fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path(path))
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        let _ = self.mounted.unmount(Duration::from_secs(2));
    }
}
