//! What a cluster image is made of, and how much of it its container images have in common.

mod sharing;

use std::collections::HashSet;

use image::document::{DEPTH_LIMIT, Parsed};
use image::source::{Source, SourceError};
use registry::Digest;
use registry::client::Descriptor;

pub use sharing::{ImageShare, Sharing};

/// The blobs of an image, each once: of its manifests in `wanted`, or of all that are there where that is `None`.
///
/// # Errors
///
/// When one of its documents cannot be read. A manifest that the source does not have is left out, as in a package of some platforms.
pub async fn blobs(source: &Source, wanted: Option<&[Digest]>) -> Result<Vec<Descriptor>, SourceError> {
    let (mut blobs, mut seen) = (Vec::new(), HashSet::new());
    let mut todo = vec![(source.root().await?, 0)];
    while let Some((document, depth)) = todo.pop() {
        if depth > DEPTH_LIMIT {
            return Err(SourceError::TooDeep { source_name: source.name(), limit: DEPTH_LIMIT });
        }
        let named: Vec<Descriptor> = match source.parse(&document)? {
            Parsed::Index(index) => {
                let is_wanted =
                    |entry: &&Descriptor| wanted.is_none_or(|wanted| wanted.contains(entry.digest()));
                for entry in index.manifests.iter().filter(is_wanted) {
                    match source.manifest(entry).await {
                        Ok(child) => todo.push((child, depth + 1)),
                        Err(SourceError::Missing { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                continue;
            }
            Parsed::Manifest(manifest) => manifest.blobs().cloned().collect(),
            Parsed::Artifact(artifact) => artifact.blobs,
        };
        blobs.extend(named.into_iter().filter(|blob| seen.insert(blob.digest().clone())));
    }
    Ok(blobs)
}
