//! One layer of many: what the final file system shows, and nothing that is deleted or overwritten.
//!
//! Layers are first converted as always, quickly compressed, to files of this machine (`Scratch`). When all are there it is
//! known what the image shows: that is built again from there, with the options that were asked for, the files that are
//! fetched first in front. Memory holds the trees and what a conversion takes; the disk holds the layers meanwhile.

use std::io::Write as _;
use std::sync::Arc;

use rafs::blob::source::BlobDirectory;
use rafs::build::build_source;
use rafs::merge::merge;
use rafs::source::image::ImageSource;
use registry::digest::{Digest, Hasher};

use super::bridge::OutputWriter;
use super::conversion::{Built, ConvertError, ConvertedLayer, build_blob};
use super::scratch::Scratch;
use super::slot::Slot;
use crate::destination::Destination;
use crate::options::{Pattern, Recipe, expand};

/// What the layers `sources`, the lowest first, are made of when they are one: a digest that stands for the digests of all, and for the
/// paths that come first, which decide about the order of bytes as well.
pub(super) fn source<'a>(sources: impl Iterator<Item = &'a Digest>, recipe: &Recipe) -> Digest {
    let mut hasher = Hasher::sha256();
    let mut add = |kind: u8, text: &[u8]| {
        // With its length in front, so that no two lists are one text.
        hasher.update(&[kind]);
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    add(b'f', b"flattened");
    for source in sources {
        add(b'l', source.as_ref().as_bytes());
    }
    for pattern in &recipe.options().prefetch {
        match pattern {
            Pattern::Path(path) => add(b'p', path),
            Pattern::Glob(glob) => add(b'g', glob.glob().as_bytes()),
        }
    }
    hasher.finish()
}

/// Makes one layer of `layers`, whose blobs are in `scratch`, the lowest first; its blob goes to `destination`.
pub(super) async fn flatten(
    recipe: Arc<Recipe>,
    layers: Vec<Arc<ConvertedLayer>>,
    scratch: Arc<Scratch>,
    destination: &Arc<dyn Destination>,
    slot: Slot,
) -> Result<ConvertedLayer, ConvertError> {
    let build = move |output| {
        let mut output = OutputWriter::new(output);
        let image = merge(layers.iter().map(|layer| layer.layer.clone()).collect())?;
        let blobs = BlobDirectory::new(scratch.folder());
        let first = expand(&recipe.options().prefetch, &image.tree);
        let mut source = ImageSource::new(&image, &blobs, &first);
        let layer = build_source(&mut source, &mut output, recipe.build())?;
        output.flush()?;
        Ok(Built { layer, input: (), diff_id: None })
    };
    build_blob(destination.as_ref(), Some(slot), build).await?.store(destination.as_ref()).await
}
