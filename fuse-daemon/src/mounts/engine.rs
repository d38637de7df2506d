//! What all mounts of a process share, and how an image becomes a mount.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rafs::blob::BlobIndex;
use rafs::blob::source::BlobError;
use rafs::bootstrap::{Bootstrap, ReadError as BootstrapError};
use tokio::runtime::Handle;

use crate::cache::{Cache, CacheError, Lease, Place};
use crate::control::BlobId;
use crate::front::{Front, Responses};
use crate::fs::FileSystem;
use crate::fuse::{Options, Session, SessionError};
use crate::worker::{Backend, LocalWorker, Registration, Source, WorkerConfig};

/// Settings of what all mounts share.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Threads for each mount that take requests from the kernel.
    pub fuse_threads: usize,
    /// What the kernel reads ahead of a program, in KiB.
    pub read_ahead_kib: Option<u32>,
    /// Time for a read to be answered.
    pub deadline: Duration,
    /// Settings of the worker.
    pub worker: WorkerConfig,
}

/// Cache, front and worker.
pub struct Engine {
    config: EngineConfig,
    runtime: Handle,
    cache: Cache,
    front: Arc<Front>,
    worker: Arc<LocalWorker>,
}

/// An image to mount.
pub struct Image<'a> {
    /// Names it in `/proc/mounts` and logs.
    pub id: &'a str,
    /// The bootstrap's file.
    pub bootstrap: &'a Path,
    /// Where to mount.
    pub mountpoint: &'a Path,
    /// Who has its blobs: at least one, in the order in which they are asked.
    pub backends: Vec<Arc<dyn Backend>>,
}

/// Why an image cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Its bootstrap is missing or none that can be read.
    #[error("bootstrap {}", path.display())]
    Bootstrap {
        /// The bootstrap's file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<BootstrapError>,
    },
    /// A blob has no id: a layer's own bootstrap, not an image's.
    #[error("bootstrap {}: blob {index} has no id; expected an image's bootstrap, not a layer's", path.display())]
    NoBlobId {
        /// The bootstrap's file.
        path: PathBuf,
        /// The blob.
        index: usize,
    },
    /// Chunk information that the bootstrap lacks cannot be had.
    #[error("bootstrap {} lacks chunk information", path.display())]
    ChunkInfo {
        /// The bootstrap's file.
        path: PathBuf,
        /// Why not.
        source: Box<BlobError>,
    },
    /// The cache cannot take its blobs.
    #[error("bootstrap {}", path.display())]
    Cache {
        /// The bootstrap's file.
        path: PathBuf,
        /// Why not.
        source: CacheError,
    },
    /// The operating system refused.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// An image that is mounted. Dropped, it stays so: see [`Mounted::unmount`].
pub struct Mounted {
    session: Session,
    blobs: Vec<BlobId>,
    /// Gone when the kernel has let go of the file system.
    sources: Weak<Mutex<Vec<Registration>>>,
}

/// What the file system needs for as long as the kernel may read from it.
type Held = (Arc<Mutex<Vec<Registration>>>, Arc<LocalWorker>);

impl Engine {
    /// An engine over `cache` that fetches on `runtime`.
    ///
    /// # Errors
    ///
    /// No threads are to be had.
    pub fn new(cache: Cache, config: EngineConfig, runtime: Handle) -> std::io::Result<Self> {
        let worker = Arc::new(LocalWorker::new(config.worker.clone(), runtime.clone())?);
        let front = Arc::new(Front::new(worker.clone(), config.deadline));
        let responses: Weak<Front> = Arc::downgrade(&front);
        worker.connect(responses as Weak<dyn Responses>);
        Ok(Self { config, runtime, cache, front, worker })
    }

