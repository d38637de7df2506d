//! Where layers stay as they were converted until it is known what they share: one file each, under the digests of the layer and
//! of its tar. A save that was interrupted finds there what it had, and beside them the table of what it had stored already.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::layer::convert_to_file;
use image::options::{Fingerprint, Recipe};
use image::source::BlobStream;
use rafs::share::SharedSource;
use registry::Digest;

use crate::save::SaveError;
use crate::saved::Table;

/// The table of what is stored already.
const TABLE: &str = "table";

/// The folder, ours alone while this lives.
pub(crate) struct Spool {
    dir: PathBuf,
    _lock: File,
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
    /// Opens or makes the folder `dir`, for layers that are converted with options of this fingerprint.
    pub(crate) fn open(dir: PathBuf, options: &Fingerprint) -> Result<Self, SaveError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed(&dir))?;
        let metadata = fs::symlink_metadata(&dir).map_err(failed(&dir))?;
        // It may be in a folder that everybody writes to.
        let mine = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
        if !mine || metadata.mode() & 0o022 != 0 {
            let reason = "expected a directory of this user that nobody else may write to";
            return Err(failed(&dir)(io::Error::new(io::ErrorKind::PermissionDenied, reason)));
        }
        let lock = File::open(&dir).map_err(failed(&dir))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let error = io::Error::new(io::ErrorKind::ResourceBusy, "another save uses it");
                return Err(failed(&dir)(error));
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed(&dir)(error)),
        }
        let spool = Self { dir, _lock: lock };
        spool.tidy(options)?;
        Ok(spool)
    }

    /// Removes what was not complete, and what was converted otherwise.
    fn tidy(&self, options: &Fingerprint) -> Result<(), SaveError> {
        let path = self.dir.join("options");
        let same = fs::read_to_string(&path).is_ok_and(|found| found == options.as_str());
        for entry in fs::read_dir(&self.dir).map_err(failed(&self.dir))? {
            let entry = entry.map_err(failed(&self.dir))?.path();
            if !same || entry.extension().is_some_and(|extension| extension == "partial") {
                fs::remove_file(&entry).map_err(failed(&entry))?;
            }
        }
        if !same {
            fs::write(&path, options.as_str()).map_err(failed(&path))?;
        }
        Ok(())
    }

    fn path(&self, layer: &Digest, diff_id: &Digest) -> PathBuf {
        self.dir.join(format!("{}-{}", layer.digest(), diff_id.digest()))
    }

    /// Whether the layer is there.
    pub(crate) fn has(&self, layer: &Digest, diff_id: &Digest) -> bool {
        self.path(layer, diff_id).is_file()
    }

    /// Converts a layer.
    pub(crate) async fn convert(
        &self,
        layer: &Digest,
        diff_id: &Digest,
        blob: BlobStream,
        recipe: &Arc<Recipe>,
    ) -> Result<(), SaveError> {
        Ok(convert_to_file(blob, layer, diff_id, recipe, &self.path(layer, diff_id)).await?)
    }

    /// Opens a layer that is there.
    pub(crate) fn layer(&self, layer: &Digest, diff_id: &Digest) -> Result<SpooledLayer, SaveError> {
        let path = self.path(layer, diff_id);
        let file = File::open(&path).map_err(failed(&path))?;
        let size = file.metadata().map_err(failed(&path))?.len();
        Ok(SpooledLayer { file, size, path })
    }

    /// What an interrupted save had stored.
    pub(crate) fn table(&self) -> Option<Table> {
        let text = fs::read_to_string(self.dir.join(TABLE)).ok()?;
        Table::parse(&text).inspect_err(|error| tracing::warn!(%error, "table of an interrupted save")).ok()
    }

    /// Remembers what is stored, and removes the layers that were needed for it.
    pub(crate) fn stored(&self, table: &Table, layers: &[(Digest, Digest)]) -> Result<(), SaveError> {
        let (path, partial) = (self.dir.join(TABLE), self.dir.join("table.partial"));
        let write = || {
            let mut file = File::create(&partial)?;
            io::Write::write_all(&mut file, table.to_string().as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &path)
        };
        write().map_err(failed(&path))?;
        for (layer, diff_id) in layers {
            let path = self.path(layer, diff_id);
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        Ok(())
    }

    /// Removes all of it: everything has its place and its name.
    pub(crate) fn remove(self) -> Result<(), SaveError> {
        fs::remove_dir_all(&self.dir).map_err(failed(&self.dir))
    }
}

impl SharedSource for SpooledLayer {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
    }
}
