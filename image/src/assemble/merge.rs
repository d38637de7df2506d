//! The index of a name that has plain images already, with the nydus images of a build next to them.

use std::collections::HashMap;

use registry::client::Client;
use registry::digest::Digest;
use registry::reference::Reference;
use serde_json::Value;

use crate::document::{Beside, DocumentError, ImageConfig, Index, Parsed, Stored};
use crate::location::Location;
use crate::platform::PlatformName;
use crate::source::{Source, SourceError};

/// A nydus image of which the plain one is somewhere else.
#[derive(Clone, Debug)]
pub struct NydusImage {
    /// What it is for.
    pub platform: PlatformName,
    /// The diff ids of the layers that it was made of.
    pub diff_ids: Vec<Digest>,
    /// Its manifest.
    pub nydus: Stored,
    /// Attestations about it.
    pub attested: Vec<Stored>,
}

/// Why nydus images cannot stand next to what a name has.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// What is there cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What is there is not what it should be.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// There is nothing.
    #[error("there is no image at {name}")]
    Absent {
        /// The name.
        name: Reference,
    },
    /// There is nothing for a platform.
    #[error("{name} has no plain image for {platform}")]
    Platform {
        /// The name.
        name: Reference,
        /// The platform of the build's image.
        platform: PlatformName,
    },
    /// The plain image there is of another build.
    #[error("the plain image for {platform} at {name} has other layers than this build's")]
    Layers {
        /// The name.
        name: Reference,
        /// The platform.
        platform: PlatformName,
    },
}

/// The index of what `name` has now with `images` next to the plain images that they were made of: the same layers for the
/// same platform. Nydus images that stood there give way. Nothing is stored yet.
pub async fn merge(client: &Client, name: &Reference, images: &[NydusImage]) -> Result<Stored, MergeError> {
    let source = Source::open(&Location::Registry(name.clone()), client).await?;
    let root = match source.root().await {
        Ok(root) => root,
        Err(SourceError::Registry(error)) if error.is_not_found() => {
            return Err(MergeError::Absent { name: name.clone() });
        }
        Err(error) => return Err(error.into()),
    };
    // Each image has to find its plain one before the index is touched, so that a name never loses an entry to one that does not fit.
    let there = source.images_in(root.clone(), &[]).await?;
    let mut pairs = Vec::with_capacity(images.len());
    for image in images {
        let plain = there.iter().find(|plain| image.platform.matches(&plain.platform));
        let (name, platform) = (name.clone(), image.platform.clone());
        let Some(plain) = plain else { return Err(MergeError::Platform { name, platform }) };
        let config = ImageConfig::parse(&source.document(&plain.config).await?)?;
        if config.diff_ids()? != image.diff_ids {
            return Err(MergeError::Layers { name, platform });
        }
        pairs.push(Beside {
            plain: plain.descriptor.digest().clone(),
            nydus: image.nydus.clone(),
            platform: plain.platform.to_json(),
            attested: image.attested.clone(),
        });
    }
    let index = match source.parse(&root)? {
        Parsed::Index(mut index) => {
            index.leave_out_nydus();
            index
        }
        Parsed::Manifest(_) | Parsed::Artifact(_) => {
            let stored = Stored {
                media_type: root.descriptor.media_type().to_string(),
                content: root.content,
                digest: root.descriptor.digest().clone(),
            };
            let mut entry = stored.descriptor();
            entry["platform"] = pairs.first().map_or(Value::Null, |pair| pair.platform.clone());
            Index::of(&entry)
        }
    };
    Ok(index.with_nydus(&pairs, &HashMap::new()))
}
