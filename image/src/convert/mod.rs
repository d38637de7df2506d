//! An image that is somewhere already, converted to where it is to be.
//!
//! ```text
//! Location ──tree──> manifests of all platforms ──layers──> every layer once, several at a time
//!                                               ──publish─> bootstraps, manifests, index, and last the name
//! ```
//!
//! - `tree`: the manifests that the source's name leads to.
//! - `layers`: their layers, converted while they are read.
//! - `publish`: what is made of them, and what is kept as it is.
//! - `target`: where it goes.

mod error;
mod layers;
mod publish;
mod target;
mod tree;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::location::Location;
use crate::platform::PlatformName;
use crate::source::Source;
use registry::client::{Client, Descriptor};
use registry::digest::Digest;
use tokio_util::sync::CancellationToken;

pub use self::error::ConversionError;

use self::target::Target;
use self::tree::{ImageNode, Tree};
use crate::destination::Destination;
use crate::layer::{ConvertedLayer, Converter, Present, Scratch, ScratchSpace};
use crate::options::Options;
use crate::progress::Progress;

/// What was made.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Digest of the manifest or index that has the name now; of files that need none there is none.
    pub digest: Option<Digest>,
    /// The platforms of the images.
    pub platforms: Vec<PlatformName>,
    /// Layers of the images, each counted once.
    pub layers: usize,
    /// Those of them that were neither read nor converted, because it was known what they became.
    pub reused_layers: usize,
    /// Bytes of the blobs that the layers became.
    pub bytes: u64,
}

/// How a conversion is done, in addition to its recipe.
#[derive(Clone, Debug)]
pub struct Conversion<'a> {
    /// Converts the layers, and knows those of earlier conversions.
    pub converter: &'a Converter,
    /// Reaches registries.
    pub client: &'a Client,
    /// Room for layers that are flattened.
    pub scratch_space: &'a Arc<ScratchSpace>,
    /// Whether blobs are used again of which the image at the destination's name says what they were made of. Who may write
    /// there is believed.
    pub reuse_present: bool,
    /// How far it is.
    pub progress: &'a Arc<Progress>,
    /// Says that nobody wants it any more.
    pub cancel: &'a CancellationToken,
}

/// What all parts of a conversion share.
struct Job<'a> {
    converter: &'a Converter,
    destination: Arc<dyn Destination>,
    /// What is at the destination's name already.
    present: Present,
    /// Layers that were converted here.
    converted: AtomicUsize,
    /// The one layer of each image that is known flattened, by the digest of its manifest.
    known_flattened: HashMap<Digest, Arc<ConvertedLayer>>,
    /// Where layers are that are to be flattened.
    scratch: Option<Arc<Scratch>>,
    /// Of the blobs that layers were flattened to.
    flattened_bytes: AtomicU64,
    options: &'a Options,
    progress: &'a Arc<Progress>,
    cancel: &'a CancellationToken,
    /// The source, as people named it.
    name: String,
}

/// Converts the image at `from` to `to`, by the recipe of the converter. The destination's name is given last, so whatever ends before
/// leaves the name as it was; what cancels it ends it in good order, with what was stored so far given up.
///
/// # Errors
///
/// When the image cannot be read, converted or stored.
pub async fn convert(
    from: &Location,
    to: &Location,
    how: Conversion<'_>,
) -> Result<Converted, ConversionError> {
    let (options, cancel) = (how.converter.recipe().options(), how.cancel);
    let target = Target::new(to, how.client)?;
    let mut job = Job::new(from, &target, &how).await?;
    if let Location::Directory(path) = from {
        return job.convert_directory(path, target).await;
    }
    let opening = async {
        let source = Source::open(from, how.client).await?;
        let tree = Tree::load(&source, &options.platforms).await?;
        Ok::<_, ConversionError>((source, tree))
    };
    let (source, tree) = cancel.run_until_cancelled(opening).await.ok_or(ConversionError::Cancelled)??;
    let images = tree.images();
    target.check(&images, options.also_oci)?;
    let finding = job.find_flattened(&images);
    let known = cancel.run_until_cancelled(finding).await.ok_or(ConversionError::Cancelled)??;
    job.known_flattened = known;
    let unknown: Vec<&ImageNode> =
        images.iter().filter(|image| !job.known_flattened.contains_key(image.digest())).copied().collect();
    // Boxed: each holds all that a push needs, and would lie on the stack several times.
    let layers = Box::pin(job.convert_layers(&source, tree::distinct_layers(&unknown))).await?;
    Box::pin(job.publish(&source, &tree, &layers, target)).await
}

