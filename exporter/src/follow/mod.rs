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
use std::io::{self, BufReader};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::destination::{SpoolSpace, StoreError};
use registry::digest::{Digest, Hasher};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

pub(crate) use self::ahead::convert_ahead;
use self::reader::BlobReader;
use crate::build::{Output, OutputError};
use crate::intake::ingest::{SNIFF_BYTES, is_document, short};
use image::layer::{BuiltLayer, ConvertError, ConvertedLayer, Flight, ReadConversion};
use image::progress::Task;

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
    conversion: ReadConversion<BufReader<BlobReader>>,
    position: channel::Receiver<u64>,
}

/// Why a file did not become a layer.
#[derive(Debug, thiserror::Error)]
enum LocalError {
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("has digest {found} and {size} bytes")]
    Content { found: Digest, size: u64 },
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

    /// Converts the layer `digest` of `total` bytes, which `flight` tells others, if its blob is here. `None` means that it has to come over the session:
    /// it is not here, is no layer, or is not what its name says.
    pub(crate) async fn convert(
        &self,
        output: &Output,
        digest: &Digest,
        total: u64,
        flight: Option<&Flight>,
        stop: &CancellationToken,
    ) -> Result<Option<ConvertedLayer>, OutputError> {
        let name = Path::new("blobs").join(digest.algorithm().as_ref()).join(digest.digest());
        let path = self.dir.join(&name);
        let (file, id) = match open_layer(&self.dir, &name, total) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read buildkitd's content store");
                return Ok(None);
            }
        };
        let task = output.task(format!("converting {}", short(digest)), total);
        // One that waits for a slot may wait for what another client never completes: its file is read now.
        let begun = self.ahead().remove(&id).filter(|ahead| ahead.conversion.has_begun());
        let destination = output.layer_destination().await?;
        let mut built = None;
        if let Some(conversion) = begun {
            match conversion.built(digest, total, flight, &task).await {
                Ok(layer) => built = Some(layer),
                Err(error) => {
                    tracing::warn!(%error, layer = %digest, "not converted ahead; its file is read now")
                }
            }
        }
        let ahead = built.is_some();
        let converted = match built {
            Some(built) => built.store(destination.as_ref()).await.map_err(LocalError::from),
            None => {
                let Ok(hasher) = Hasher::like(digest) else { return Ok(None) };
                let reader = BlobReader::new(file, None, hasher, stop.clone());
                match Conversion::start(output, reader).await?.built(digest, total, flight, &task).await {
                    Ok(built) => built.store(destination.as_ref()).await.map_err(LocalError::from),
                    Err(error) => Err(error),
                }
            }
        };
        match converted {
            Ok(layer) => {
                tracing::info!(layer = %digest, ahead, "layer was read from buildkitd's content store");
                task.finish();
                Ok(Some(layer))
            }
            Err(LocalError::Convert(error @ ConvertError::Push(StoreError::Registry(_)))) => {
                let error = output.layer_error(digest, error);
                task.fail(&error.to_string());
                Err(error)
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot convert from buildkitd's content store");
                task.finish();
                Ok(None)
            }
        }
    }
}

impl Conversion {
    /// Begins to convert what `reader` reads.
    async fn start(output: &Output, reader: BlobReader) -> Result<Self, OutputError> {
        let position = reader.position();
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        Ok(Self { conversion: output.convert_read(reader).await?, position })
    }

    /// Begins to convert what `reader` reads, of which it is not known whose it is.
    async fn start_ahead(
        output: &Output,
        reader: BlobReader,
        space: &Arc<SpoolSpace>,
    ) -> Result<Self, OutputError> {
        let position = reader.position();
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        Ok(Self { conversion: output.convert_ahead(reader, space).await?, position })
    }

    /// Waits for the layer, which has to be made of the blob `digest` of `total` bytes, and shows how far it is.
    async fn built(
        mut self,
        digest: &Digest,
        total: u64,
        flight: Option<&Flight>,
        task: &Task,
    ) -> Result<BuiltLayer<BufReader<BlobReader>>, LocalError> {
        let mut shown = 0;
        let built = self.conversion.built();
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
        let (found, size) = built.input().get_ref().content();
        if (&found, size) != (digest, total) {
            built.cancel().await;
            return Err(LocalError::Content { found, size });
        }
        Ok(built)
    }

    /// Nobody wants the layer: gives up what was made of it.
    async fn cancel(self) {
        if !self.conversion.has_begun() {
            return;
        }
        match self.conversion.built().await {
            Ok(built) => built.cancel().await,
            // What fails has given it up itself.
            Err(error) => tracing::debug!(%error, "conversion ahead ended"),
        }
    }
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
    if metadata.len() != total || total < SNIFF_BYTES as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut begin, 0)?;
    Ok((!is_document(&begin)).then(|| (file, FileId::of(&metadata))))
}

#[cfg(test)]
mod tests;