    /// The cache of all mounts.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Mounts an image; it serves when this returns. Blocks for as long as the operating system takes, and for images
    /// with batches the backend: not to be called by an asynchronous task.
    ///
    /// # Errors
    ///
    /// [`MountError`].
    pub fn mount(&self, image: &Image<'_>) -> Result<Mounted, MountError> {
        let broken =
            |source| MountError::Bootstrap { path: image.bootstrap.to_owned(), source: Box::new(source) };
        let mut bootstrap = Bootstrap::open(image.bootstrap).map_err(broken)?;
        super::chunk_info::complete(
            &mut bootstrap,
            image.bootstrap,
            &image.backends,
            &self.runtime,
            self.config.deadline,
        )
        .map_err(|source| MountError::ChunkInfo {
            path: image.bootstrap.to_owned(),
            source: Box::new(source),
        })?;
        let bootstrap = Arc::new(bootstrap);
        let cached = self.cached_blobs(image.bootstrap, &bootstrap)?;
        let blobs = cached.iter().map(|lease| lease.blob().id()).collect();
        // The last to be registered is the first to be asked.
        let sources = image.backends.iter().rev();
        let sources = sources.flat_map(|backend| self.register(&bootstrap, &cached, backend)).collect();
        let sources = Arc::new(Mutex::new(sources));
        let held: Held = (Arc::clone(&sources), self.worker.clone());
        let fs = FileSystem::new(bootstrap, cached, self.front.clone());
        let options = Options {
            source: &format!("nydus-cluster:{}", image.id),
            mountpoint: image.mountpoint,
            threads: self.config.fuse_threads,
            read_ahead_kib: self.config.read_ahead_kib,
        };
        let session = Session::mount(fs, held, &options)?;
        tracing::info!(image = image.id, mountpoint = %image.mountpoint.display(), "mounted");
        Ok(Mounted { session, blobs, sources: Arc::downgrade(&sources) })
    }

    fn cached_blobs(&self, path: &Path, bootstrap: &Bootstrap) -> Result<Vec<Lease>, MountError> {
        let broken = |source| MountError::Bootstrap { path: path.to_owned(), source: Box::new(source) };
        let mut cached = Vec::with_capacity(bootstrap.blobs().len());
        // An image has at most 254 blobs, which the bootstrap's reader has checked.
        for (index, blob) in (0..=u8::MAX).zip(bootstrap.blobs()) {
            let no_id = || MountError::NoBlobId { path: path.to_owned(), index: index.into() };
            let id = BlobId(blob.id.ok_or_else(no_id)?);
            let chunks = bootstrap.known_chunks(BlobIndex(index)).map_err(broken)?;
            let places = chunks.map(|chunk| chunk.map(|(index, chunk)| Place::new(index, &chunk)));
            let places = places.collect::<Result<Vec<_>, _>>().map_err(broken)?;
            let lease = self.cache.blob(id, blob.uncompressed_size, &places);
            cached.push(lease.map_err(|source| MountError::Cache { path: path.to_owned(), source })?);
        }
        Ok(cached)
    }

    fn register(
        &self,
        bootstrap: &Arc<Bootstrap>,
        cached: &[Lease],
        backend: &Arc<dyn Backend>,
    ) -> Vec<Registration> {
        // An image has at most 254 blobs, which the bootstrap's reader has checked.
        let sources = (0..=u8::MAX).zip(cached).map(|(index, cached)| Source {
            bootstrap: Arc::clone(bootstrap),
            index: BlobIndex(index),
            backend: Arc::clone(backend),
            cached: cached.blob(),
        });
        sources.map(|source| self.worker.register(source)).collect()
    }
}

impl Mounted {
    /// The blobs that it reads from.
    pub fn blobs(&self) -> &[BlobId] {
        &self.blobs
    }

    /// Has its blobs read from `backend` as well.
    pub fn add_backend(&self, backend: &Arc<dyn Backend>) {
        let Some(sources) = self.sources.upgrade() else { return };
        let mut sources = sources.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<Registration> = self
            .blobs
            .iter()
            .filter_map(|blob| sources.iter().find(|source| source.blob() == *blob))
            .filter_map(|source| source.with_backend(backend))
            .collect();
        sources.extend(new);
    }

    /// Whether it still is at its place; somebody else may have unmounted it.
    pub fn is_mounted(&self) -> bool {
        self.session.is_mounted()
    }

    /// Unmounts unless it is in use; whether it is unmounted. Blocks shortly.
    ///
    /// # Errors
    ///
    /// [`MountError::Session`].
    pub fn try_unmount(&self) -> Result<bool, MountError> {
        Ok(self.session.try_unmount()?)
    }

    /// Unmounts; if it is in use for longer than `patience`, it is detached, and ends with its last user. Whether it
    /// has ended and its blobs are free. Blocks for up to `patience`.
    ///
    /// # Errors
    ///
    /// [`MountError::Session`].
    pub fn unmount(&self, patience: Duration) -> Result<bool, MountError> {
        Ok(self.session.unmount(patience)?)
    }
}
