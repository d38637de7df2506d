//! From the bytes of an OCI layer, while they come, to a blob where it belongs and the layer's tree.
//!
//! ```text
//! buildkitd ──write──> queue ──> rafs::build (a thread of its own) ──> queue ──> registry upload
//! ```
//!
//! Both queues are short: whoever is slowest sets the pace, and memory stays bounded.
//!
//! - `conversion`: one conversion.
//! - `ahead`: one of which it is not known yet whose it is.
//! - `bridge`: between asynchronous tasks and the blocking thread.
//! - `plain`: what comes without its compression, and its diff id.
//! - `key`: what a converted layer is known by.
//! - `cache`: what was converted before.
//! - `flatten`: many layers as one.
//! - `flight`: what is being converted, so that nobody does it twice.
//! - `slot`: the right to convert, of which there are few.
//! - `provide`: blobs that are somewhere else, mounted or copied.
//! - `implied`: directories that a layer has no entry for.
//! - `announce`: what a manifest says of its blobs, so that others need not make them again.
//! - `present`: layers that are at the image's name already, as others announced them.
//! - `dictionary`: where the blobs of a chunk dictionary are.
//! - `scratch`: layers that stay on this machine, as files, until it is known what becomes of them.

mod ahead;
mod announce;
mod bridge;
mod cache;
mod conversion;
mod dictionary;
mod flatten;
mod flight;
mod implied;
mod key;
mod plain;
mod present;
mod provide;
mod scratch;
mod slot;
#[cfg(test)]
mod watched;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use registry::digest::Digest;
use registry::reference::Repository;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::cache::Known;
use self::flight::{Claim, Flights, STALLED_AFTER, Waited, Waiting};
use self::key::Key;
use self::provide::{Elsewhere, Shown};
use crate::destination::{Destination, SpoolSpace, StoreError};
use crate::options::Recipe;
use crate::progress::Progress;

pub use ahead::AheadConversion;
pub(crate) use announce::announcement;
pub(crate) use bridge::{InputReader, OutputWriter};
pub use cache::LayerCache;
pub use conversion::{
    BuiltLayer, ConvertError, ConvertedLayer, LayerConversion, ReadConversion, store_written,
};
pub use dictionary::{ChunkDict, ChunkDictError, DictionaryBlobs};
pub use flight::Flight;
pub use present::Present;
pub use scratch::{FileError, Scratch, ScratchSpace, convert_to_file};
pub use slot::{Slot, Slots};

/// Converts layers by a recipe, a bounded number at a time.
#[derive(Clone, Debug)]
pub struct Converter {
    recipe: Arc<Recipe>,
    conversions: usize,
    slots: Arc<Semaphore>,
    /// For layers of which it is not known yet whose they are: they must not keep others waiting.
    ahead_slots: Arc<Semaphore>,
    cache: Arc<LayerCache>,
    flights: Arc<Flights>,
    /// Of the one image that this converts.
    elsewhere: Arc<Elsewhere>,
    /// Where it is shown what moves without being converted.
    shown: Option<Shown>,
}

/// What is known of a layer that has to be converted.
#[derive(Debug)]
pub enum Claimed {
    /// It was converted before, and its blob is at the destination.
    Known(Arc<ConvertedLayer>),
    /// It is to be converted, and others who want it wait for that as long as the flight is held.
    Absent(Option<Flight>),
}

impl Converter {
    /// One that converts up to `conversions` layers at once (at least one) and keeps what it did in `cache`.
    pub fn new(recipe: Recipe, conversions: usize, cache: LayerCache) -> Self {
        let conversions = conversions.max(1);
        Self {
            recipe: Arc::new(recipe),
            conversions,
            slots: Arc::new(Semaphore::new(conversions)),
            ahead_slots: Arc::new(Semaphore::new(conversions)),
            cache: Arc::new(cache),
            flights: Arc::default(),
            elsewhere: Arc::default(),
            shown: None,
        }
    }

    /// How many layers are converted at once, for others who convert some.
    pub fn slots(&self) -> Slots {
        Slots::of(&self.slots)
    }

