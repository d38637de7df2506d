//! Layers that stay on this machine, as files, until it is known what becomes of them: made one, or shared.
//!
//! A [`Scratch`] keeps the layers of one image that is flattened, and is gone with it; all scratches of a process share the room of one
//! [`ScratchSpace`]. [`convert_to_file`] has one layer in a file that stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use registry::digest::{Digest, DigestAlgorithm};
use registry::reference::Reference;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, mpsc};

use super::bridge::InputReader;
use super::conversion::{ConvertError, ReadConversion};
use super::slot::Slot;
use crate::destination::{
    BlobWriter, Destination, DiskShare, DiskSpace, DiskUse, SpoolFolder, StoreError, Storing, failed,
};
use crate::document::Stored;
use crate::options::Recipe;
use crate::source::{BlobStream, SourceError};

/// Messages between a source and a builder.
const QUEUE: usize = 2;

/// What a [`ScratchSpace`] is for.
const FLATTENED: DiskUse = DiskUse {
    what: "layers that are flattened",
    setting: "exporter.flatten_bytes",
    of: "all builds",
    instead: "leave flatten out",
};

/// Room for layers that are to be flattened, of all images that a process makes.
#[derive(Debug)]
pub struct ScratchSpace(Arc<DiskSpace>);

/// Blobs of this machine that are gone with this: each a file under its digest.
#[derive(Debug)]
pub struct Scratch {
    // Removed before its room is given back.
    folder: SpoolFolder,
    room: Arc<DiskShare>,
}

/// A blob on its way to a file.
struct FileBlob {
    file: File,
    /// Its name until it is complete.
    name: tempfile::TempPath,
    size: u64,
    /// Which room it takes, if that is bounded.
    room: Option<DiskShare>,
    then: Then,
}

/// What a file is when it is complete.
enum Then {
    /// One of a scratch, named after its digest. Not synchronised: after a crash nobody looks for it.
    Scratch(PathBuf, Arc<DiskShare>),
    /// This one, which stays.
    Kept(PathBuf),
}

impl ScratchSpace {
    /// Room for `bytes` in the folder `dir`.
    pub fn new(dir: &Path, bytes: u64) -> Arc<Self> {
        Arc::new(Self(DiskSpace::new(dir, bytes, &FLATTENED)))
    }

    /// A scratch in a folder of its own.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub async fn begin(&self) -> Result<Scratch, StoreError> {
        let folder = SpoolFolder::new(self.0.dir()).await.map_err(failed("write to", self.0.dir()))?;
        Ok(Scratch { folder, room: Arc::new(DiskShare::of(&self.0)) })
    }
}

impl Scratch {
    /// The folder with the blobs.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Destination for Scratch {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        let then = Then::Scratch(self.folder().to_owned(), Arc::clone(&self.room));
        begin(self.folder().to_owned(), Some(DiskShare::of(self.room.space())), then)
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool> {
        ready(Ok(self.folder().join(digest.digest()).exists())).boxed()
    }

    /// Nobody finds anything here by a name.
    fn publish<'a>(&'a self, _names: &'a [Reference], _root: Option<&'a Stored>) -> Storing<'a, ()> {
        ready(Ok(())).boxed()
    }
}

/// A file, as the place of one blob.
#[derive(Debug)]
struct OneFile(PathBuf);

impl Destination for OneFile {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        let folder = self.0.parent().unwrap_or(Path::new("/")).to_owned();
        begin(folder, None, Then::Kept(self.0.clone()))
    }

    fn has_blob<'a>(&'a self, _digest: &'a Digest) -> Storing<'a, bool> {
        ready(Ok(false)).boxed()
    }

    fn publish<'a>(&'a self, _names: &'a [Reference], _root: Option<&'a Stored>) -> Storing<'a, ()> {
        ready(Ok(())).boxed()
    }
}

fn begin(folder: PathBuf, room: Option<DiskShare>, then: Then) -> Storing<'static, Box<dyn BlobWriter>> {
    async move {
        let within = folder.clone();
        let make = move || tempfile::Builder::new().suffix(".partial").tempfile_in(within);
        let file = tokio::task::spawn_blocking(make).await?;
        let (file, name) = file.map_err(failed("write to", &folder))?.into_parts();
        Ok(Box::new(FileBlob { file: File::from_std(file), name, size: 0, room, then })
            as Box<dyn BlobWriter>)
    }
    .boxed()
}

