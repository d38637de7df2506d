//! What `cluster save` brought for the images that are merged: the merged image has all of it, by what names it. No data moves where the
//! registry is the same one.
//!
//! ```text
//! image A ─> index A ┐                                              ┌─> manifests and blobs, as they are
//!                    ├─unite─> index, manifest of parts, lock, table ┤
//! image B ─> index B ┘                                              └─> under `TAG-images`, bound to the merged image
//! ```
//!
//! - `unite`: what names them.
//! - `table`: what nodes run of them.

mod table;
mod unite;

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use image::destination::{Destination, copy_blob};
use image::location::Location;
use image::source::Source;
use registry::client::{self, Client};
use registry::{Digest, Reference};

use super::{MergeInput, NotMerged};
use crate::package::Package;
use crate::saved::{Parts, SavedAt, SavedError, SavedImages, images_name};

pub(super) use unite::UnitedImages;

/// How many blobs are on their way at once, where they are not in the registry already.
const AT_ONCE: usize = 6;

/// A cluster image for which its container images were saved.
pub(super) struct FilledImage {
    /// The cluster image.
    name: String,
    saved: SavedImages,
    parts: Parts,
}

impl FilledImage {
    /// What was saved for the image of `input`, if something was.
    pub(super) async fn find(input: &MergeInput, client: &Client) -> Result<Option<Self>, NotMerged> {
        let broken = |error| NotMerged::Saved { image: input.name.clone(), error: Box::new(error) };
        let bound = input.bound()?;
        for place in places(input, &bound, client).await? {
            let found = match SavedImages::find(&place, client).await {
                // The cluster image came from a mirror, which does not have these. Its host may be one that is only a name.
                Err(SavedError::Registry(client::Error::Connection { .. })) if bound.is_empty() => None,
                found => found.map_err(broken)?,
            };
            let Some(saved) = found else { continue };
            return Self::of(&input.name, saved, client).await.map(Some);
        }
        match &input.location {
            Location::Registry(reference) if !bound.is_empty() => {
                Err(broken(SavedError::NotThere(format!("{}@{}", reference.repository(), listed(&bound)))))
            }
            _ => Ok(None),
        }
    }

    /// The image `name`, for which `saved` was saved.
    pub(super) async fn of(name: &str, saved: SavedImages, client: &Client) -> Result<Self, NotMerged> {
        let broken = |error| NotMerged::Saved { image: name.to_owned(), error: Box::new(error) };
        let parts = saved.parts(client).await.map_err(broken)?;
        Ok(Self { name: name.to_owned(), saved, parts })
    }

    /// The images that were saved.
    pub(super) fn saved(&self) -> &SavedImages {
        &self.saved
    }

    fn broken(&self, error: SavedError) -> NotMerged {
        NotMerged::Saved { image: self.name.clone(), error: Box::new(error) }
    }
}

/// Where the images of `input`, which is `bound` to these, may have been saved.
async fn places(input: &MergeInput, bound: &[Digest], client: &Client) -> Result<Vec<SavedAt>, NotMerged> {
    Ok(match &input.location {
        Location::Registry(reference) if bound.is_empty() => {
            let name = reference.digest().is_none().then(|| images_name(reference)).transpose();
            name.ok().flatten().map(SavedAt::Repository).into_iter().collect()
        }
        Location::Registry(reference) => {
            bound.iter().map(|digest| SavedAt::Repository(reference.at_digest(digest.clone()))).collect()
        }
        Location::Package(place) => {
            let (path, spool) = (place.path.clone(), client.config().upload.spool_dir.clone());
            let opening = tokio::task::spawn_blocking(move || Package::open(&path, &spool)).await;
            let package = opening.map_err(std::io::Error::other)?.map_err(Box::new)?;
            let is_bound = |digest: &Digest| bound.is_empty() || bound.contains(digest);
            let saved = package.saved();
            saved
                .filter(|place| matches!(place, SavedAt::Package { digest, .. } if is_bound(digest)))
                .into_iter()
                .collect()
        }
        _ => Vec::new(),
    })
}

impl UnitedImages {
    /// Has all of it in the repository of `to`, under the name that goes with that of the merged image; returns the digest to which that is
    /// to be bound.
    pub(super) async fn put(
        self,
        destination: &Arc<dyn Destination>,
        to: &Reference,
    ) -> Result<Digest, NotMerged> {
        let name = images_name(to).map_err(NotMerged::Tag)?;
        let copy = |(blob, source): (_, Source)| async move {
            copy_blob(&source, &blob, destination.as_ref())
                .await
                .map_err(|error| NotMerged::Copy(Box::new(error)))
        };
        let copies: Vec<_> = self.blobs.into_iter().map(copy).collect();
        futures::stream::iter(copies).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
        for content in self.made {
            destination.put_blob(content).await?;
        }
        // A registry takes a manifest once all that it names is there, and an index likewise.
        let put = |manifest: image::document::Stored| async move {
            destination.put_manifest(&manifest.media_type, manifest.content.clone()).await
        };
        let puts: Vec<_> = self.manifests.into_iter().map(put).collect();
        futures::stream::iter(puts).buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
        destination.publish(&[name], Some(&self.index)).await?;
        Ok(self.index.digest)
    }
}

fn listed(digests: &[Digest]) -> String {
    digests.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}
