//! Where a package has its container images as RAFS from: from where they were saved, from the package that is there, or they are made.
//!
//! Layers that are converted have no size before they are. So they go to a directory first, `.NAME.LOCK.images` beside the file, where
//! `LOCK` is a digest of the lock: an interrupted package goes on with it. To a package in a directory they go at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use image::source::{Source, SourceError};
use registry::client::Client;
use registry::digest;

use super::{Contents, NotPackaged, PackageTarget, REGISTRY, destination, failed, folder};
use crate::package::{Package, PackageError};
use crate::save::layout::is_busy;
use crate::save::{self, Destination, Done, SaveError, SaveOptions};
use crate::saved::{SavedAt, SavedImages};

/// How many digits of the lock's digest are in the name.
const LOCK_DIGITS: usize = 16;

/// The container images as RAFS.
pub(super) struct Lazily {
    pub(super) images: SavedImages,
    /// Whether they were made for this package: then they were reported.
    pub(super) made: bool,
    /// The directory that they were made in, where it is not the package itself.
    folder: Option<PathBuf>,
}

impl Lazily {
    /// Finds them, or makes them and calls `done` for each image.
    pub(super) async fn of(
        contents: &Contents<'_>,
        client: &Client,
        target: &PackageTarget,
        before: Option<&Package>,
        options: &SaveOptions,
        done: &Done<'_>,
    ) -> Result<Self, NotPackaged> {
        if let Some(images) = contents.saved {
            images.expect(contents.lock).map_err(destination)?;
            return Ok(Self { images: images.clone(), made: false, folder: None });
        }
        if let Some(place) = before.filter(|it| it.lock() == Some(contents.lock)).and_then(Package::saved)
            && let Some(images) = SavedImages::find(&place, client).await.map_err(destination)?
        {
            return Ok(Self { images, made: false, folder: None });
        }
        let (package, folder) = match target {
            PackageTarget::Directory(path) => (path.clone(), None),
            PackageTarget::File(path) => {
                let folder = own_folder(path, &contents.lock.to_string())?;
                (folder.clone(), Some(folder))
            }
        };
        let options = SaveOptions { base: None, ..options.clone() };
        let to = Destination::Directory(package.join(REGISTRY));
        let digest = save::save(contents.lock, contents.root, client, &to, &options, done).await?;
        let digest =
            digest.ok_or_else(|| destination(SaveError::Internal("nothing names what was saved")))?;
        let place = SavedAt::Package { path: package, digest };
        let images = SavedImages::open(&place, client).await.map_err(destination)?;
        Ok(Self { images, made: true, folder })
    }

    /// What was made on this machine, and has blobs of images as they are too.
    pub(super) async fn source(&self, client: &Client) -> Result<Option<Source>, SourceError> {
        match self.folder {
            None => Ok(None),
            Some(_) => self.images.source(client).await.map(Some),
        }
    }

    /// Removes what was made for the package, which has all of it now.
    pub(super) fn remove(self) -> Result<(), PackageError> {
        self.folder.map_or(Ok(()), |folder| remove(&folder))
    }
}

/// The directory for the images of a lock, beside the file `target`. Those for other locks are removed.
fn own_folder(target: &Path, lock: &str) -> Result<PathBuf, PackageError> {
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (start, end) = (format!(".{name}."), ".images");
    let lock = digest::sha256(lock.as_bytes());
    let own = format!("{start}{}{end}", &lock.digest()[..LOCK_DIGITS]);
    let beside = folder(target);
    for entry in fs::read_dir(&beside).map_err(failed("list", &beside))? {
        let entry = entry.map_err(failed("list", &beside))?.file_name().to_string_lossy().into_owned();
        let lock = entry.strip_prefix(&start).and_then(|rest| rest.strip_suffix(end));
        let is_lock =
            |lock: &str| lock.len() == LOCK_DIGITS && lock.bytes().all(|byte| byte.is_ascii_hexdigit());
        if lock.is_some_and(is_lock) && entry != own {
            let other = beside.join(entry);
            if is_busy(&other.join(REGISTRY)) {
                return Err(PackageError::Busy(target.to_owned()));
            }
            remove(&other)?;
        }
    }
    Ok(beside.join(own))
}

fn remove(folder: &Path) -> Result<(), PackageError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", folder)(error)),
        _ => Ok(()),
    }
}
