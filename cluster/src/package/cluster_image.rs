//! The cluster image itself, as one more image that is to be in a package.

use image::document::{Index, Parsed};
use image::platform::PlatformName;
use image::source::{Source, SourceError};
use registry::client::Descriptor;
use registry::{Digest, Reference};

use crate::lock::{Locked, PlatformImage};

/// Annotation by which an attestation names the manifest that it is about.
const ATTESTED: &str = "vnd.docker.reference.digest";

/// What has to come along of the cluster image `source`: for the platforms in `wanted` all manifests that its index names,
/// attestations as well; for all platforms where that is empty.
///
/// # Errors
///
/// When it cannot be read, or has no image for one of the platforms.
pub async fn cluster_image(
    reference: &Reference,
    source: &Source,
    wanted: &[PlatformName],
) -> Result<Locked, SourceError> {
    let root = source.root().await?;
    let descriptor = root.descriptor.clone();
    let platforms = match source.parse(&root)? {
        // Refused where there is none for a platform.
        Parsed::Index(index) => {
            if !wanted.is_empty() {
                source.images_in(root, wanted).await?;
            }
            chosen(&index, wanted)
        }
        Parsed::Manifest(_) | Parsed::Artifact(_) => {
            let images = source.images_in(root, wanted).await?;
            images.into_iter().map(|image| image_of(image.platform, &image.descriptor)).collect()
        }
    };
    Ok(Locked {
        reference: reference.clone(),
        digest: descriptor.digest().clone(),
        media_type: descriptor.media_type().to_string(),
        size: descriptor.size(),
        platforms,
        nydus: Vec::new(),
        archive: None,
        asked_by: Vec::new(),
    })
}

fn chosen(index: &Index, wanted: &[PlatformName]) -> Vec<PlatformImage> {
    let fits =
        |platform: &PlatformName| wanted.is_empty() || wanted.iter().any(|name| name.matches(platform));
    let named = |entry: &Descriptor| entry.platform().as_ref().map(PlatformName::of);
    let runs = |entry: &&Descriptor| named(entry).is_none_or(|platform| fits(&platform));
    let kept: Vec<&Digest> = index.manifests.iter().filter(runs).map(Descriptor::digest).collect();
    let attests = |entry: &&Descriptor| {
        let annotations = entry.annotations().as_ref();
        let about = annotations.and_then(|all| all.get(ATTESTED));
        about.is_some_and(|about| kept.iter().any(|digest| digest.as_ref() == about))
    };
    let entries = index.manifests.iter().filter(|entry| runs(entry) || attests(entry));
    entries.map(|entry| image_of(named(entry).unwrap_or_else(PlatformName::host), entry)).collect()
}

fn image_of(platform: PlatformName, descriptor: &Descriptor) -> PlatformImage {
    PlatformImage { platform, digest: descriptor.digest().clone(), size: descriptor.size(), bytes: 0 }
}
