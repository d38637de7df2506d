//! Layers out of the directory of buildkitd's content store, where the exporter can read it.
//!
//! A layer that buildkitd announces is then read from its file instead of being sent over the session. And a layer that
//! buildkitd has to make first is converted while it is made: see [`ahead`].
//!
//! The directory is a content store of containerd's:
//!
//! ```text
//! blobs/sha256/<hex>   a blob
//! ingest/<name>/data   a blob being written; moved to blobs when it is complete
//! ```

mod ahead;
mod reader;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::FutureExt as _;
use image::destination::{Destination, SpoolSpace, StoreError};
use registry::digest::Digest;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use tokio::sync::watch as channel;

pub(crate) use self::ahead::convert_ahead;
use self::reader::BlobReader;
use crate::build::ingest::{Ingest, SNIFF_BYTES, is_document};
use crate::build::{Claim, Output, OutputError};
use image::layer::{AheadConversion, BuiltLayer, ConvertError, Flight};
use image::progress::{Task, short};

/// Read from a file at once.
const READ_BYTES: usize = 1 << 20;

/// buildkitd's content store as one build sees it.
pub(crate) struct LocalStore {
    dir: PathBuf,
    /// Room for what is made of blobs that buildkitd has not announced yet.
    space: Arc<SpoolSpace>,
    /// The conversions of those.
    ahead: Mutex<HashMap<FileId, Conversion>>,
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A file on its way to a converted layer.
struct Conversion {
    conversion: AheadConversion<BlobReader>,
    position: channel::Receiver<u64>,
    /// As long as it is open, no other file can be taken for it.
    file: Weak<File>,
}

/// Why a file that was followed did not become a layer.
#[derive(Debug, thiserror::Error)]
enum LocalError {
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("has digest {found} and {size} bytes")]
    Content { found: Digest, size: u64 },
}

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
enum Unfed {
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Leaves out the conversions: they are known by their files alone.
impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl LocalStore {
    /// The store in the directory `dir`.
    pub(crate) fn new(dir: &Path, space: Arc<SpoolSpace>) -> Self {
        Self { dir: dir.to_owned(), space, ahead: Mutex::default() }
    }

    fn ahead(&self) -> MutexGuard<'_, HashMap<FileId, Conversion>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the layer `digest` of `total` bytes is converted as it is written.
    pub(crate) fn is_converting(&self, digest: &Digest, total: u64) -> bool {
        let Ok(Some((_, id))) = open_layer(&self.dir, &blob_name(digest), total) else { return false };
        self.ahead().get(&id).is_some_and(|ahead| ahead.conversion.has_begun())
    }

    /// Has made of the layer `digest` of `total` bytes what `claim` says is missing, if its blob is here. Returns what has to come
    /// over the session: the layer is not here, is no layer, or is not what its name says.
    pub(crate) async fn take(
        &self,
        output: &Output,
        digest: &Digest,
        total: u64,
        mut claim: Claim,
    ) -> Result<Option<Claim>, OutputError> {
        let name = blob_name(digest);
        let path = self.dir.join(&name);
        let (file, id) = match open_layer(&self.dir, &name, total) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(Some(claim)),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read buildkitd's content store");
                return Ok(Some(claim));
            }
        };
        // One that waits for a slot may wait for what another client never completes: its file is read now.
        let begun = self.ahead().remove(&id).filter(|ahead| ahead.conversion.has_begun());
        // Once one that was given up is closed, its place may be the announced file's, which then is read now.
        let ahead = begun.and_then(|ahead| ahead.file.upgrade().map(|open| (ahead, open)));
        if let (Some((ahead, _open)), Claim::Absent(flight)) = (ahead, &mut claim)
            && ahead.take(output, digest, total, flight).await?
        {
            tracing::info!(layer = %digest, ahead = true, "layer was read from buildkitd's content store");
            return Ok(None);
        }
        match feed(output, digest, total, file, claim).await {
            Ok(()) => {
                tracing::info!(layer = %digest, ahead = false, "layer was read from buildkitd's content store");
                Ok(None)
            }
            Err(Unfed::Output(error)) if !error.is_of_content() => Err(error),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot convert from buildkitd's content store");
                output.claim(digest).await.map(Some)
            }
        }
    }
}

