//! Cluster images put on one another, as `sealer merge` and `sealos merge` do: the files of each come over those of the one before,
//! and what they say of themselves is united.
//!
//! - `words`: labels, environment, commands, annotations.
//! - `files`: the lock and the directory `registry/`, which are united too, and may contradict each other.
//! - `directory`: what `cluster save DIR` left in `registry/`, united.
//! - `locks`: locks, united.
//! - `saved`: what `cluster save` brought for them, united.
//! - `conflict`, `error`: why there is no merged image.
//!
//! No data moves: see [`image::merge`].

mod conflict;
mod directory;
mod error;
mod files;
mod locks;
mod saved;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use image::destination::{Destination, InRegistry};
use image::document::{Beside, Index, MediaTypes, Object, Parsed, Stored, parse};
use image::location::Location;
use image::merge::{self, MergePart, Said};
use image::platform::{PlatformName, listed};
use image::source::{Document, Source, SourceError};
use registry::client::Client;
use registry::{Digest, Reference, digest};
use serde_json::json;

use crate::saved::{bind, bound};

pub use conflict::Conflict;
pub use error::NotMerged;
use saved::{FilledImage, UnitedImages};

/// What became of a merge.
#[derive(Clone, Debug)]
pub struct MergedImage {
    /// The digest of what the name leads to.
    pub digest: Digest,
    /// The platforms that it has.
    pub platforms: Vec<PlatformName>,
    /// Platforms of the first image that another one lacks.
    pub left_out: Vec<PlatformName>,
    /// Images that are bound to saved images which are not where they are: the merged image is without these.
    pub unsaved: Vec<String>,
}

/// One of the images, by platform.
struct MergeInput {
    name: String,
    location: Location,
    /// What its name leads to.
    root: Document,
    platforms: BTreeMap<String, MergedForms>,
}

/// The images of a platform.
#[derive(Default)]
struct MergedForms {
    plain: Option<MergePart>,
    nydus: Option<MergePart>,
}

/// Merges the images at `locations`, the lowest first, for the platforms in `wanted`, or for all that they have in common where that
/// is empty, and has the result under the name `to`. What was saved for them is next to it then, and it is bound to that.
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
    let (mut filled, mut unsaved) = (Vec::new(), Vec::new());
    for input in &inputs {
        let found = FilledImage::find(input, client).await?;
        if found.is_none() && !input.bound()?.is_empty() {
            unsaved.push(input.name.clone());
        }
        filled.push(found);
    }
    let images = UnitedImages::of(&filled.iter().flatten().collect::<Vec<_>>())?;
    let destination: Arc<dyn Destination> =
        Arc::new(InRegistry::new(client.clone(), to.repository().clone()));
    let inputs = MergeInputs { inputs: &inputs, filled: &filled, images: images.as_ref() };
    let mut made = Vec::new();
    for platform in &platforms {
        made.push(inputs.merge(platform, client, &destination).await?);
    }
    let mut root = root(&platforms, made);
    if let Some(images) = images {
        root = bound_to(root, images.put(&destination, to).await?)?;
    }
    destination.publish(std::slice::from_ref(to), Some(&root)).await?;
    Ok(MergedImage { digest: root.digest, platforms, left_out, unsaved })
}

/// The merged image, bound to the saved images with this digest.
fn bound_to(root: Stored, images: Digest) -> Result<Stored, NotMerged> {
    let content = bind(&root.content, &[images])
        .map_err(|error| NotMerged::Document { image: "the merged image".to_owned(), error })?;
    Ok(Stored { digest: digest::sha256(&content), content, ..root })
}

impl MergeInput {
    async fn open(location: &Location, client: &Client) -> Result<Self, NotMerged> {
        let source = Source::open(location, client).await?;
        let root = source.root().await?;
        let (name, location, platforms) = (source.name(), location.clone(), BTreeMap::new());
        let mut input = Self { name, location, root: root.clone(), platforms };
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

    /// The saved images that it is bound to.
    fn bound(&self) -> Result<Vec<Digest>, NotMerged> {
        bound(&self.root.content).map_err(|error| NotMerged::Document { image: self.name.clone(), error })
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

/// All images that are merged.
struct MergeInputs<'a> {
    inputs: &'a [MergeInput],
    /// What was saved for each of them.
    filled: &'a [Option<FilledImage>],
    /// All of that, united.
    images: Option<&'a UnitedImages>,
}

impl MergeInputs<'_> {
    /// Merges those for a platform.
    async fn merge(
        &self,
        platform: &PlatformName,
        client: &Client,
        destination: &Arc<dyn Destination>,
    ) -> Result<Made, NotMerged> {
        let (plain, nydus) = (
            self.parts(platform, |forms| forms.plain.as_ref()),
            self.parts(platform, |forms| forms.nydus.as_ref()),
        );
        let Some(parts) = plain.as_ref().or(nydus.as_ref()) else { return Err(self.mixed(platform)) };
        // All inputs are looked at before anything is stored: a contradiction between them leaves nothing behind.
        let united = self.files(platform, client).await?;
        let said = self.said(parts, &united)?;
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

    /// Those of one form, if all images have it.
    fn parts(
        &self,
        platform: &PlatformName,
        pick: fn(&MergedForms) -> Option<&MergePart>,
    ) -> Option<Vec<MergePart>> {
        self.inputs.iter().map(|input| input.forms(platform).and_then(pick).cloned()).collect()
    }

    /// That there is no form that all images have.
    fn mixed(&self, platform: &PlatformName) -> NotMerged {
        let without = |pick: fn(&MergedForms) -> bool| {
            let input = self.inputs.iter().find(|input| input.forms(platform).is_some_and(pick));
            input.map(|input| input.name.clone()).unwrap_or_default()
        };
        NotMerged::Forms {
            platform: platform.clone(),
            plain: without(|forms| forms.nydus.is_none()),
            nydus: without(|forms| forms.plain.is_none()),
        }
    }

    /// Their files that are united.
    async fn files(&self, platform: &PlatformName, client: &Client) -> Result<files::United, NotMerged> {
        let mut united = files::United::default();
        for (input, filled) in self.inputs.iter().zip(self.filled) {
            let saved = filled.as_ref().map(FilledImage::saved);
            united.add(&input.name, &input.location, client, platform, saved).await?;
        }
        if let Some(images) = self.images {
            images.locks.agree(&united.locks)?;
        }
        united.finish(client, platform).await?;
        Ok(united)
    }

    /// What the merged image says of itself.
    fn said(&self, parts: &[MergePart], united: &files::United) -> Result<Said, NotMerged> {
        let mut said = words::Statements::default();
        for (part, input) in parts.iter().zip(self.inputs) {
            let wrong = |error| NotMerged::Document { image: input.name.clone(), error };
            let config: Object = parse("image config", &part.config).map_err(wrong)?;
            let manifest: Object = parse("manifest", &part.manifest).map_err(wrong)?;
            said.add(&config, &manifest)
                .map_err(|error| NotMerged::Describe { image: input.name.clone(), error })?;
        }
        let (config, annotations) = said.finish();
        Ok(Said { config, annotations, on_top: united.layer()? })
    }
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
