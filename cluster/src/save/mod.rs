//! The images of a lock, brought to where a cluster finds them: as RAFS with shared chunks, or as they are, each blob once.
//!
//! | file | does |
//! |---|---|
//! | `error` | why something is not saved |
//! | `options` | where to, and how |
//! | `target` | where blobs and documents go |
//! | `plan` | which documents and blobs an image of the lock is made of |
//! | `transfer` | blobs on their way as they are: several at once, none twice |
//! | `rafs` | images as RAFS |
//! | `layout` | to a directory, in the storage layout of CNCF distribution |
//! | `repository` | to one repository of a registry |
//! | `set` | the index that names all of them |
//!
//! What is there already is not fetched, so an interrupted save goes on where it was, and a second one fetches what changed. An
//! image gets its name when all of it is there. What is saved is read by [`crate::saved`].

mod error;
pub(crate) mod layout;
mod options;
pub(crate) mod plan;
mod rafs;
mod repository;
pub(crate) mod set;
mod target;
mod transfer;

use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use image::location::Location;
use image::options::{Options, Recipe};
use image::platform::PlatformName;
use image::source::Source;
use registry::client::Client;
use registry::{Digest, Reference};

use crate::lock::{self, Lock, Locked};
use crate::saved::{SavedAt, SavedImages, Table};

pub use error::{Failed, NotSaved, SaveError};
pub use layout::LayoutError;
pub use options::{COMPRESSION_LEVEL, Destination, Forms, SaveOptions};
pub use rafs::LayerSpace;
pub(crate) use target::Target;

use plan::Plan;
use rafs::{Known, NydusImage, Rafs, Spool};
use transfer::Transfers;

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

/// Who is told of images.
pub type Done<'a> = dyn Fn(&Report) + Send + Sync + 'a;

/// Saves all images of `lock`, made of the tree `root`, and calls `done` for each when it is saved. Returns the digest of what names all
/// of them, where something does.
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
    done: &Done<'_>,
) -> Result<Option<Digest>, NotSaved> {
    let (target, spool) = Target::open(lock, destination, client).map_err(NotSaved::from)?;
    let transfers = Transfers::new(target.clone(), options.blobs);
    let forms = options.forms;
    let one = |locked: &Locked| {
        let (locked, transfers, target) = (locked.clone(), &transfers, &target);
        let elsewhere = options.read_at.get(&locked.reference).cloned();
        let location = elsewhere.unwrap_or_else(|| lock::locked_source(&locked, root));
        async move {
            let saved = image(&locked, &location, client, transfers, target, forms).await;
            saved.map_err(|error| Failed { image: locked.reference.clone(), error })
        }
    };
    let jobs: Vec<_> = lock.images.iter().map(one).collect();
    let mut results = futures::stream::iter(jobs).buffer_unordered(options.images.max(1));
    let (mut saved, mut failed) = (Vec::new(), Vec::new());
    while let Some(result) = results.next().await {
        match result {
            Ok(image) => {
                // Of RAFS nothing has been said yet.
                if image.plan.rafs.is_empty() {
                    done(&image.report());
                }
                saved.push(image);
            }
            Err(error) => failed.push(error),
        }
    }
    drop(results);
    // In the order of their names, whichever was done first.
    saved.sort_by_cached_key(|image| image.locked.reference.to_string());
    let mut made = None;
    if forms.rafs {
        let work = Work { target: &target, destination, client, options, complete: failed.is_empty() };
        let work = work.rafs(spool, &mut saved, done);
        match work.await.map_err(NotSaved::from)? {
            Ok(rafs) => made = Some(rafs),
            Err(errors) => failed.extend(errors),
        }
    }
    failed.sort_by_cached_key(|failed| failed.image.to_string());
    if !failed.is_empty() {
        return Err(NotSaved::Images(failed));
    }
    let (table, spool) = made.unzip();
    let reports = target.name(destination, lock, table.as_ref(), &saved).await.map_err(NotSaved::from)?;
    // Where it has no name, the next save goes on with what is there.
    if let Some(spool) = spool {
        spool.remove().await.map_err(NotSaved::from)?;
    }
    Ok(reports)
}

/// What making nydus images needs to know.
struct Work<'a> {
    target: &'a Target,
    destination: &'a Destination,
    client: &'a Client,
    options: &'a SaveOptions,
    /// Whether no image has failed yet.
    complete: bool,
}

