//! Cluster images put on one another, as `sealer merge` and `sealos merge` do: the files of each come over those of the one before,
//! and what they say of themselves is united.
//!
//! - `words`: labels, environment, commands, annotations.
//! - `files`: the lock and the directory `registry/`, which are united too, and may contradict each other.
//!
//! No data moves: see [`image::merge`].

mod files;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use image::destination::{Destination, InRegistry, StoreError};
use image::document::{Beside, DocumentError, Index, MediaTypes, Object, Parsed, Stored, parse};
use image::files::FilesError;
use image::location::Location;
use image::merge::{self, MergeImagesError, MergePart, Said};
use image::platform::{PlatformName, listed};
use image::source::{Document, Source, SourceError};
use registry::client::Client;
use registry::{Digest, Reference};
use serde_json::json;
use thiserror::Error;

use crate::describe::DescribeError;
use crate::lock::LockFileError;

pub use files::Conflict;

/// Why there is no merged image.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NotMerged {
    /// One of the images cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The files of one cannot be read.
    #[error("{image}: {error}")]
    Files {
        /// The image.
        image: String,
        /// Why.
        error: Box<FilesError>,
    },
    /// A document of one is none.
    #[error("{image}: {error}")]
    Document {
        /// The image.
        image: String,
        /// What is wrong with it.
        error: DocumentError,
    },
    /// What one says of itself cannot be read.
    #[error("{image}: {error}")]
    Describe {
        /// The image.
        image: String,
        /// What is wrong.
        error: DescribeError,
    },
    /// The lock of one cannot be read.
    #[error(transparent)]
    Lock(#[from] LockFileError),
    /// They have no platform in common.
    #[error("{first} is for {platforms}, and the other images have none of these platforms")]
    NoPlatform {
        /// The first image.
        first: String,
        /// Its platforms.
        platforms: String,
    },
    /// A platform that was asked for is missing.
    #[error("{image} has no image for {platform}")]
    Missing {
        /// The image.
        image: String,
        /// The platform.
        platform: PlatformName,
    },
    /// Some are plain, and others nydus.
    #[error("for {platform} {plain} is a plain image and {nydus} a nydus image: convert one of them first")]
    Forms {
        /// The platform.
        platform: PlatformName,
        /// One of the plain images.
        plain: String,
        /// One of the nydus images.
        nydus: String,
    },
    /// Two of them say different things.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// It cannot be put together.
    #[error(transparent)]
    Image(Box<MergeImagesError>),
    /// It cannot be pushed.
    #[error(transparent)]
    Push(#[from] StoreError),
    /// A temporary directory cannot be used.
    #[error("cannot use a temporary directory: {0}")]
    Temporary(#[from] std::io::Error),
}

impl From<MergeImagesError> for NotMerged {
    fn from(error: MergeImagesError) -> Self {
        Self::Image(Box::new(error))
    }
}

/// What became of a merge.
#[derive(Clone, Debug)]
pub struct MergedImage {
    /// The digest of what the name leads to.
    pub digest: Digest,
    /// The platforms that it has.
    pub platforms: Vec<PlatformName>,
    /// Platforms of the first image that another one lacks.
    pub left_out: Vec<PlatformName>,
}

/// One of the images, by platform.
struct MergeInput {
    name: String,
    location: Location,
    platforms: BTreeMap<String, MergedForms>,
}

/// The images of a platform.
#[derive(Default)]
struct MergedForms {
    plain: Option<MergePart>,
    nydus: Option<MergePart>,
}

/// Merges the images at `locations`, the lowest first, for the platforms in `wanted`, or for all that they have in common where that
/// is empty, and has the result under the name `to`.
///
/// # Errors
///
/// When something cannot be read or pushed, or the images contradict each other. The name is put last.
pub async fn merge(
    locations: &[Location],
    client: &Client,
    to: &Reference,
    wanted: &[PlatformName],
) -> Result<MergedImage, NotMerged> {
    let mut inputs = Vec::new();
    for location in locations {
        inputs.push(MergeInput::open(location, client).await?);
    }
    let (platforms, left_out) = platforms(&inputs, wanted)?;
    let destination: Arc<dyn Destination> =
        Arc::new(InRegistry::new(client.clone(), to.repository().clone()));
    let mut made = Vec::new();
    for platform in &platforms {
        made.push(one(&inputs, platform, client, &destination).await?);
    }
    let root = root(&platforms, made);
    destination.publish(std::slice::from_ref(to), Some(&root)).await?;
    Ok(MergedImage { digest: root.digest, platforms, left_out })
}

impl MergeInput {
    async fn open(location: &Location, client: &Client) -> Result<Self, NotMerged> {
        let source = Source::open(location, client).await?;
        let root = source.root().await?;
        let mut input = Self { name: source.name(), location: location.clone(), platforms: BTreeMap::new() };
        let Parsed::Index(index) = source.parse(&root)? else {
            input.add(&source, root, None).await?;
            return Ok(input);
        };
        for entry in &index.manifests {
            let platform = entry.platform().as_ref().map(PlatformName::of);
            if platform.as_ref().is_some_and(PlatformName::is_unknown) {
                continue;
            }
            match source.manifest(entry).await {
                Ok(document) => input.add(&source, document, platform).await?,
                Err(SourceError::Missing { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(input)
    }

    /// Takes an image of it, unless it is something else.
    async fn add(
        &mut self,
        source: &Source,
        document: Document,
        platform: Option<PlatformName>,
    ) -> Result<(), NotMerged> {
        let Parsed::Manifest(manifest) = source.parse(&document)? else { return Ok(()) };
        let config = source.document(&manifest.config).await?;
        let platform = match platform {
            Some(platform) => platform,
            None => source.platform_of(&manifest.config).await?,
        };
        let layers = manifest.layers;
        let part = MergePart { source: source.clone(), manifest: document.content, config, layers };
        let forms = self.platforms.entry(platform.to_string()).or_default();
        let form = if part.bootstrap().is_some() { &mut forms.nydus } else { &mut forms.plain };
        form.get_or_insert(part);
        Ok(())
    }

    fn forms(&self, platform: &PlatformName) -> Option<&MergedForms> {
        self.platforms.get(&platform.to_string())
    }
}

/// The platforms of the merged image, and those of the first image that it lacks.
fn platforms(
    inputs: &[MergeInput],
    wanted: &[PlatformName],
) -> Result<(Vec<PlatformName>, Vec<PlatformName>), NotMerged> {
    let Some(first) = inputs.first() else { return Ok((Vec::new(), Vec::new())) };
    for platform in wanted {
        if let Some(input) = inputs.iter().find(|input| input.forms(platform).is_none()) {
            return Err(NotMerged::Missing { image: input.name.clone(), platform: platform.clone() });
        }
    }
    let all: Vec<PlatformName> = match wanted.is_empty() {
        true => first.platforms.keys().filter_map(|name| name.parse().ok()).collect(),
        false => wanted.to_vec(),
    };
    let (common, left_out): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|platform| inputs.iter().all(|input| input.forms(platform).is_some()));
    if common.is_empty() {
        return Err(NotMerged::NoPlatform { first: first.name.clone(), platforms: listed(&left_out) });
    }
    Ok((common, left_out))
}

/// What was made for a platform.
#[derive(Default)]
struct Made {
    plain: Option<Stored>,
    nydus: Option<Stored>,
}

async fn one(
    inputs: &[MergeInput],
    platform: &PlatformName,
    client: &Client,
    destination: &Arc<dyn Destination>,
) -> Result<Made, NotMerged> {
    let of = |pick: fn(&MergedForms) -> Option<&MergePart>| -> Option<Vec<MergePart>> {
        inputs.iter().map(|input| input.forms(platform).and_then(pick).cloned()).collect()
    };
    let (plain, nydus) = (of(|forms| forms.plain.as_ref()), of(|forms| forms.nydus.as_ref()));
    let Some(parts) = plain.as_ref().or(nydus.as_ref()) else {
        let without = |pick: fn(&MergedForms) -> bool| {
            let input = inputs.iter().find(|input| input.forms(platform).is_some_and(pick));
            input.map(|input| input.name.clone()).unwrap_or_default()
        };
        return Err(NotMerged::Forms {
            platform: platform.clone(),
            plain: without(|forms| forms.nydus.is_none()),
            nydus: without(|forms| forms.plain.is_none()),
        });
    };
    // All inputs are looked at before anything is stored: a contradiction between them leaves nothing behind.
    let mut united = files::United::default();
    for input in inputs {
        united.add(&input.name, &input.location, client, platform).await?;
    }
    let documents = |part: &MergePart, name: &str| -> Result<(Object, Object), NotMerged> {
        let wrong = |error| NotMerged::Document { image: name.to_owned(), error };
        Ok((
            parse("image config", &part.config).map_err(wrong)?,
            parse("manifest", &part.manifest).map_err(wrong)?,
        ))
    };
    let mut said = words::Statements::default();
    for (part, input) in parts.iter().zip(inputs) {
        let (config, manifest) = documents(part, &input.name)?;
        said.add(&config, &manifest)
            .map_err(|error| NotMerged::Describe { image: input.name.clone(), error })?;
    }
    let (config, annotations) = said.finish();
    let said = Said { config, annotations, on_top: united.layer()? };
    let mut made = Made::default();
    if let Some(parts) = &plain {
        made.plain = Some(merge::plain(parts, &said, destination.as_ref()).await?);
    }
    if let Some(parts) = &nydus {
        let media_types = if plain.is_some() { MediaTypes::BesidePlain } else { MediaTypes::Oci };
        made.nydus = Some(merge::nydus(parts, &said, media_types, destination).await?);
    }
    Ok(made)
}

/// What the name is to lead to: the only image, or an index.
fn root(platforms: &[PlatformName], mut made: Vec<Made>) -> Stored {
    if let [Made { plain, nydus }] = &mut made[..]
        && plain.is_some() != nydus.is_some()
        && let Some(only) = plain.take().or(nydus.take())
    {
        return only;
    }
    let (mut entries, mut beside) = (Vec::new(), Vec::new());
    for (platform, made) in platforms.iter().zip(made) {
        let mut named = json!({"os": platform.os(), "architecture": platform.architecture()});
        if let Some(variant) = platform.variant() {
            named["variant"] = variant.into();
        }
        let (first, second) = match made.plain {
            Some(plain) => (Some(plain), made.nydus),
            None => (made.nydus, None),
        };
        let Some(first) = first else { continue };
        if let Some(nydus) = second {
            beside.push(Beside {
                plain: first.digest.clone(),
                nydus,
                platform: named.clone(),
                attested: Vec::new(),
            });
        }
        entries.push(json!({
            "mediaType": first.media_type, "digest": first.digest.as_ref(),
            "size": first.content.len(), "platform": named,
        }));
    }
    Index::of_all(entries).with_nydus(&beside, &HashMap::new())
}
