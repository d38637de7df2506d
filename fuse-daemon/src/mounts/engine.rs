//! What all mounts of a process share, and how an image becomes a mount.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rafs::blob::meta::BlobMeta;
use rafs::blob::source::{BlobError, lacking_chunk_info, load_chunk_info_files, meta_of};
use rafs::blob::{Blob, BlobIndex, Chunk};
use rafs::bootstrap::{Bootstrap, ReadError as BootstrapError};
use rafs::limits::Limits;
use tokio::runtime::Handle;

use crate::cache::{CHUNK_BYTES_LIMIT, Cache, CacheError, Lease, Remembered};
use crate::control::{BlobId, Waiting};
use crate::front::{Front, FrontConfig, Orders};
use crate::fs::{Completeness, FileSystem, FsError, Gates};
use crate::fuse::{HandedOver, JournalConfig, Options, PathSearches, Rights, Session, SessionError};
use crate::metrics::Counters;
use crate::prefetch::{self, PrefetchConfig};
use crate::worker::{Fetcher, Place};

use super::own::{MountSources, OwnSources};

/// How often a mount lets go of what it looked at. What is looked at all the time comes back for some microseconds a page.
const LET_GO_PAUSE: Duration = Duration::from_secs(10);

/// How often it is looked whether reads have ended, after which memory is given back.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// Settings of what all mounts share.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Threads for each mount that take requests from the kernel.
    pub fuse_threads: usize,
    /// What the kernel reads ahead of a program, in KiB.
    pub read_ahead_kib: Option<u32>,
    /// Where requests are noted for another process that takes mounts over, if one may.
    pub journal: Option<JournalConfig>,
    /// Whether each file is asked for extended attributes also where none has any.
    pub exact_xattrs: bool,
    /// What is fetched ahead of readers.
    pub prefetch: PrefetchConfig,
    /// How reads are answered.
    pub front: FrontConfig,
}

/// Cache, front and worker.
pub struct Engine<W> {
    config: EngineConfig,
    runtime: Handle,
    cache: Cache,
    front: Arc<Front>,
    worker: Arc<W>,
    searches: PathSearches,
}

/// An image to mount, whose backends are named by `B`.
pub struct Image<'a, B> {
    /// Names it in `/proc/mounts` and logs.
    pub id: &'a str,
    /// What people call it, in logs.
    pub name: &'a str,
    /// The bootstrap's file.
    pub bootstrap: &'a Path,
    /// Where to mount.
    pub mountpoint: &'a Path,
    /// What it may do, and who may look.
    pub rights: Rights,
    /// Who has its blobs: at least one, in the order in which they are asked.
    pub backends: Vec<B>,
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
        source: Arc<BlobError>,
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

impl MountError {
    /// Whether the image is at fault, rather than the machine: another attempt would end the same way.
    pub(crate) fn is_of_image(&self) -> bool {
        match self {
            Self::Bootstrap { source, .. } => is_wrong(source),
            Self::NoBlobId { .. } => true,
            Self::ChunkInfo { .. } | Self::Cache { .. } | Self::Session(_) => false,
        }
    }
}

/// Whether a bootstrap is none, or none that can be read, and not merely out of reach for now.
fn is_wrong(error: &BootstrapError) -> bool {
    match error {
        BootstrapError::Of { error, .. } => is_wrong(error),
        BootstrapError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => true,
    }
}

/// An image that is mounted. Dropped, it stays so: see [`Mounted::unmount`].
pub struct Mounted<W: Fetcher> {
    session: Session,
    /// Gone when the kernel has let go of it.
    fs: Weak<FileSystem>,
    blobs: Vec<BlobId>,
    /// Gone when the kernel has let go of the file system.
    sources: Weak<MountSources<W>>,
    worker: Arc<W>,
    front: Arc<Front>,
}

/// What the file system needs for as long as the kernel may read from it.
type Held<W> = (Arc<MountSources<W>>, Arc<W>);

/// An image with all that it needs to be mounted.
pub struct Prepared<W: Fetcher> {
    bootstrap: Bootstrap,
    sources: Vec<(String, Arc<W::Registration>)>,
}