    /// The same, which shows the blobs that it copies as parts of the export step of `output`.
    pub fn showing(self, progress: Arc<Progress>, output: usize) -> Self {
        Self { shown: Some(Shown { progress, output }), ..self }
    }

    /// One for another image and its recipe, which shares with this one what bounds and remembers conversions.
    pub fn with(&self, recipe: Recipe) -> Self {
        Self { recipe: Arc::new(recipe), elsewhere: Arc::default(), ..self.clone() }
    }

    /// One for the layers that this one is to flatten, which go to a [`Scratch`].
    pub fn for_scratch(&self) -> Self {
        self.with(self.recipe.for_scratch())
    }

    /// Makes one layer of `layers`, whose blobs are in `scratch`, the lowest first: what their files show, and nothing that is
    /// deleted or overwritten. Its blob goes to `destination`. One that was made of the same layers before, here or by whoever made
    /// what is `present`, is made again only if its blob is nowhere any more.
    ///
    /// # Errors
    ///
    /// When the layers cannot be merged or read, or the blob cannot be stored.
    pub async fn flatten(
        &self,
        layers: Vec<Arc<ConvertedLayer>>,
        scratch: &Arc<Scratch>,
        present: &Present,
        destination: &Arc<dyn Destination>,
    ) -> Result<Arc<ConvertedLayer>, ConvertError> {
        // A directory's files have no digest that would say what they were.
        let sources: Option<Vec<Digest>> = layers.iter().map(|layer| layer.source.clone()).collect();
        if let Some(sources) = &sources
            && let Some(known) = self.flattened(sources.iter(), present, destination.as_ref()).await?
        {
            return Ok(known);
        }
        let slot = Slot::take(Arc::clone(&self.slots)).await;
        let recipe = Arc::clone(&self.recipe);
        let mut made = flatten::flatten(recipe, layers, Arc::clone(scratch), destination, slot).await?;
        made.source = sources.map(|sources| flatten::source(sources.iter(), &self.recipe));
        let made = Arc::new(made);
        self.remember(&made, None, destination.as_ref());
        Ok(made)
    }

    /// The one layer that was made of `layers` before, by their digests, the lowest first, as it is known here or says what is
    /// `present`: its blob is at `destination` now. `None` if there is none, or its blob is nowhere any more.
    ///
    /// # Errors
    ///
    /// When the destination says no.
    pub async fn flattened(
        &self,
        layers: impl Iterator<Item = &Digest>,
        present: &Present,
        destination: &dyn Destination,
    ) -> Result<Option<Arc<ConvertedLayer>>, StoreError> {
        let key = self.key(&flatten::source(layers, &self.recipe));
        let known = self.cache.find(&key, &self.recipe).await;
        match self.provided(&key, known, destination).await? {
            Some(layer) => Ok(Some(layer)),
            None => self.found(&key, present, destination).await,
        }
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
        ReadConversion::start(recipe, slots, Arc::clone(destination), input)
    }

