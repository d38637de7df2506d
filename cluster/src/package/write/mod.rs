//! A package is written: all documents are read first, so that the place of every byte is known, then blobs come to their places,
//! several at once.
//!
//! - `contents`: what is in it.
//! - `archive`: the tar on its way.

mod archive;
mod contents;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use futures::StreamExt as _;
use image::location::{InFile, Location};
use image::source::Source;
use registry::client::Client;
use thiserror::Error;

use self::archive::TarFile;
use self::contents::{Blob, Gathered};
use super::about::About;
use super::{ClusterImage, LOCK_FILE, Package, PackageError};
use crate::lock::{Lock, Locked};
use crate::save::layout::no_conflict;
use crate::save::{self, Destination, Failed, Forms, NotSaved, Report, SaveError, SaveOptions};
use image::source::PACKAGE_FILE;

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
    done: &(dyn Fn(&Report) + Send + Sync),
) -> Result<(), NotPackaged> {
    let all = contents.all();
    no_conflict(&all).map_err(|error| NotSaved::Destination(error.into()))?;
    match target {
        PackageTarget::Directory(path) => directory(contents, &all, client, path, options, done).await,
        PackageTarget::File(path) => file(contents, &all, client, path, options, done).await,
    }
}

impl Contents<'_> {
    /// All images, the cluster image first.
    fn all(&self) -> Lock {
        let images = self.cluster.into_iter().chain(&self.lock.images).cloned().collect();
        Lock { platforms: self.lock.platforms.clone(), images }
    }

    fn about(&self) -> About {
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
        About::new(image, &self.lock.to_string())
    }
}

async fn directory(
    contents: &Contents<'_>,
    all: &Lock,
    client: &Client,
    path: &Path,
    options: &SaveOptions,
    done: &(dyn Fn(&Report) + Send + Sync),
) -> Result<(), NotPackaged> {
    if !is_ours(path) {
        return Err(PackageError::Occupied(path.to_owned()).into());
    }
    let destination = Destination::Directory(path.join(REGISTRY));
    let options = SaveOptions { forms: Forms::PLAIN, ..options.clone() };
    save::save(all, contents.root, client, &destination, &options, done).await?;
    contents.lock.write(&path.join(LOCK_FILE)).map_err(PackageError::from)?;
    archive::replace(&path.join(PACKAGE_FILE), contents.about().text().as_bytes())?;
    Ok(())
}

/// Whether the directory is empty, a package, or one that was interrupted.
fn is_ours(path: &Path) -> bool {
    let Ok(mut entries) = std::fs::read_dir(path) else { return !path.exists() };
    let known = entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == REGISTRY));
    known || Package::is_directory(path)
}

async fn file(
    contents: &Contents<'_>,
    all: &Lock,
    client: &Client,
    path: &Path,
    options: &SaveOptions,
    done: &(dyn Fn(&Report) + Send + Sync),
) -> Result<(), NotPackaged> {
    let before = before(path, client).await?;
    let gathered = Gathered::of(all, contents.root, client, options.images).await?;
    let head = [
        (PACKAGE_FILE.to_owned(), contents.about().text().into()),
        (LOCK_FILE.to_owned(), contents.lock.to_string().into()),
    ];
    let archive = TarFile::open(path, &head, &gathered)?;
    let pending = Mutex::new(Pending::new(&gathered, done));
    let one = |blob: &Blob| {
        let (archive, blob, before) = (&archive, blob.clone(), before.as_ref());
        async move {
            let brought = bring(archive, &blob, before).await;
            (blob, brought)
        }
    };
    let blobs: Vec<_> = gathered.blobs.values().map(one).collect();
    let mut blobs = futures::stream::iter(blobs).buffer_unordered(options.blobs.max(1));
    while let Some((blob, brought)) = blobs.next().await {
        pending.lock().unwrap_or_else(PoisonError::into_inner).blob(&blob, brought);
    }
    let failed = pending.into_inner().unwrap_or_else(PoisonError::into_inner).failed;
    if !failed.is_empty() {
        return Err(NotSaved::Images(failed).into());
    }
    drop(blobs);
    archive.finish().await?;
    Ok(())
}

/// The package that is at `path` already, whose blobs need not be fetched again.
async fn before(path: &Path, client: &Client) -> Result<Option<(Package, Source)>, PackageError> {
    if !path.exists() {
        return Ok(None);
    }
    let (owned, spool) = (path.to_owned(), client.config().upload.spool_dir.clone());
    let opened = tokio::task::spawn_blocking(move || Package::open(&owned, &spool)).await;
    let package = match opened {
        Ok(Ok(package)) if package.about().is_some() && path.is_file() => package,
        _ => return Err(PackageError::Occupied(path.to_owned())),
    };
    let Some((repository, tag)) = package.images().names()?.into_iter().next() else { return Ok(None) };
    let place = InFile { path: path.to_owned(), image: Some(format!("{repository}:{tag}")) };
    let source = Source::open(&Location::Package(place), client).await?;
    Ok(Some((package, source)))
}

/// Has the blob at its place; returns the bytes that were fetched.
async fn bring(archive: &TarFile, blob: &Blob, before: Option<&(Package, Source)>) -> Result<u64, SaveError> {
    let digest = blob.descriptor.digest();
    if archive.has(digest)? {
        return Ok(0);
    }
    if let Some((package, source)) = before
        && package.blob(digest).is_ok_and(|part| part.is_some())
        && archive.bring(source, &blob.descriptor).await.is_ok()
    {
        return Ok(0);
    }
    archive.bring(&blob.source, &blob.descriptor).await
}

/// Which images are not complete yet.
struct Pending<'a> {
    images: Vec<(Report, usize)>,
    failed: Vec<Failed>,
    done: &'a (dyn Fn(&Report) + Send + Sync),
}

impl<'a> Pending<'a> {
    fn new(gathered: &Gathered, done: &'a (dyn Fn(&Report) + Send + Sync)) -> Self {
        let images = gathered.images.iter().map(|image| {
            let report = Report { image: image.reference.clone(), bytes: image.bytes, fetched: 0 };
            (report, image.blobs)
        });
        Self { images: images.collect(), failed: Vec::new(), done }
    }

    /// Notes what became of a blob: it was fetched for the first image that has it.
    fn blob(&mut self, blob: &Blob, brought: Result<u64, SaveError>) {
        let reason = brought.as_ref().err().map(ToString::to_string);
        let mut brought = Some(brought);
        for &number in &blob.images {
            let Some((report, left)) = self.images.get_mut(number) else { continue };
            match (brought.take(), &reason) {
                (Some(Err(error)), _) => self.failed.push(Failed { image: report.image.clone(), error }),
                (None, Some(reason)) => {
                    let error =
                        SaveError::Blob { digest: blob.descriptor.digest().clone(), reason: reason.clone() };
                    self.failed.push(Failed { image: report.image.clone(), error });
                }
                (fetched, _) => {
                    report.fetched += fetched.and_then(Result::ok).unwrap_or(0);
                    *left -= 1;
                    if *left == 0 {
                        (self.done)(report);
                    }
                }
            }
        }
    }
}
