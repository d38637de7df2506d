//! Where layers stay as they were converted until it is known what they share: one file each, under the digests of the layer and
//! of its tar. A save that was interrupted finds there what it had, and beside them the table of what it had stored already, unless the
//! folder was its own alone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::destination::SpoolFolder;
use image::layer::{Slot, convert_to_file};
use image::options::{Fingerprint, Recipe};
use image::source::BlobStream;
use rafs::share::SharedSource;
use registry::Digest;

use super::room::{LayerShare, LayerSpace};
use crate::save::SaveError;
use crate::saved::Table;

/// The table of what is stored already.
const TABLE: &str = "table";

/// The folder, ours alone while this lives.
pub(crate) struct Spool {
    dir: PathBuf,
    // Gone before its room is given back.
    held: Arc<Held>,
    /// What the layers take of the room that there is.
    share: Arc<LayerShare>,
}

/// What has the folder be ours.
enum Held {
    /// It stays, for the next save to the same place.
    Lock(#[expect(dead_code, reason = "held")] File),
    /// It goes with this.
    Folder(#[expect(dead_code, reason = "held")] SpoolFolder),
}

/// A converted layer.
#[derive(Debug)]
pub(crate) struct SpooledLayer {
    pub(crate) file: File,
    pub(crate) size: u64,
    path: PathBuf,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> SaveError {
    let path = path.to_owned();
    move |error| SaveError::Spool { path: path.clone(), error }
}

impl Spool {
    /// Opens or makes the folder `dir`, for layers that are converted with options of this fingerprint; what an interrupted save had stored
    /// comes with it.
    pub(crate) async fn open(
        dir: PathBuf,
        options: &Fingerprint,
        space: &Arc<LayerSpace>,
    ) -> Result<(Self, Option<Table>), SaveError> {
        let (path, options) = (dir.clone(), options.clone());
        let open = move || {
            let lock = lock(&path)?;
            tidy(&path, &options)?;
            Ok::<_, SaveError>((lock, table(&path)))
        };
        let (lock, table) = tokio::task::spawn_blocking(open).await??;
        let (held, share) = (Arc::new(Held::Lock(lock)), Arc::new(LayerShare::of(space)));
        Ok((Self { dir, held, share }, table))
    }

    /// Makes a folder in `parent` that is gone with this.
    pub(crate) async fn make(parent: &Path, space: &Arc<LayerSpace>) -> Result<Self, SaveError> {
        let folder = SpoolFolder::new(parent).await.map_err(failed(parent))?;
        let (dir, share) = (folder.path().to_owned(), Arc::new(LayerShare::of(space)));
        Ok(Self { dir, held: Arc::new(Held::Folder(folder)), share })
    }

    /// Takes room for a layer of so many bytes, if it fits or is the `first` that waits. Returns whether it is taken.
    pub(crate) fn take(&self, bytes: u64, first: bool) -> bool {
        self.share.take(bytes, first)
    }

    fn path(&self, layer: &Digest, diff_id: &Digest) -> PathBuf {
        self.dir.join(format!("{}-{}", layer.digest(), diff_id.digest()))
    }

    /// Whether the layer is there.
    pub(crate) fn has(&self, layer: &Digest, diff_id: &Digest) -> bool {
        self.path(layer, diff_id).is_file()
    }

    /// Converts a layer, which takes `slot`.
    pub(crate) async fn convert(
        &self,
        layer: &Digest,
        diff_id: &Digest,
        blob: BlobStream,
        recipe: &Arc<Recipe>,
        slot: Slot,
    ) -> Result<(), SaveError> {
        Ok(convert_to_file(blob, layer, diff_id, recipe, &self.path(layer, diff_id), slot).await?)
    }

    /// Opens a layer that is there.
    pub(crate) fn layer(&self, layer: &Digest, diff_id: &Digest) -> Result<SpooledLayer, SaveError> {
        let path = self.path(layer, diff_id);
        let file = File::open(&path).map_err(failed(&path))?;
        let size = file.metadata().map_err(failed(&path))?.len();
        Ok(SpooledLayer { file, size, path })
    }

    /// Remembers what is stored, where another save may go on from it, and removes the layers that were needed for it.
    pub(crate) async fn stored(&self, table: &Table, layers: &[(Digest, Digest)]) -> Result<(), SaveError> {
        let (dir, held, share) = (self.dir.clone(), Arc::clone(&self.held), Arc::clone(&self.share));
        let text = matches!(*held, Held::Lock(_)).then(|| table.to_string());
        let paths: Vec<_> = layers.iter().map(|(layer, diff_id)| self.path(layer, diff_id)).collect();
        let remove = move || {
            if let Some(text) = text {
                write_table(&dir, &text)?;
            }
            for path in paths {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
            share.give_back();
            // Whoever waits may be gone by now: nobody else has the folder before this has ended.
            drop(held);
            Ok::<_, SaveError>(())
        };
        tokio::task::spawn_blocking(remove).await?
    }

    /// Removes all of it: everything has its place and its name.
    pub(crate) async fn remove(self) -> Result<(), SaveError> {
        let Self { dir, held, .. } = self;
        if let Held::Folder(_) = *held {
            return Ok(());
        }
        let remove = move || {
            let removed = fs::remove_dir_all(&dir).map_err(failed(&dir));
            drop(held);
            removed
        };
        tokio::task::spawn_blocking(remove).await?
    }
}

/// Makes the folder `dir`, where it is not there, and has it be ours alone.
fn lock(dir: &Path) -> Result<File, SaveError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
    let metadata = fs::symlink_metadata(dir).map_err(failed(dir))?;
    // It may be in a folder that everybody writes to.
    let mine = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
    if !mine || metadata.mode() & 0o022 != 0 {
        let reason = "expected a directory of this user that nobody else may write to";
        return Err(failed(dir)(io::Error::new(io::ErrorKind::PermissionDenied, reason)));
    }
    let lock = File::open(dir).map_err(failed(dir))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            let error = io::Error::new(io::ErrorKind::ResourceBusy, "another save uses it");
            Err(failed(dir)(error))
        }
        Err(fs::TryLockError::Error(error)) => Err(failed(dir)(error)),
    }
}

/// Removes what was not complete, and what was converted otherwise.
fn tidy(dir: &Path, options: &Fingerprint) -> Result<(), SaveError> {
    let path = dir.join("options");
    let same = fs::read_to_string(&path).is_ok_and(|found| found == options.as_str());
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let entry = entry.map_err(failed(dir))?.path();
        if !same || entry.extension().is_some_and(|extension| extension == "partial") {
            fs::remove_file(&entry).map_err(failed(&entry))?;
        }
    }
    if !same {
        fs::write(&path, options.as_str()).map_err(failed(&path))?;
    }
    Ok(())
}

/// What an interrupted save had stored.
fn table(dir: &Path) -> Option<Table> {
    let text = fs::read_to_string(dir.join(TABLE)).ok()?;
    Table::parse(&text).inspect_err(|error| tracing::warn!(%error, "table of an interrupted save")).ok()
}

fn write_table(dir: &Path, text: &str) -> Result<(), SaveError> {
    let (path, partial) = (dir.join(TABLE), dir.join("table.partial"));
    let write = || {
        let mut file = File::create(&partial)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &path)
    };
    write().map_err(failed(&path))
}

impl SharedSource for SpooledLayer {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
    }
}