impl Work<'_> {
    /// The cluster image, if nodes find its blobs where the container images are.
    fn cluster_image(&self) -> impl Iterator<Item = &Reference> {
        let to = match self.destination {
            Destination::Repository(to) => Some(to.repository()),
            Destination::Directory(_) => None,
        };
        self.options.cluster_image.iter().filter(move |image| Some(image.repository()) == to)
    }

    /// Makes the nydus images of `saved`, and returns their table and what is of no more use once it has a name; or says which cannot be made.
    async fn rafs(
        &self,
        spool: std::path::PathBuf,
        saved: &mut [Saved],
        done: &Done<'_>,
    ) -> Result<Result<(Table, Spool), Vec<Failed>>, SaveError> {
        let store = self.target.store();
        // Chunks that are shared are stored one by one.
        let image = Options { batch_size: None, chunk_dict: None, ..self.options.image.clone() };
        let recipe = Arc::new(Recipe::new(image, None, Vec::new(), self.options.threads)?);
        let space = &self.options.layer_space;
        let (spool, interrupted) = match (self.options.keeps_layers, spool.parent()) {
            (false, Some(parent)) => (Spool::make(parent, space).await?, None),
            _ => Spool::open(spool, recipe.fingerprint(), space).await?,
        };
        let mut tables: Vec<Table> = interrupted.into_iter().collect();
        for place in before(self.destination, self.options)? {
            let found = SavedImages::find(&place, self.client).await?;
            tables.extend(found.and_then(|found| found.table().cloned()));
        }
        let mut known = Known::of(tables, &store, recipe.build()).await?;
        for image in self.cluster_image() {
            known.add_image(image, &platforms(saved), self.client, &store).await?;
        }
        let destination = self.target.destination();
        let work = Rafs { destination, store, spool, known, recipe, options: self.options.clone() };
        let converted = match work.convert(saved, self.complete, done).await {
            Ok(converted) => converted,
            Err(mut errors) => {
                if let Some(error) = errors.remove(&usize::MAX) {
                    return Err(error);
                }
                let name = |number: usize| saved.get(number).map(|image| image.locked.reference.clone());
                let failed = errors.into_iter().filter_map(|(number, error)| Some((name(number)?, error)));
                return Ok(Err(failed.map(|(image, error)| Failed { image, error }).collect()));
            }
        };
        for (image, nydus) in saved.iter_mut().zip(converted.nydus) {
            image.nydus = nydus;
        }
        Ok(Ok((converted.table, converted.spool)))
    }
}

/// The platforms for which there are nydus images of `saved`, each once.
fn platforms(saved: &[Saved]) -> Vec<PlatformName> {
    let mut platforms: Vec<PlatformName> = Vec::new();
    for rafs in saved.iter().flat_map(|image| &image.plan.rafs) {
        if !platforms.contains(&rafs.platform) {
            platforms.push(rafs.platform.clone());
        }
    }
    platforms
}

/// What earlier saves left at the destination.
fn before(destination: &Destination, options: &SaveOptions) -> Result<Vec<SavedAt>, SaveError> {
    let outside = |base: &Reference| SaveError::Base { base: base.clone() };
    match (destination, &options.base) {
        (Destination::Directory(path), None) => Ok(vec![SavedAt::Directory(path.clone())]),
        (Destination::Directory(_), Some(base)) => Err(outside(base)),
        (Destination::Repository(to), Some(base)) if base.repository() != to.repository() => {
            Err(outside(base))
        }
        (Destination::Repository(to), base) => {
            Ok([to].into_iter().chain(base).cloned().map(SavedAt::Repository).collect())
        }
    }
}

/// An image all of whose parts are at the destination.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    pub(crate) locked: Locked,
    pub(crate) source: Source,
    pub(crate) plan: Plan,
    /// Of its blobs.
    pub(crate) bytes: u64,
    /// Those of them that were fetched for it.
    pub(crate) fetched: u64,
    /// Its nydus images, those of `plan.rafs`.
    pub(crate) nydus: Vec<NydusImage>,
}

impl Saved {
    fn report(&self) -> Report {
        Report { image: self.locked.reference.clone(), bytes: self.bytes, fetched: self.fetched }
    }
}

/// Has those parts of an image at the target that are saved as they are.
async fn image(
    locked: &Locked,
    location: &Location,
    client: &Client,
    transfers: &Transfers,
    target: &Target,
    forms: Forms,
) -> Result<Saved, SaveError> {
    let source = lock::open(location, client).await?;
    let plan = Plan::of(locked, &source, forms).await?;
    let mut fetched = 0;
    for blob in transfers.all(&source, &plan.blobs).await {
        fetched += blob?;
    }
    if !plan.plain.is_empty() {
        match target {
            Target::Layout(layout) => layout.name(locked, &plan).await?,
            Target::Repository { client, repository } => {
                repository::push(client, repository, &plan).await?;
            }
        }
    }
    let bytes = plan.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size()));
    Ok(Saved { locked: locked.clone(), source, plan, bytes, fetched, nydus: Vec::new() })
}