    /// Begins to convert the layer that `input` is, of which it is not known yet whose it is: its blob stays in `space` until that is said.
    pub fn convert_ahead<R: Read + Send + 'static>(
        &self,
        input: R,
        space: &Arc<SpoolSpace>,
    ) -> AheadConversion<R> {
        let (recipe, slots) = (Arc::clone(&self.recipe), Arc::clone(&self.ahead_slots));
        AheadConversion::start(recipe, slots, Arc::clone(space), input)
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

    fn key(&self, source: &Digest) -> Key {
        Key::new(self.recipe.fingerprint(), source)
    }

    /// What there is of the layer `source`: made before, with its blob at `destination` or put there without making it again,
    /// or being made by somebody else, which this waits for, or in `present`. Else the caller is to convert it.
    pub async fn claim(
        &self,
        source: &Digest,
        present: &Present,
        destination: &dyn Destination,
    ) -> Result<Claimed, StoreError> {
        let key = self.key(source);
        loop {
            let known = self.cache.find(&key, &self.recipe).await;
            let unknown = known.is_none();
            if let Some(layer) = self.provided(&key, known, destination).await? {
                return Ok(Claimed::Known(layer));
            }
            match self.flights.claim(&key) {
                // Somebody may have ended just now.
                Claim::Ours(_) if unknown && self.cache.is_in_memory(&key) => {}
                Claim::Ours(flight) => {
                    let found = self.found(&key, present, destination).await?;
                    return Ok(found.map_or(Claimed::Absent(Some(flight)), Claimed::Known));
                }
                Claim::Others(waiting) => {
                    if let Some(claimed) = self.wait(&key, waiting, destination).await? {
                        return Ok(claimed);
                    }
                }
            }
        }
    }

    /// Waits for a layer that somebody else converts; `None` if that was given up.
    async fn wait(
        &self,
        key: &Key,
        waiting: Waiting,
        destination: &dyn Destination,
    ) -> Result<Option<Claimed>, StoreError> {
        let layer = key.source();
        tracing::debug!(%layer, "another export converts this layer: waiting for it");
        let is_busy = || self.slots.available_permits() == 0;
        Ok(match waiting.ended(STALLED_AFTER, is_busy).await {
            Waited::Landed(layer, repository) => {
                let known = Known { layer, repositories: repository.into_iter().collect() };
                let layer = self.provided(key, Some(known), destination).await?;
                Some(layer.map_or(Claimed::Absent(None), Claimed::Known))
            }
            Waited::GivenUp => None,
            Waited::Stalled => {
                tracing::info!(%layer, "another export of this layer is stalled: converting it here");
                Some(Claimed::Absent(None))
            }
        })
    }

    /// The layer as the repository that `destination` is has it: known from before, or from what is `present`.
    async fn found(
        &self,
        key: &Key,
        present: &Present,
        destination: &dyn Destination,
    ) -> Result<Option<Arc<ConvertedLayer>>, StoreError> {
        let Some((client, repository)) = destination.repository() else { return Ok(None) };
        let key = key.within(repository);
        let known = self.cache.find(&key, &self.recipe).await;
        if let Some(layer) = self.provided(&key, known, destination).await? {
            return Ok(Some(layer));
        }
        let Some(layer) = present.layer(key.source(), &self.recipe, (client, repository)).await else {
            return Ok(None);
        };
        let layer = Arc::new(layer);
        if !destination.has_blob(&layer.digest).await? {
            return Ok(None);
        }
        self.cache.insert(&key.of_layer(&layer), &layer, Some(repository));
        Ok(Some(layer))
    }

    /// A known layer, if its blob can be put at `destination`.
    async fn provided(
        &self,
        key: &Key,
        known: Option<Known>,
        destination: &dyn Destination,
    ) -> Result<Option<Arc<ConvertedLayer>>, StoreError> {
        let Some(known) = known else { return Ok(None) };
        if !provide::provide(&known, destination, &self.elsewhere, self.shown.as_ref()).await? {
            return Ok(None);
        }
        self.cache.used(key, &known.layer, repository_of(destination));
        Ok(Some(known.layer))
    }

    /// Has the layer `source` itself at `destination`, as it is, where it is in a repository of the same registry that has the
    /// blob which it became. `false`: it has to be sent.
    pub async fn mount_source(
        &self,
        source: &Digest,
        destination: &dyn Destination,
    ) -> Result<bool, StoreError> {
        match self.cache.find(&self.key(source), &self.recipe).await {
            Some(known) => provide::mount_source(&known, source, destination).await,
            None => Ok(false),
        }
    }

    /// Keeps what was made of a layer, whose blob is at `destination`, and tells those who wait for it.
    pub fn remember(
        &self,
        layer: &Arc<ConvertedLayer>,
        flight: Option<Flight>,
        destination: &dyn Destination,
    ) {
        if let Some(source) = &layer.source {
            self.cache.insert(&self.key(source), layer, repository_of(destination));
        }
        if let Some(flight) = flight {
            flight.land(Arc::clone(layer), destination);
        }
    }

    /// Waits until what was kept so far is where it stays after this process.
    pub async fn settled(&self) {
        self.cache.settled().await;
    }
}

fn repository_of(destination: &dyn Destination) -> Option<&Repository> {
    destination.repository().map(|(_, repository)| repository)
}