impl<W: Fetcher> Engine<W> {
    /// An engine over `cache` whose chunks `worker` fetches. What blocks runs on `runtime`.
    ///
    /// # Errors
    ///
    /// No threads are to be had.
    pub fn new(cache: Cache, config: EngineConfig, runtime: Handle, worker: W) -> std::io::Result<Self> {
        let worker = Arc::new(worker);
        let front = Front::new(worker.clone(), config.front.clone())?;
        let orders: Weak<Front> = Arc::downgrade(&front);
        worker.connect(orders as Weak<dyn Orders>)?;
        runtime.spawn(give_back(Arc::downgrade(&front)));
        Ok(Self { config, runtime, cache, front, worker, searches: PathSearches::default() })
    }

    /// Who fetches.
    pub fn worker(&self) -> &W {
        &self.worker
    }

    /// What is counted of all mounts.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        self.front.counters()
    }

    /// Chunks that are on their way.
    pub(crate) fn chunks_awaited(&self) -> usize {
        self.front.awaited()
    }

    /// Chunks that programs wait for, those first that are waited for longest: `limit` of them at most.
    pub(crate) fn waiting(&self, limit: usize) -> Vec<Waiting> {
        self.front.waiting(limit)
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
    pub fn mount(&self, image: &Image<'_, W::Backend>) -> Result<Mounted<W>, MountError> {
        let prepared = self.runtime.block_on(self.prepare(image))?;
        self.mount_prepared(image, prepared)
    }

    /// Opens an image, and has the chunk information fetched that its bootstrap lacks and the cache has not kept: of blobs
    /// with batches, or of all blobs where it has no chunk table. Other images need nobody for it.
    ///
    /// # Errors
    ///
    /// [`MountError`]; within the deadline of reads.
    pub async fn prepare(&self, image: &Image<'_, W::Backend>) -> Result<Prepared<W>, MountError> {
        let until = tokio::time::Instant::now() + self.config.front.deadline;
        let path = image.bootstrap;
        let lacking = |source| MountError::ChunkInfo { path: path.to_owned(), source };
        let mut bootstrap = Bootstrap::open(path).map_err(broken(path))?;
        let blobs = blob_ids(path, &bootstrap)?;
        // Each is asked before those that were there, so the last of them is registered first.
        let backends = image.backends.iter().rev();
        let register =
            |backend| (W::name_of(backend), Arc::new(self.worker.register(&blobs, backend, Place::First)));
        let sources = backends.map(register).collect();
        self.front.forget_failures(&blobs);
        // What is beside the bootstrap was verified with it, whose layer it is part of.
        load_chunk_info_files(&mut bootstrap, path.parent().unwrap_or(Path::new(".")))
            .map_err(|source| lacking(Arc::new(source)))?;
        let wanted =
            lacking_chunk_info(&bootstrap, Limits::DEFAULT).map_err(|source| lacking(Arc::new(source)))?;
        let fetched = wanted
            .into_iter()
            .map(|(index, blob)| async move { Ok((index, self.chunk_info(blob, until).await?)) });
        for (index, meta) in futures::future::try_join_all(fetched).await.map_err(lacking)? {
            bootstrap.set_chunk_info(index, meta).map_err(broken(path))?;
        }
        Ok(Prepared { bootstrap, sources })
    }

    /// The chunk information of a blob, verified: what was kept of it, or else what the worker brings, which is kept then.
    async fn chunk_info(&self, blob: Blob, until: tokio::time::Instant) -> Result<BlobMeta, Arc<BlobError>> {
        let blob = Arc::new(blob);
        let (cache, described) = (self.cache.clone(), Arc::clone(&blob));
        let kept = self.runtime.spawn_blocking(move || cache.kept_chunk_info(&described)).await;
        if let Ok(Some(meta)) = kept {
            return Ok(meta);
        }
        let parts = self.worker.chunk_info(&blob, until).await?;
        let (cache, runtime, described) = (self.cache.clone(), self.runtime.clone(), Arc::clone(&blob));
        let verified = self.runtime.spawn_blocking(move || {
            let written = cache.keep_chunk_info(&described, &parts);
            // Nobody waits for the disk.
            runtime.spawn_blocking(move || {
                if let Err(error) = written.and_then(Remembered::sync) {
                    let error = crate::describe(&error);
                    tracing::warn!(error, "cannot keep chunk information: the next mount fetches it again");
                }
            });
            meta_of(&described, parts).map_err(Arc::new)
        });
        verified.await.unwrap_or_else(|panic| {
            let blob = blob.id.map(|id| id.to_string()).unwrap_or_default();
            Err(Arc::new(BlobError::Io { blob, source: std::io::Error::other(panic) }))
        })
    }

    /// Mounts an image that was prepared; it serves when this returns. Blocks for as long as the operating system takes.
    ///
    /// # Errors
    ///
    /// [`MountError`].
    pub fn mount_prepared(
        &self,
        image: &Image<'_, W::Backend>,
        prepared: Prepared<W>,
    ) -> Result<Mounted<W>, MountError> {
        let mounted = self.serve(image, prepared, Session::mount)?;
        tracing::info!(image = image.id, mountpoint = %image.mountpoint.display(), "mounted");
        Ok(mounted)
    }

    /// Goes on serving an image that another process has mounted, and answers what that one had not.
    ///
    /// # Errors
    ///
    /// [`MountError`]; the mount is as it was then.
    pub(crate) fn adopt(
        &self,
        image: &Image<'_, W::Backend>,
        prepared: Prepared<W>,
        handed: HandedOver,
    ) -> Result<Mounted<W>, MountError> {
        let mounted =
            self.serve(image, prepared, |fs, held, options| Session::adopt(fs, held, options, handed))?;
        tracing::info!(image = image.id, mountpoint = %image.mountpoint.display(), "taken over");
        Ok(mounted)
    }

    fn serve(
        &self,
        image: &Image<'_, W::Backend>,
        prepared: Prepared<W>,
        start: impl FnOnce(Arc<FileSystem>, Held<W>, &Options<'_>) -> Result<Session, SessionError>,
    ) -> Result<Mounted<W>, MountError> {
        let bootstrap = Arc::new(prepared.bootstrap);
        let cached = self.cached_blobs(image.bootstrap, &bootstrap)?;
        self.front.note_mount();
        let blobs: Vec<BlobId> = cached.iter().map(|lease| lease.blob().id()).collect();
        let sources = Arc::new(Mutex::new(prepared.sources));
        let gates = self.gates(image.name, &blobs, &sources);
        let held: Held<W> = (Arc::clone(&sources), self.worker.clone());
        let (program_starts, programs) = prefetch::programs();
        let fs = Arc::new(FileSystem::new(bootstrap, cached, gates, self.front.clone(), program_starts));
        let options = Options {
            source: &format!("nydus-cluster:{}", image.id),
            image: image.name,
            searches: &self.searches,
            mountpoint: image.mountpoint,
            rights: image.rights,
            threads: self.config.fuse_threads,
            read_ahead_kib: self.config.read_ahead_kib,
            journal: self.config.journal.as_ref(),
        };
        // Nothing is fetched ahead before the mount serves: a mount that cannot be made costs no registry anything.
        let session = start(Arc::clone(&fs), held, &options)?;
        self.cache.note_mounted(&blobs);
        prefetch::start(&self.runtime, &fs, programs, &self.config.prefetch, image.id);
        self.runtime.spawn(let_go(Arc::downgrade(&fs)));
        if !self.config.exact_xattrs {
            let looked_at = Arc::downgrade(&fs);
            self.runtime.spawn_blocking(move || looked_at.upgrade().map(|fs| fs.look_for_xattrs()));
        }
        Ok(Mounted {
            session,
            fs: Arc::downgrade(&fs),
            blobs,
            sources: Arc::downgrade(&sources),
            worker: Arc::clone(&self.worker),
            front: Arc::clone(&self.front),
        })
    }

    /// Lets a mount's reads through to the blobs that one of its own sources has answered for.
    fn gates(&self, image: &str, blobs: &[BlobId], sources: &Arc<MountSources<W>>) -> Arc<Gates> {
        let own = Arc::new(OwnSources {
            image: image.to_owned(),
            worker: Arc::clone(&self.worker),
            cache: self.cache.clone(),
            runtime: self.runtime.clone(),
            failure_memory: self.config.front.failure_memory,
            sources: Arc::downgrade(sources),
            refused: Arc::default(),
        });
        let answered: Vec<_> = blobs.iter().map(|blob| (*blob, own.have_answered(*blob))).collect();
        let gates = Gates::new(Arc::new(own), answered, self.config.front.failure_memory);
        gates.ask_ahead(&self.front.deadline());
        gates
    }

    fn cached_blobs(&self, path: &Path, bootstrap: &Bootstrap) -> Result<Vec<Lease>, MountError> {
        let ids = blob_ids(path, bootstrap)?;
        let mut cached = Vec::with_capacity(ids.len());
        // An image has at most 254 blobs, which the bootstrap's reader has checked.
        for ((index, blob), id) in (0..=u8::MAX).zip(bootstrap.blobs()).zip(ids) {
            let chunks = bootstrap.known_chunks(BlobIndex(index)).map_err(broken(path))?;
            // What cannot be is not described, so nobody asks a backend for it.
            let possible =
                |chunk: &Chunk| chunk.compressed_size.max(chunk.uncompressed_size) <= CHUNK_BYTES_LIMIT;
            let said = chunks.filter(|said| said.as_ref().map_or(true, |(_, chunk)| possible(chunk)));
            let said = said.collect::<Result<Vec<_>, _>>().map_err(broken(path))?;
            bootstrap.sound().map_err(broken(path))?;
            let coding = Arc::new(Blob { chunks: Vec::new(), ..blob.clone() });
            let lease = self.cache.blob(id, &coding, blob.uncompressed_size, &said);
            cached.push(lease.map_err(|source| MountError::Cache { path: path.to_owned(), source })?);
        }
        Ok(cached)
    }
}

/// Keeps a mount that is idle from holding what it looked at: at first the whole bootstrap, when the cache was told of its chunks.
async fn let_go(fs: Weak<FileSystem>) {
    while let Some(mounted) = fs.upgrade() {
        mounted.let_go();
        drop(mounted);
        tokio::time::sleep(LET_GO_PAUSE).await;
    }
}

/// Gives back what reads, and mounting, took for a moment. Threads leave much, each in a heap of its own.
async fn give_back(front: Weak<Front>) {
    loop {
        tokio::time::sleep(IDLE_PAUSE).await;
        let Some(front) = front.upgrade() else { return };
        if front.let_go() {
            service::memory::give_back();
        }
    }
}

fn broken(path: &Path) -> impl Fn(BootstrapError) -> MountError {
    move |source| MountError::Bootstrap { path: path.to_owned(), source: Box::new(source) }
}

fn blob_ids(path: &Path, bootstrap: &Bootstrap) -> Result<Vec<BlobId>, MountError> {
    let id = |(index, blob): (usize, &Blob)| {
        blob.id.map(BlobId).ok_or_else(|| MountError::NoBlobId { path: path.to_owned(), index })
    };
    bootstrap.blobs().iter().enumerate().map(id).collect()
}

impl<W: Fetcher> Mounted<W> {
    /// The blobs that it reads from.
    pub fn blobs(&self) -> &[BlobId] {
        &self.blobs
    }

    /// How much of it is in the cache.
    pub fn completeness(&self) -> Completeness {
        self.fs.upgrade().map(|fs| fs.completeness()).unwrap_or_default()
    }

    /// The paths of the files that were read, in the order in which each was first.
    ///
    /// # Errors
    ///
    /// The bootstrap is broken.
    pub fn trace(&self) -> Result<Vec<Box<[u8]>>, FsError> {
        self.fs.upgrade().map_or(Ok(Vec::new()), |fs| fs.trace())
    }

    /// Has its blobs read from `backend` as well, if the others do not have them.
    pub fn add_backend(&self, backend: &W::Backend) {
        let Some(sources) = self.sources.upgrade() else { return };
        let registration = Arc::new(self.worker.register(&self.blobs, backend, Place::Last));
        let source = (W::name_of(backend), registration);
        sources.lock().unwrap_or_else(PoisonError::into_inner).push(source);
        self.front.forget_failures(&self.blobs);
    }

    /// Whether it still is at its place; somebody else may have unmounted it.
    pub fn is_mounted(&self) -> bool {
        self.session.is_mounted()
    }

    /// What another process needs to go on after this one.
    pub(crate) fn hand_over(&self) -> Result<HandedOver, MountError> {
        Ok(self.session.hand_over()?)
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
