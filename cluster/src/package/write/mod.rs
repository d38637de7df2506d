//! A package is written: all documents are read first, so that the place of every byte is known, then blobs come to their places,
//! several at once.
//!
//! - `lazily`: the container images as RAFS.
//! - `contents`: what is in it.
//! - `archive`: the tar on its way.
//! - `pending`: which images are not complete yet.

mod archive;
mod contents;
mod lazily;
mod pending;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::StreamExt as _;
use image::location::{InFile, Location};
use image::source::{PACKAGE_FILE, Source, SourceError};
use registry::client::{Client, Descriptor};
use thiserror::Error;

use self::archive::TarFile;
use self::contents::{Blob, Gathered};
use self::lazily::Lazily;
use self::pending::Pending;
use super::about::About;
use super::{ClusterImage, LOCK_FILE, Package, PackageError};
use crate::lock::{Lock, Locked};
use crate::save::layout::{self, RegistryFolder, no_conflict};
use crate::save::{Done, NotSaved, SaveError, SaveOptions};
use crate::saved::SavedImages;

/// The folder of a package that a registry serves.
const REGISTRY: &str = "registry";

/// What a package is to hold.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The cluster image.
    pub cluster: Option<&'a Locked>,
    /// Its container images.
    pub lock: &'a Lock,
    /// The tree that archives of the lock are in.
    pub root: &'a Path,
    /// What was saved as RAFS of them, to be taken as it is where the package has RAFS; else that is made.
    pub saved: Option<&'a SavedImages>,
}

/// Where a package goes.
#[derive(Clone, Debug)]
pub enum PackageTarget {
    /// One file.
    File(PathBuf),
    /// A directory.
    Directory(PathBuf),
}

/// Why there is no package.
#[derive(Debug, Error)]
pub enum NotPackaged {
    /// It cannot be written.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// Not all of it could be fetched.
    #[error(transparent)]
    Images(#[from] NotSaved),
}

/// Writes a package, and calls `done` for each image that is in it. What the target, or an interrupted one, has already is not
/// fetched again. The package is there when all of it is.
///
/// # Errors
///
/// When something is missing.
pub async fn write(
    contents: &Contents<'_>,
    client: &Client,
    target: &PackageTarget,
    options: &SaveOptions,
    done: &Done<'_>,
) -> Result<(), NotPackaged> {
    let all = contents.all();
    no_conflict(&all).map_err(destination)?;
    let before = before(target, client).await?;
    let lazily = match options.forms.rafs && !contents.lock.images.is_empty() {
        true => Some(Lazily::of(contents, client, target, before.as_ref(), options, done).await?),
        false => None,
    };
    let mut sources = Vec::new();
    if let Some(package) = &before {
        sources.extend(any_source(package, client).await.map_err(destination)?);
    }
    if let Some(lazily) = &lazily {
        sources.extend(lazily.source(client).await.map_err(destination)?);
    }
    let (plain, at_once) = (options.forms.plain || !options.forms.rafs, options.images);
    let gathered = Gathered::of(contents, plain, lazily.as_ref(), client, at_once).await?;
    let head = [
        (PACKAGE_FILE.to_owned(), contents.about(lazily.as_ref()).text().into()),
        (LOCK_FILE.to_owned(), contents.lock.to_string().into()),
    ];
    let writing = match target {
        PackageTarget::File(path) => Writing::Tar(TarFile::open(path, &head, &gathered)?),
        PackageTarget::Directory(path) => {
            Writing::Directory(path, RegistryFolder::open(&path.join(REGISTRY), &all).map_err(destination)?)
        }
    };
    bring_all(&writing, &gathered, &sources, options.blobs, done).await?;
    match writing {
        Writing::Tar(tar) => tar.finish().await?,
        Writing::Directory(path, _) => finish(path, &gathered, contents.lock, &head).await?,
    }
    lazily.map_or(Ok(()), Lazily::remove).map_err(Into::into)
}

impl Contents<'_> {
    /// All images, the cluster image first.
    fn all(&self) -> Lock {
        let images = self.cluster.into_iter().chain(&self.lock.images).cloned().collect();
        Lock { platforms: self.lock.platforms.clone(), images }
    }

    fn about(&self, lazily: Option<&Lazily>) -> About {
        let image = self.cluster.map(|locked| {
            let mut platforms: Vec<String> = locked
                .platforms
                .iter()
                .filter(|image| !image.platform.is_unknown())
                .map(|image| image.platform.to_string())
                .collect();
            platforms.dedup();
            ClusterImage {
                reference: locked.reference.to_string(),
                repository: locked.reference.repository().name().to_owned(),
                tag: locked.reference.tag().map(str::to_owned),
                digest: locked.digest.clone(),
                platforms,
            }
        });
        let images = lazily.map(|lazily| lazily.images.digest().clone());
        About::new(image, &self.lock.to_string(), images)
    }
}

