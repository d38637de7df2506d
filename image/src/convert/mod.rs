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

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::location::Location;
use crate::platform::PlatformName;
use crate::source::Source;
use registry::client::Client;
use registry::digest::Digest;
use tokio_util::sync::CancellationToken;

pub use self::error::ConversionError;

use self::target::Target;
use self::tree::{ImageNode, Tree};
use crate::destination::Destination;
use crate::layer::{ConvertedLayer, Converter, Scratch};
use crate::options::Options;
use crate::progress::Progress;

/// What was made.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Digest of the manifest or index that has the name now; of files that need none there is none.
    pub digest: Option<Digest>,
    /// The platforms of the images.
    pub platforms: Vec<PlatformName>,
    /// Layers that were converted.
    pub layers: usize,
    /// Bytes of the blobs that they became.
    pub bytes: u64,
}

/// What all parts of a conversion share.
struct Job<'a> {
    converter: &'a Converter,
    destination: Arc<dyn Destination>,
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

/// Converts the image at `from` to `to` by the converter's recipe. The destination's name is given last, so whatever ends before leaves the name as
/// it was; `cancel` ends it in good order, with what was stored so far given up.
pub async fn convert(
    from: &Location,
    to: &Location,
    client: &Client,
    converter: &Converter,
    progress: &Arc<Progress>,
    cancel: &CancellationToken,
) -> Result<Converted, ConversionError> {
    let options = converter.recipe().options();
    let target = Target::new(to, client)?;
    let destination = target.destination();
    let scratch = match options.flatten {
        true => {
            let dir = &client.config().upload.spool_dir;
            let failed = |error| ConversionError::Store {
                what: "layers to flatten".to_owned(),
                error: Box::new(error),
            };
            Some(Arc::new(Scratch::new(dir).map_err(failed)?))
        }
        false => None,
    };
    let (flattened_bytes, name) = (AtomicU64::new(0), from.to_string());
    let job = Job { converter, destination, scratch, flattened_bytes, options, progress, cancel, name };
    if let Location::Directory(path) = from {
        return job.convert_directory(path, target).await;
    }
    let opening = async {
        let source = Source::open(from, client).await?;
        let tree = Tree::load(&source, &options.platforms).await?;
        Ok::<_, ConversionError>((source, tree))
    };
    let (source, tree) = cancel.run_until_cancelled(opening).await.ok_or(ConversionError::Cancelled)??;
    let images = tree.images();
    target.check(&images, options.also_oci)?;
    // Boxed: each holds all that a push needs, and would lie on the stack several times.
    let layers = Box::pin(job.convert_layers(&source, tree::distinct_layers(&images))).await?;
    Box::pin(job.publish(&source, &tree, &layers, target)).await
}

/// A digest as short as people compare them, and as a progress bar has room for.
fn short(digest: &Digest) -> &str {
    digest.digest().get(..12).unwrap_or(digest.digest())
}

impl Job<'_> {
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
