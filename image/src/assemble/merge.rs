//! The index of a name that has plain images already, with the nydus images of a build next to them.

use std::collections::HashMap;

use registry::client::Client;
use registry::digest::Digest;
use registry::reference::Reference;
use serde_json::Value;

use crate::document::{Beside, DocumentError, ImageConfig, Index, Parsed, StaleNydus, Stored};
use crate::location::Location;
use crate::platform::PlatformName;
use crate::source::{Document, Source, SourceError, SourceImage};

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

/// An index with the nydus images of a build in it.
#[derive(Clone, Debug)]
pub struct MergedIndex {
    /// The index; nothing is stored yet.
    pub index: Stored,
    /// Nydus images of other platforms that had to go.
    pub stale: Vec<StaleNydus>,
    /// The plain images and the nydus images that were put next to them.
    pub pairs: Vec<(Digest, Digest)>,
}

impl MergedIndex {
    /// After it was stored at `name`: whether another index is there by now that has the plain images without these nydus images, as
    /// somebody leaves it who read the old one before. An index of other plain images is a later push, and as good as any.
    ///
    /// # Errors
    ///
    /// When what is there cannot be read.
    pub async fn is_lost(&self, client: &Client, name: &Reference) -> Result<bool, MergeError> {
        let source = Source::open(&Location::Registry(name.clone()), client).await?;
        match client.head_manifest(name).await {
            Ok(Some(there)) if *there.digest() == self.index.digest => return Ok(false),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(error) => return Err(SourceError::from(error).into()),
        }
        let (descriptor, content) = client.manifest_at_registry(name).await.map_err(SourceError::from)?;
        let Parsed::Index(index) = source.parse(&Document { descriptor, content })? else { return Ok(false) };
        Ok(self.pairs.iter().any(|(plain, nydus)| index.names(plain) && !index.names(nydus)))
    }
}

/// The index of what `name` has now, as its registry says whatever mirrors have, with `images` next to the plain images that they were
/// made of: the same layers for the same platform. Nydus images that stood there for the same platforms give way, and so do those whose
/// plain image is not there any more. Nothing is stored yet.
pub async fn merge(
    client: &Client,
    name: &Reference,
    images: &[NydusImage],
) -> Result<MergedIndex, MergeError> {
    let source = Source::open(&Location::Registry(name.clone()), client).await?;
    let root = match client.manifest_at_registry(name).await {
        Ok((descriptor, content)) => Document { descriptor, content },
        Err(error) if error.is_not_found() => return Err(MergeError::Absent { name: name.clone() }),
        Err(error) => return Err(SourceError::from(error).into()),
    };
    // Each image has to find its plain one before the index is touched, so that a name never loses an entry to one that does not fit.
    let there = source.images_in(root.clone(), &[]).await?;
    let mut pairs = Vec::with_capacity(images.len());
    for image in images {
        pairs.push(beside(&source, name, &there, image).await?);
    }
    let (index, stale) = match source.parse(&root)? {
        Parsed::Index(mut index) => {
            let plain: Vec<&Digest> = there.iter().map(|plain| plain.descriptor.digest()).collect();
            let stale = index.make_way(&pairs, &plain);
            (index, stale)
        }
        Parsed::Manifest(_) | Parsed::Artifact(_) => {
            let stored = Stored {
                media_type: root.descriptor.media_type().to_string(),
                content: root.content,
                digest: root.descriptor.digest().clone(),
            };
            let mut entry = stored.descriptor();
            entry["platform"] = pairs.first().map_or(Value::Null, |pair| pair.platform.clone());
            (Index::of(&entry), Vec::new())
        }
    };
    let index = index.with_nydus(&pairs, &HashMap::new());
    let pairs = pairs.into_iter().map(|pair| (pair.plain, pair.nydus.digest)).collect();
    Ok(MergedIndex { index, stale, pairs })
}

/// `image` next to the plain one among `there`, at `name`, that it was made of.
async fn beside(
    source: &Source,
    name: &Reference,
    there: &[SourceImage],
    image: &NydusImage,
) -> Result<Beside, MergeError> {
    let ranked = there.iter().filter_map(|plain| Some((image.platform.rank(&plain.platform)?, plain)));
    let plain = ranked.min_by_key(|(rank, _)| *rank).map(|(_, plain)| plain);
    let (name, platform) = (name.clone(), image.platform.clone());
    let Some(plain) = plain else { return Err(MergeError::Platform { name, platform }) };
    let config = ImageConfig::parse(&source.document(&plain.config).await?)?;
    if config.diff_ids()? != image.diff_ids {
        return Err(MergeError::Layers { name, platform });
    }
    Ok(Beside {
        plain: plain.descriptor.digest().clone(),
        nydus: image.nydus.clone(),
        platform: plain.platform.to_json(),
        attested: image.attested.clone(),
    })
}