/// A digest as short as people compare them, and as a progress bar has room for.
fn short(digest: &Digest) -> &str {
    digest.digest().get(..12).unwrap_or(digest.digest())
}

impl<'a> Job<'a> {
    async fn new(from: &Location, target: &Target, how: &Conversion<'a>) -> Result<Self, ConversionError> {
        let options = how.converter.recipe().options();
        let scratch = match options.flatten {
            true => {
                let failed = |error| ConversionError::Store {
                    what: "layers to flatten".to_owned(),
                    error: Box::new(error),
                };
                Some(Arc::new(how.scratch_space.begin().await.map_err(failed)?))
            }
            false => None,
        };
        let names = if how.reuse_present { target.names().to_vec() } else { Vec::new() };
        Ok(Self {
            converter: how.converter,
            destination: target.destination(),
            present: Present::new(names),
            converted: AtomicUsize::new(0),
            known_flattened: HashMap::new(),
            scratch,
            flattened_bytes: AtomicU64::new(0),
            options,
            progress: how.progress,
            cancel: how.cancel,
            name: from.to_string(),
        })
    }

    /// What was made before of those of `images` that are to be flattened.
    async fn find_flattened(
        &self,
        images: &[&ImageNode],
    ) -> Result<HashMap<Digest, Arc<ConvertedLayer>>, ConversionError> {
        let mut found = HashMap::new();
        for image in images.iter().filter(|image| self.scratch.is_some() && !image.layers.is_empty()) {
            let layers = image.layers.iter().map(Descriptor::digest);
            let known = self.converter.flattened(layers, &self.present, self.destination.as_ref()).await;
            let known = known.map_err(|error| ConversionError::Flatten {
                name: self.name.clone(),
                error: Box::new(error.into()),
            })?;
            found.extend(known.map(|known| (image.digest().clone(), known)));
        }
        Ok(found)
    }

    /// What converts the layers, and where they go.
    fn layer_converter(&self) -> (Converter, Arc<dyn Destination>) {
        match &self.scratch {
            Some(scratch) => {
                let destination: Arc<dyn Destination> = Arc::<Scratch>::clone(scratch);
                (self.converter.for_scratch(), destination)
            }
            None => (self.converter.clone(), Arc::clone(&self.destination)),
        }
    }

    /// Bytes of the blobs that `layers` became.
    fn bytes<'b>(&self, layers: impl Iterator<Item = &'b Arc<ConvertedLayer>>) -> u64 {
        match self.scratch {
            Some(_) => self.flattened_bytes.load(Ordering::Relaxed),
            None => layers.map(|layer| layer.size).sum(),
        }
    }

    async fn convert_directory(&self, path: &Path, target: Target) -> Result<Converted, ConversionError> {
        if self.options.also_oci {
            return Err(ConversionError::NoPlainImage { name: self.name.clone() });
        }
        let platform = match &self.options.platforms[..] {
            [] => PlatformName::host(),
            [platform] => platform.clone(),
            _ => return Err(ConversionError::DirectoryPlatforms { name: self.name.clone() }),
        };
        let layer = Arc::new(self.convert_tree_of_files(path).await?);
        let image = ImageNode::of_directory(&platform, &layer.digest)?;
        let publishing = self.publish_directory(&image, layer, target);
        self.cancel.run_until_cancelled(publishing).await.ok_or(ConversionError::Cancelled)?
    }
}

#[cfg(test)]
mod tests;
