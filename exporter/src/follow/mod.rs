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
use std::sync::{Mutex, MutexGuard, PoisonError};

use registry::digest::{Digest, Hasher};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

pub(crate) use self::ahead::convert_ahead;
use self::reader::BlobReader;
use crate::build::{Output, OutputError};
use crate::intake::ingest::{SNIFF_BYTES, is_document, short};
use image::layer::{ConvertError, ConvertedLayer, ReadConversion};
use image::progress::Task;

/// Read from a file at once.
const READ_BYTES: usize = 1 << 20;

/// buildkitd's content store as one build sees it.
pub(crate) struct LocalStore {
    dir: PathBuf,
    /// Conversions of blobs that buildkitd has not announced yet.
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
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), ahead: Mutex::default() }
    }

    fn ahead(&self) -> MutexGuard<'_, HashMap<FileId, Conversion>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Converts the layer `digest` of `total` bytes, if its blob is here. `None` means that it has to come over the session:
    /// it is not here, is no layer, or is not what its name says.
    pub(crate) async fn convert(
        &self,
        output: &Output,
        digest: &Digest,
        total: u64,
        stop: &CancellationToken,
    ) -> Result<Option<ConvertedLayer>, OutputError> {
        let path = self.dir.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest());
        let (file, id) = match open_layer(&path, total) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot read buildkitd's content store");
                return Ok(None);
            }
        };
        let task = output.task(format!("converting {}", short(digest)), total);
        let begun = self.ahead().remove(&id);
        let ahead = begun.is_some();
        let conversion = match begun {
            Some(conversion) => conversion,
            None => {
                let Ok(hasher) = Hasher::like(digest) else { return Ok(None) };
                Conversion::start(output, BlobReader::new(file, None, hasher, stop.clone())).await?
            }
        };
        match conversion.finish(digest, total, &task).await {
            Ok(layer) => {
                tracing::info!(layer = %digest, ahead, "layer was read from buildkitd's content store");
                task.finish();
                Ok(Some(layer))
            }
            Err(LocalError::Convert(error @ ConvertError::Push(_))) => {
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

    /// Waits for the layer, which has to be made of the blob `digest` of `total` bytes, and shows how far it is.
    async fn finish(
        mut self,
        digest: &Digest,
        total: u64,
        task: &Task,
    ) -> Result<ConvertedLayer, LocalError> {
        let mut shown = 0;
        let built = self.conversion.built();
        tokio::pin!(built);
        let built = loop {
            tokio::select! {
                built = &mut built => break built?,
                Ok(()) = self.position.changed() => {
                    let position = *self.position.borrow_and_update();
                    task.advance(position - shown);
                    shown = position;
                }
            }
        };
        let (found, size) = built.input().get_ref().content();
        if (&found, size) != (digest, total) {
            built.cancel().await;
            return Err(LocalError::Content { found, size });
        }
        Ok(built.store().await?)
    }

    /// Nobody wants the layer: gives up what was sent of it.
    async fn cancel(self) {
        match self.conversion.built().await {
            Ok(built) => built.cancel().await,
            // What fails has given it up itself.
            Err(error) => tracing::debug!(%error, "conversion ahead ended"),
        }
    }
}

/// Opens the file of a layer; `None` if it is not there, or no layer of that size.
fn open_layer(path: &Path, total: u64) -> io::Result<Option<(File, FileId)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let mut begin = [0; SNIFF_BYTES];
    if metadata.len() != total || total < SNIFF_BYTES as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut begin, 0)?;
    Ok((!is_document(&begin)).then(|| (file, FileId::of(&metadata))))
}