impl BlobWriter for FileBlob {
    fn write(&mut self, data: Bytes) -> Storing<'_, ()> {
        async move {
            let bytes = data.len() as u64;
            if let Some(room) = &self.room {
                room.take(bytes)?;
            }
            self.size += bytes;
            self.file.write_all(&data).await.map_err(failed("write to", &self.name))
        }
        .boxed()
    }

    fn finish<'a>(mut self: Box<Self>, digest: &'a Digest) -> Storing<'a, u64> {
        async move {
            self.file.flush().await.map_err(failed("write to", &self.name))?;
            let target = match &self.then {
                // Not brought to the disk: what is in the scratch folder is for this process alone.
                Then::Scratch(folder, _) => folder.join(digest.digest()),
                Then::Kept(path) => {
                    self.file.sync_all().await.map_err(failed("write to", &self.name))?;
                    path.clone()
                }
            };
            let Self { name, size, room, then, .. } = *self;
            let kept = name.persist(&target).map_err(|error| error.error);
            kept.map_err(failed("rename a blob to", &target))?;
            if let (Some(room), Then::Scratch(_, scratch)) = (room, &then) {
                room.leave_to(scratch);
            }
            Ok(size)
        }
        .boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

/// Why a layer was not converted to a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It cannot be converted, or the file not be written.
    #[error("{place}: {}", crate::describe(error.as_ref()))]
    Convert {
        /// The layer.
        place: String,
        /// Why.
        error: Box<ConvertError>,
    },
    /// What it holds is not what its image's config says.
    #[error("{place} unpacks to {found}: its image's config says {expected}")]
    DiffId {
        /// The layer.
        place: String,
        /// The digest of its tar.
        found: Digest,
        /// The digest that the config says.
        expected: Digest,
    },
    /// Nobody can tell what it holds.
    #[error(
        "{place} is not compressed and has no digest by sha256: it cannot be held against the diff id in its image's config"
    )]
    NoDiffId {
        /// The layer.
        place: String,
    },
}

/// Converts the layer `source` that `blob` gives, whose tar has the digest `diff_id`, and writes its blob stream to the file `path`,
/// which gets its name when all of it is on the disk and it is known to be this layer. That takes `slot`, except while `blob` stands still.
///
/// # Errors
///
/// When it cannot be read, converted or written, or is another one.
pub async fn convert_to_file(
    blob: BlobStream,
    source: &Digest,
    diff_id: &Digest,
    recipe: &Arc<Recipe>,
    path: &Path,
    mut slot: Slot,
) -> Result<(), FileError> {
    let place = blob.place().to_owned();
    let failed = |error| FileError::Convert { place: place.clone(), error: Box::new(error) };
    let destination: Arc<dyn Destination> = Arc::new(OneFile(path.to_owned()));
    // The slot that others wait for is held here, where it shows that nothing comes.
    let slots = Arc::new(Semaphore::new(1));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let input = InputReader::new(receiver);
    let conversion = ReadConversion::start(Arc::clone(recipe), slots, Arc::clone(&destination), input);
    let (fed, built) = tokio::join!(feed(blob, sender, &mut slot), conversion.built());
    // What the builder says of input that broke off follows from it.
    fed?;
    let built = built.map_err(failed)?;
    // What was not compressed has its digest by itself.
    let is_sha256 = *source.algorithm() == DigestAlgorithm::Sha256;
    let found = built.diff_id().or(is_sha256.then_some(source)).cloned();
    match found {
        Some(found) if found == *diff_id => {
            built.store(destination.as_ref()).await.map_err(failed)?;
            return Ok(());
        }
        _ => built.cancel().await,
    }
    Err(match found {
        Some(found) => FileError::DiffId { place, found, expected: diff_id.clone() },
        None => FileError::NoDiffId { place },
    })
}

async fn feed(mut blob: BlobStream, to: mpsc::Sender<Bytes>, slot: &mut Slot) -> Result<(), SourceError> {
    while let Some(piece) = slot.lend(blob.next()).await? {
        // Empty would be the end. Where nobody takes it any more, the builder has failed and says why.
        if !piece.is_empty() && to.send(piece).await.is_err() {
            return Ok(());
        }
    }
    // Here the content has been found to have the layer's digest.
    let _ = to.send(Bytes::new()).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use registry::digest::sha256;

    use super::*;

    async fn write(scratch: &Scratch, content: &'static [u8]) -> Result<u64, StoreError> {
        let mut writer = scratch.begin().await?;
        writer.write(Bytes::from_static(content)).await?;
        writer.finish(&sha256(content)).await
    }

    #[tokio::test]
    async fn scratches_share_their_room_and_give_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let space = ScratchSpace::new(dir.path(), 10);
        let (one, other) = (space.begin().await.unwrap(), space.begin().await.unwrap());
        write(&one, b"123456").await.unwrap();
        let error = write(&other, b"12345").await.unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { limit: 10, .. }), "{error}");
        assert!(error.to_string().contains("flatten_bytes"), "{error}");
        // What was refused takes no room, and what one has the other has not.
        write(&other, b"1234").await.unwrap();
        assert!(one.has_blob(&sha256(b"123456")).await.unwrap());
        assert!(!other.has_blob(&sha256(b"123456")).await.unwrap());
        drop(one);
        write(&other, b"abcdef").await.unwrap();
        assert!(write(&other, b"x").await.is_err());
        drop(other);
        assert_eq!(space.0.left(), 10);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
