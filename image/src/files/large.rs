//! Files that may be large: they are written as they come.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use registry::client::Client;

use super::{FilesError, layers, manifest, nydus};
use crate::destination::{DiskShare, DiskSpace, SpoolFolder};
use crate::location::Location;
use crate::platform::PlatformName;
use crate::source::Source;

/// A folder with large files of an image: gone with this, as the room that they take.
#[derive(Debug)]
pub struct LargeFiles {
    // Removed before its room is given back.
    folder: SpoolFolder,
    room: Arc<DiskShare>,
}

impl LargeFiles {
    /// A folder without any yet, in that of `space`.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub async fn new(space: &Arc<DiskSpace>) -> io::Result<Self> {
        let folder = SpoolFolder::new(space.dir()).await?;
        Ok(Self { folder, room: Arc::new(DiskShare::of(space)) })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Has those of the files `paths`, named from the root without a slash before, that the image at `location` for `platform` has. They are
    /// written as they come. None of them may be here yet; links are none of them.
    ///
    /// # Errors
    ///
    /// When the image cannot be read, or there is no room for them.
    pub async fn fetch(
        &self,
        location: &Location,
        client: &Client,
        platform: &PlatformName,
        paths: BTreeSet<Vec<u8>>,
    ) -> Result<(), FilesError> {
        let source = &Source::open(location, client).await?;
        let manifest = manifest(source, platform).await?;
        let large = Large::new(paths, self.path().to_owned(), Arc::clone(&self.room));
        match manifest.bootstrap() {
            Some(layer) => nydus::write(source, layer, large).await,
            None => layers::write(source, &manifest.layers, large).await,
        }
    }
}

/// The files that are wanted, and what of them is there.
pub(super) struct Large {
    /// By their paths from the root, without a slash before.
    paths: BTreeSet<Vec<u8>>,
    /// The directory that they are written to.
    to: PathBuf,
    /// What they take there.
    room: Arc<DiskShare>,
    /// Those that are there, with their sizes.
    there: BTreeMap<Vec<u8>, u64>,
}

impl Large {
    pub(super) fn new(paths: BTreeSet<Vec<u8>>, to: PathBuf, room: Arc<DiskShare>) -> Self {
        Self { paths, to, room, there: BTreeMap::new() }
    }

    pub(super) fn wants(&self, path: &[u8]) -> bool {
        self.paths.contains(path)
    }

    pub(super) fn paths(&self) -> Vec<Vec<u8>> {
        self.paths.iter().cloned().collect()
    }

    /// Begins a file of so many bytes, in place of what is there.
    pub(super) fn begin(&mut self, path: &[u8], size: u64) -> Result<Writing, FilesError> {
        self.remove(|other| other == path)?;
        self.room.take(size)?;
        let file = self.place(path);
        let failed = |error| FilesError::Io { path: file.clone(), error };
        fs::create_dir_all(file.parent().unwrap_or(&self.to)).map_err(failed)?;
        let opened = File::create_new(&file).map_err(failed)?;
        self.there.insert(path.to_vec(), size);
        Ok(Writing { file: opened, path: file, left: size })
    }

    /// Removes those that are there and fit.
    pub(super) fn remove(&mut self, fits: impl Fn(&Vec<u8>) -> bool) -> Result<(), FilesError> {
        let fitting: Vec<Vec<u8>> = self.there.keys().filter(|path| fits(path)).cloned().collect();
        for path in fitting {
            let file = self.place(&path);
            fs::remove_file(&file).map_err(|error| FilesError::Io { path: file, error })?;
            self.room.give_back(self.there.remove(&path).unwrap_or_default());
        }
        Ok(())
    }

    fn place(&self, path: &[u8]) -> PathBuf {
        self.to.join(OsStr::from_bytes(path))
    }
}

/// A file on its way to the disk.
pub(super) struct Writing {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Writing {
    /// Writes what comes next, up to the file's size.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.left -= length as u64;
        let written = self.file.write_all(&bytes[..length]);
        written.map_err(|error| FilesError::Io { path: self.path.clone(), error })
    }
}
