//! Images of packages and other files, to a registry of one's own.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use image::copy::{CopiedImage, copy_image};
use image::destination::{Destination as _, InRegistry};
use image::location::{InFile, Location};
use image::source::{Source, StoredImages};
use indicatif::HumanBytes;
use registry::client::{Client, PlacedBlobs};
use registry::{Digest, Reference, Repository};

use crate::stdout::note;

/// Copies the image at `from` to the name `to`.
pub(super) async fn copy(client: &Client, from: &Location, to: &Reference) -> anyhow::Result<()> {
    let copied = copied(client, from, to.repository(), Some(to), &PlacedBlobs::default()).await?;
    said(&from.to_string(), &to.to_string(), &copied);
    Ok(())
}

/// Copies all images of a package to `to` (`HOST[:PORT]` or `HOST[:PORT]/FOLDER`), under the names that they have in it. A blob that several of them have
/// is sent once.
pub(super) async fn sync(client: &Client, path: &Path, to: &str, jobs: usize) -> anyhow::Result<()> {
    let (opened, spool) = (path.to_owned(), client.config().upload.spool_dir.clone());
    let images = tokio::task::spawn_blocking(move || StoredImages::open(&opened, &spool)).await??;
    let repositories = images.layout().repositories()?;
    ensure!(!repositories.is_empty(), "{} has no images", path.display());
    let placed = PlacedBlobs::default();
    let one = |repository: String| {
        let job = SyncJob { client, path, images: &images, placed: &placed };
        async move {
            let target = Repository::parse(&format!("{to}/{repository}"))?;
            Ok::<_, anyhow::Error>(job.all_of(&repository, &target).await)
        }
    };
    let jobs: Vec<_> = futures::stream::iter(repositories.into_iter().map(one).collect::<Vec<_>>())
        .buffer_unordered(jobs.max(1))
        .collect()
        .await;
    let (mut count, mut bytes, mut failed) = (0, 0, Vec::new());
    for job in jobs {
        let job = job?;
        count += job.count;
        bytes += job.bytes;
        failed.extend(job.failed);
    }
    note(&format!("{count} images, {} sent", HumanBytes(bytes)));
    ensure!(failed.is_empty(), "{} of {count} images were not copied: {}", failed.len(), failed.join(", "));
    Ok(())
}

/// What became of a repository.
#[derive(Default)]
struct Outcome {
    count: usize,
    bytes: u64,
    failed: Vec<String>,
}

/// What copies of a package's repositories have in common.
struct SyncJob<'a> {
    client: &'a Client,
    path: &'a Path,
    images: &'a StoredImages,
    placed: &'a PlacedBlobs,
}

impl SyncJob<'_> {
    /// Copies what has a tag, and then what has none: images that are named by digest.
    async fn all_of(&self, repository: &str, target: &Repository) -> Outcome {
        let mut outcome = Outcome::default();
        let mut known: HashSet<Digest> = HashSet::new();
        let layout = self.images.layout();
        let (tags, revisions) = match (layout.tags(repository), layout.revisions(repository)) {
            (Ok(tags), Ok(revisions)) => (tags, revisions),
            (Err(error), _) | (_, Err(error)) => {
                note(&format!("{repository}: failed: {error}"));
                return Outcome { count: 1, failed: vec![repository.to_owned()], ..outcome };
            }
        };
        // Tags first: what is copied with them needs no copy by its digest.
        let mut wanted: Vec<(String, Option<Digest>)> =
            tags.iter().map(|tag| (format!("{repository}:{tag}"), None)).collect();
        wanted.extend(revisions.into_iter().map(|digest| (format!("{repository}@{digest}"), Some(digest))));
        for (name, digest) in wanted {
            if digest.is_some_and(|digest| known.contains(&digest)) {
                continue;
            }
            outcome.count += 1;
            let from = Location::Package(InFile { path: self.path.to_owned(), image: Some(name.clone()) });
            let copied = async {
                let tag = name
                    .strip_prefix(&format!("{repository}:"))
                    .map(|tag| target.with_tag(tag))
                    .transpose()?;
                copied(self.client, &from, target, tag.as_ref(), self.placed).await
            };
            match copied.await {
                Ok(copied) => {
                    said(&name, &target.to_string(), &copied);
                    outcome.bytes += copied.bytes;
                    known.extend(copied.known);
                }
                Err(error) => {
                    note(&format!("{name}: failed: {error:#}"));
                    outcome.failed.push(name);
                }
            }
        }
        outcome
    }
}

async fn copied(
    client: &Client,
    from: &Location,
    repository: &Repository,
    name: Option<&Reference>,
    placed: &PlacedBlobs,
) -> anyhow::Result<CopiedImage> {
    let source = Source::open(from, client).await?;
    let destination = InRegistry::new(client.clone(), repository.clone());
    let (root, copied) = copy_image(&source, &destination, placed).await.with_context(|| from.to_string())?;
    if let Some(name) = name {
        destination.publish(std::slice::from_ref(name), Some(&root)).await?;
    }
    Ok(copied)
}

/// A line an image.
fn said(from: &str, to: &str, copied: &CopiedImage) {
    let CopiedImage { blobs, bytes, mounted, left_out, .. } = copied;
    note(&format!("{from} -> {to}: {blobs} blobs sent ({}), {mounted} mounted", HumanBytes(*bytes)));
    if !left_out.is_empty() {
        let count = left_out.len();
        note(&format!(
            "warning: {from}: {count} manifests of its index are not here: it is put without them"
        ));
    }
}
