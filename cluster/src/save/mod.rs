//! The images of a lock, brought to where a cluster finds them: as they are, each blob once.
//!
//! | file | does |
//! |---|---|
//! | `plan` | which documents and blobs an image of the lock is made of |
//! | `transfer` | blobs on their way: several at once, none twice |
//! | `layout` | to a directory, in the storage layout of CNCF distribution |
//! | `repository` | to one repository of a registry, under an index that names all of them |
//!
//! What is there already is not fetched, so an interrupted save goes on where it was, and a second one fetches what changed. An
//! image gets its name when all of it is there.

pub(crate) mod layout;
pub(crate) mod plan;
mod repository;
mod transfer;

use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use image::source::{Source, SourceError};
use registry::client::Client;
use registry::{Digest, Reference};
use thiserror::Error;

use crate::lock::{self, Lock, Locked};

pub use layout::LayoutError;

use layout::Layout;
use plan::Plan;
use repository::Saved;
use transfer::Transfers;

/// Where images go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A directory that a registry can serve.
    Directory(std::path::PathBuf),
    /// One repository, under the tag of this reference.
    Repository(Reference),
}

/// How images are saved.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// How many images are looked at at once. Default: 8.
    pub images: usize,
    /// How many blobs are on their way at once. Default: 6.
    pub blobs: usize,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { images: 8, blobs: 6 }
    }
}

/// Why an image was not saved.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SaveError {
    /// It cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is not what the lock says.
    #[error("it is {found}: the lock says {locked}")]
    Moved {
        /// The digest that the lock says.
        locked: Digest,
        /// The digest that was found.
        found: Digest,
    },
    /// A document of it is none.
    #[error("manifest {digest}: {error}")]
    Document {
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// The lock names a platform's image that the index does not.
    #[error("the index does not name manifest {0}, which the lock does")]
    NotInIndex(Digest),
    /// Indexes lie in indexes without end.
    #[error("indexes are nested more than {0} deep")]
    TooDeep(usize),
    /// It cannot be written to the directory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// It cannot be pushed.
    #[error(transparent)]
    Push(#[from] registry::client::Error),
    /// A blob was to come with another image, and did not.
    #[error("blob {digest}: {reason}")]
    Blob {
        /// The blob.
        digest: Digest,
        /// Why it did not.
        reason: String,
    },
}

/// An image that could not be saved.
#[derive(Debug, Error)]
#[error("{image}: {error}")]
pub struct Failed {
    /// Its name.
    pub image: Reference,
    /// Why.
    pub error: SaveError,
}

/// Why not everything is saved.
#[derive(Debug, Error)]
pub enum NotSaved {
    /// It cannot go where it should.
    #[error(transparent)]
    Destination(SaveError),
    /// Some images could not be saved. The others are.
    #[error("{} images are not saved", .0.len())]
    Images(Vec<Failed>),
}

/// What is said of an image when it is saved.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its name.
    pub image: Reference,
    /// The bytes of its blobs, each counted once.
    pub bytes: u64,
    /// The bytes of those that were fetched for it.
    pub fetched: u64,
}

/// Saves all images of `lock`, made of the tree `root`, and calls `done` for each when it is saved.
///
/// # Errors
///
/// When something could not be saved. A repository gets its tag only if all is there.
pub async fn save(
    lock: &Lock,
    root: &Path,
    client: &Client,
    destination: &Destination,
    options: &SaveOptions,
    done: &(dyn Fn(&Report) + Send + Sync),
) -> Result<(), NotSaved> {
    let target = match destination {
        Destination::Directory(path) => {
            let layout = Layout::open(path, lock).map_err(|error| NotSaved::Destination(error.into()))?;
            Target::Layout(Arc::new(layout))
        }
        Destination::Repository(reference) => {
            Target::Repository { client: client.clone(), repository: reference.repository().clone() }
        }
    };
    let transfers = Transfers::new(target.clone(), options.blobs);
    let one = |locked: &Locked| {
        let (locked, transfers, target) = (locked.clone(), &transfers, &target);
        async move {
            let saved = image(&locked, root, client, transfers, target).await;
            match saved {
                Ok((saved, fetched)) => {
                    done(&Report { image: locked.reference.clone(), bytes: saved.bytes, fetched });
                    Ok(saved)
                }
                Err(error) => Err(Failed { image: locked.reference.clone(), error }),
            }
        }
    };
    let jobs: Vec<_> = lock.images.iter().map(one).collect();
    let results: Vec<_> = futures::stream::iter(jobs).buffer_unordered(options.images.max(1)).collect().await;
    let (mut saved, mut failed) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(image) => saved.push(image),
            Err(error) => failed.push(error),
        }
    }
    // In the order of their names, whichever was done first.
    saved.sort_by_cached_key(|image| image.locked.reference.to_string());
    failed.sort_by_cached_key(|failed| failed.image.to_string());
    if !failed.is_empty() {
        return Err(NotSaved::Images(failed));
    }
    if let Destination::Repository(reference) = destination {
        repository::name(client, reference, lock, &saved).await.map_err(NotSaved::Destination)?;
    }
    Ok(())
}

/// Where blobs and documents go.
#[derive(Clone)]
pub(crate) enum Target {
    Layout(Arc<Layout>),
    Repository { client: Client, repository: registry::Repository },
}

/// Saves one image; returns what it is made of, and the bytes that were fetched.
async fn image(
    locked: &Locked,
    root: &Path,
    client: &Client,
    transfers: &Transfers,
    target: &Target,
) -> Result<(Saved, u64), SaveError> {
    let pinned = Locked { reference: pinned(locked), ..locked.clone() };
    let source = Source::open(&lock::source(&pinned, root), client).await?;
    let plan = Plan::of(locked, &source).await?;
    let mut fetched = 0;
    for blob in transfers.all(&source, &plan.blobs).await {
        fetched += blob?;
    }
    match target {
        Target::Layout(layout) => layout.name(locked, &plan).await?,
        Target::Repository { client, repository } => repository::push(client, repository, &plan).await?,
    }
    let bytes = plan.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size()));
    Ok((Saved { locked: locked.clone(), plan, bytes }, fetched))
}

/// The reference by digest; an archive knows its image by name.
fn pinned(locked: &Locked) -> Reference {
    match locked.archive {
        None => locked.reference.at_digest(locked.digest.clone()),
        Some(_) => locked.reference.clone(),
    }
}
