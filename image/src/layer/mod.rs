//! From the bytes of an OCI layer, while they come, to a blob where it belongs and the layer's tree.
//!
//! ```text
//! buildkitd ──write──> queue ──> rafs::build (a thread of its own) ──> queue ──> registry upload
//! ```
//!
//! Both queues are short: whoever is slowest sets the pace, and memory stays bounded.
//!
//! - `conversion`: one conversion.
//! - `bridge`: between asynchronous tasks and the blocking thread.
//! - `cache`: what was converted before in this process's life.
//! - `dictionary`: where the blobs of a chunk dictionary are.
//! - `file`: layers that stay on this machine, as files, until it is known what they share.

mod bridge;
mod cache;
mod conversion;
mod dictionary;
mod file;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use registry::digest::Digest;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::conversion::Sink;
use crate::destination::{Destination, SpoolSpace, StoreError};
use crate::options::Recipe;

pub(crate) use bridge::{InputReader, OutputWriter};
pub use cache::{LayerCache, LayerKey};
pub use conversion::{
    BuiltLayer, ConvertError, ConvertedLayer, LayerConversion, ReadConversion, store_written,
};
pub use dictionary::{ChunkDict, DictionaryBlobs};
pub use file::{FileError, convert_to_file};

/// Converts layers by a recipe, a bounded number at a time.
#[derive(Clone, Debug)]
pub struct Converter {
    recipe: Arc<Recipe>,
    conversions: usize,
    slots: Arc<Semaphore>,
    /// For layers of which it is not known yet whose they are: they must not keep others waiting.
    ahead_slots: Arc<Semaphore>,
    cache: Arc<LayerCache>,
}

impl Converter {
    /// One that converts up to `conversions` layers at once (at least one) and keeps what it did in `cache_bytes` of memory.
    pub fn new(recipe: Recipe, conversions: usize, cache_bytes: usize) -> Self {
        let conversions = conversions.max(1);
        Self {
            recipe: Arc::new(recipe),
            conversions,
            slots: Arc::new(Semaphore::new(conversions)),
            ahead_slots: Arc::new(Semaphore::new(conversions)),
            cache: Arc::new(LayerCache::new(cache_bytes)),
        }
    }

    /// One for another recipe, which shares bounds and cache with this one.
    pub fn with(&self, recipe: Recipe) -> Self {
        Self { recipe: Arc::new(recipe), ..self.clone() }
    }

    /// How layers are converted and put together.
    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }

    /// Layers converted at once.
    pub fn conversions(&self) -> usize {
        self.conversions
    }

    /// Begins to convert a layer, its blob going to `destination`.
    pub fn convert(&self, destination: &Arc<dyn Destination>) -> LayerConversion {
        LayerConversion::start(Arc::clone(&self.recipe), Arc::clone(&self.slots), Arc::clone(destination))
    }

    /// Begins to convert the layer that `input` is, its blob going to `destination`.
    pub fn convert_read<R: Read + Send + 'static>(
        &self,
        input: R,
        destination: &Arc<dyn Destination>,
    ) -> ReadConversion<R> {
        let (recipe, slots) = (Arc::clone(&self.recipe), Arc::clone(&self.slots));
        ReadConversion::start(recipe, slots, Sink::At(Arc::clone(destination)), input)
    }

    /// Begins to convert the layer that `input` is, of which it is not known yet whose it is: its blob stays in `space`.
    pub fn convert_ahead<R: Read + Send + 'static>(
        &self,
        input: R,
        space: &Arc<SpoolSpace>,
    ) -> ReadConversion<R> {
        let (recipe, slots) = (Arc::clone(&self.recipe), Arc::clone(&self.ahead_slots));
        ReadConversion::start(recipe, slots, Sink::Spool(Arc::clone(space)), input)
    }

    /// Converts the files of the directory at `path`, the blob going to `destination`, unless `stop` is cancelled.
    pub async fn convert_directory(
        &self,
        path: PathBuf,
        destination: &Arc<dyn Destination>,
        stop: CancellationToken,
    ) -> Result<ConvertedLayer, ConvertError> {
        conversion::convert_directory(Arc::clone(&self.recipe), path, destination, stop).await
    }

    /// The layer that was made of `source` before by the same fingerprint, if its blob is at `destination` too (or can be put there without
    /// sending it).
    pub async fn cached(
        &self,
        source: &Digest,
        destination: &dyn Destination,
    ) -> Result<Option<Arc<ConvertedLayer>>, StoreError> {
        self.cache.find(&self.key(source), destination).await
    }

    /// Keeps what was made of `source`.
    pub fn remember(&self, source: &Digest, layer: Arc<ConvertedLayer>, destination: &dyn Destination) {
        self.cache.insert(self.key(source), layer, destination);
    }

    fn key(&self, source: &Digest) -> LayerKey {
        LayerKey { source: source.clone(), fingerprint: self.recipe.fingerprint().clone() }
    }
}
