//! What a cluster image is made of, and how much of it its container images have in common.

mod sharing;

use std::collections::HashSet;

use image::source::{Document, Source, SourceError};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use registry::Digest;
use serde::Deserialize;

pub use sharing::{ImageShare, Sharing};

/// How deep indexes may lie in indexes.
const DEPTH_LIMIT: usize = 4;

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
        let Ok(index) = serde_json::from_slice::<ImageIndex>(&document.content) else {
            let manifest: ImageManifest = parse(source, &document)?;
            for blob in [manifest.config()].into_iter().chain(manifest.layers()) {
                if seen.insert(blob.digest().clone()) {
                    blobs.push(blob.clone());
                }
            }
            continue;
        };
        for entry in index.manifests() {
            if wanted.is_some_and(|wanted| !wanted.contains(entry.digest())) {
                continue;
            }
            match source.manifest(entry).await {
                Ok(child) => todo.push((child, depth + 1)),
                Err(SourceError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(blobs)
}

fn parse<T: for<'a> Deserialize<'a>>(source: &Source, document: &Document) -> Result<T, SourceError> {
    serde_json::from_slice(&document.content).map_err(|error| SourceError::Document {
        place: format!("manifest {} of {}", document.descriptor.digest(), source.name()),
        reason: error.to_string(),
    })
}