/// Whether the directory is empty, a package, or one that was interrupted.
fn is_ours(path: &Path) -> bool {
    let Ok(mut entries) = std::fs::read_dir(path) else { return !path.exists() };
    let known = entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == REGISTRY));
    known || Package::is_directory(path)
}

/// The package that is at the target already, whose blobs need not be fetched again: of a directory they are in place.
async fn before(target: &PackageTarget, client: &Client) -> Result<Option<Package>, PackageError> {
    let path = match target {
        PackageTarget::Directory(path) if !is_ours(path) => return Err(PackageError::Occupied(path.clone())),
        PackageTarget::File(path) if path.exists() => path,
        _ => return Ok(None),
    };
    let (owned, spool) = (path.to_owned(), client.config().upload.spool_dir.clone());
    let opened = tokio::task::spawn_blocking(move || Package::open(&owned, &spool)).await;
    match opened {
        Ok(Ok(package)) if package.about().is_some() && path.is_file() => Ok(Some(package)),
        _ => Err(PackageError::Occupied(path.to_owned())),
    }
}

/// All blobs of a package, by any of its images.
async fn any_source(package: &Package, client: &Client) -> Result<Option<Source>, SourceError> {
    let Some((repository, tag)) = package.images().names()?.into_iter().next() else { return Ok(None) };
    let place = InFile { path: package.path().to_owned(), image: Some(format!("{repository}:{tag}")) };
    Source::open(&Location::Package(place), client).await.map(Some)
}

/// A package on its way.
enum Writing<'a> {
    Tar(TarFile),
    Directory(&'a Path, RegistryFolder),
}

impl Writing<'_> {
    /// Has the blob at its place; returns the bytes that were fetched. They come from one of `local` if one has it.
    async fn bring(&self, blob: &Blob, local: &[Source]) -> Result<u64, SaveError> {
        let Self::Tar(tar) = self else { return self.bring_from(&blob.source, &blob.descriptor).await };
        if tar.has(blob.descriptor.digest())? {
            return Ok(0);
        }
        for source in local.iter().filter(|source| source.blob_file(blob.descriptor.digest()).is_ok()) {
            if self.bring_from(source, &blob.descriptor).await.is_ok() {
                return Ok(0);
            }
        }
        let brought = self.bring_from(&blob.source, &blob.descriptor).await?;
        // What lies on this machine was not fetched.
        Ok(if blob.source.repository().is_some() { brought } else { 0 })
    }

    async fn bring_from(&self, source: &Source, blob: &Descriptor) -> Result<u64, SaveError> {
        match self {
            Self::Tar(tar) => tar.bring(source, blob).await,
            Self::Directory(_, layout) => layout.bring(source, blob).await,
        }
    }
}

/// Brings all blobs, `at_once` at once.
async fn bring_all(
    writing: &Writing<'_>,
    gathered: &Gathered,
    local: &[Source],
    at_once: usize,
    done: &Done<'_>,
) -> Result<(), NotSaved> {
    let mut pending = Pending::new(gathered, done);
    let one = |blob: &Blob| {
        let blob = blob.clone();
        async move {
            let brought = writing.bring(&blob, local).await;
            (blob, brought)
        }
    };
    let blobs: Vec<_> = gathered.blobs.values().map(one).collect();
    let mut blobs = futures::stream::iter(blobs).buffer_unordered(at_once.max(1));
    while let Some((blob, brought)) = blobs.next().await {
        pending.blob(&blob, brought);
    }
    pending.ended()
}

/// Makes the blobs in the directory `path` known, and says what it is.
async fn finish(
    path: &Path,
    gathered: &Gathered,
    lock: &Lock,
    head: &[(String, Bytes)],
) -> Result<(), NotPackaged> {
    let (folder, files) = (path.to_owned(), gathered.files.clone());
    // In the order of their names: documents before links to them, and tags last.
    let write = move || files.iter().try_for_each(|(name, file)| layout::write(&folder.join(name), file));
    tokio::task::spawn_blocking(write).await.map_err(destination)?.map_err(destination)?;
    lock.write(&path.join(LOCK_FILE)).map_err(PackageError::from)?;
    for (name, content) in head.iter().filter(|(name, _)| name == PACKAGE_FILE) {
        replace(&path.join(name), content)?;
    }
    Ok(())
}

/// Writes a small file, whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), PackageError> {
    let write = || {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder(path))?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder(path))?.sync_all()
    };
    write().map_err(failed("write", path))
}

fn folder(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PackageError {
    let path = path.to_owned();
    move |error| PackageError::Io { doing, path, error }
}

fn destination(error: impl Into<SaveError>) -> NotSaved {
    NotSaved::from(error.into())
}