/// Reads the layer `digest` of `total` bytes from its file into what `claim` says is missing.
async fn feed(output: &Output, digest: &Digest, total: u64, file: File, claim: Claim) -> Result<(), Unfed> {
    let mut ingest = Ingest::new(output, digest.clone(), total, Some(claim))?;
    let file = Arc::new(file);
    loop {
        let (file, at) = (Arc::clone(&file), ingest.received());
        let piece = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; READ_BYTES];
            let length = file.read_at(&mut piece, at)?;
            piece.truncate(length);
            Ok::<_, io::Error>(piece)
        });
        let piece = piece.await.map_err(io::Error::other)??;
        if piece.is_empty() {
            ingest.commit().await?;
            return Ok(());
        }
        ingest.write(piece.into()).await?;
    }
}

impl Conversion {
    /// Begins to convert what `reader` reads, of which it is not known whose it is.
    async fn start_ahead(
        output: &Output,
        reader: BlobReader,
        space: &Arc<SpoolSpace>,
    ) -> Result<Self, OutputError> {
        let (position, file) = (reader.position(), reader.file());
        Ok(Self { conversion: output.convert_ahead(reader, space).await?, position, file })
    }

    /// Has the layer stored, if it was made of the blob `digest` of `total` bytes. `flight`, which tells others, is used then.
    async fn take(
        self,
        output: &Output,
        digest: &Digest,
        total: u64,
        flight: &mut Option<Flight>,
    ) -> Result<bool, OutputError> {
        let task = output.task(format!("converting {}", short(digest)), total);
        let destination = output.layer_destination().await?;
        let stored = async {
            let built = self.built(digest, total, flight.as_ref(), &task, Arc::clone(&destination)).await?;
            Ok(built.store(destination.as_ref()).await?)
        };
        match stored.await {
            Ok(layer) => {
                output.add_layer(digest, layer, flight.take()).await?;
                task.finish();
                Ok(true)
            }
            Err(LocalError::Convert(error @ ConvertError::Push(StoreError::Registry(_)))) => {
                let error = output.layer_error(digest, error);
                task.fail(&error.to_string());
                Err(error)
            }
            Err(error) => {
                tracing::warn!(%error, layer = %digest, "not converted ahead; its file is read now");
                task.finish();
                Ok(false)
            }
        }
    }

    /// Sends what is made of the layer to `destination` and waits for the rest, showing how far it is. It has to be made of the blob
    /// `digest` of `total` bytes.
    async fn built(
        mut self,
        digest: &Digest,
        total: u64,
        flight: Option<&Flight>,
        task: &Task,
        destination: Arc<dyn Destination>,
    ) -> Result<BuiltLayer<BlobReader>, LocalError> {
        let mut shown = 0;
        let built = self.conversion.built_for(destination).boxed();
        tokio::pin!(built);
        let built = loop {
            tokio::select! {
                built = &mut built => break built?,
                Ok(()) = self.position.changed() => {
                    let position = *self.position.borrow_and_update();
                    task.advance(position - shown);
                    flight.into_iter().for_each(Flight::progress);
                    shown = position;
                }
            }
        };
        let (found, size) = built.input().content();
        if (&found, size) != (digest, total) {
            built.cancel().await;
            return Err(LocalError::Content { found, size });
        }
        Ok(built)
    }
}

/// The file of a blob in the store.
fn blob_name(digest: &Digest) -> PathBuf {
    Path::new("blobs").join(digest.algorithm().as_ref()).join(digest.digest())
}

/// Opens the regular file `name` in the directory `dir`, without following any link in `name`; `None` if there is none.
fn open_regular(dir: &Path, name: &Path) -> io::Result<Option<File>> {
    // Opening a pipe would wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = match openat2(File::open(dir)?, name, flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

/// Opens the file of a layer; `None` if it is not there, or no layer of that size.
fn open_layer(dir: &Path, name: &Path, total: u64) -> io::Result<Option<(File, FileId)>> {
    let Some(file) = open_regular(dir, name)? else { return Ok(None) };
    let metadata = file.metadata()?;
    let mut begin = [0; SNIFF_BYTES];
    if metadata.len() != total || total == 0 {
        return Ok(None);
    }
    // Compressed, a layer may have fewer bytes.
    let begin = &mut begin[..usize::try_from(total).map_or(SNIFF_BYTES, |total| total.min(SNIFF_BYTES))];
    file.read_exact_at(begin, 0)?;
    Ok((!is_document(begin)).then(|| (file, FileId::of(&metadata))))
}

#[cfg(test)]
mod tests;
