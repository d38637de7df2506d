//! What an output's options need before its first layer: the chunk dictionary, the list of paths, room for layers that are
//! flattened. It is got when the first layer comes and not before, because buildkitd has to hear of a build within three
//! seconds of its client's first call for it.

use std::sync::Arc;

use cluster::save::LayerSpace;
use image::destination::{Destination, DiskSpace, StoreError};
use image::layer::{ChunkDict, ChunkDictError, Converter, Scratch, ScratchSpace};
use image::location::Location;
use image::options::{Options, OptionsError, Pattern, Recipe};
use registry::client::Client;

use super::documents::ChangeRoom;
use super::name_turns::NameTurns;
use crate::client::ContextFiles;
use crate::grpc::{Code, Status};

/// What is needed to prepare an output.
pub(crate) struct Preparation {
    /// What bounds and remembers all conversions of the process.
    pub(crate) converter: Converter,
    /// Worker threads of a conversion.
    pub(crate) threads: usize,
    /// Room for layers that are flattened.
    pub(crate) scratch_space: Arc<ScratchSpace>,
    /// Room for documents.
    pub(crate) document_space: Arc<DiskSpace>,
    /// Room in memory for documents that are changed.
    pub(crate) change_room: Arc<ChangeRoom>,
    /// Room for archives of container images, and for images that are put together of several.
    pub(crate) together_space: Arc<DiskSpace>,
    /// Room for layers of container images that wait until it is known what they share.
    pub(crate) layer_space: Arc<LayerSpace>,
    /// Which build changes the index of which name.
    pub(crate) name_turns: Arc<NameTurns>,
    /// Reaches registries with the credentials of whoever builds.
    pub(crate) client: Client,
    /// The files of whoever builds, where there are any.
    pub(crate) files: Option<ContextFiles>,
}

/// What converts an output's layers.
pub(crate) struct Prepared {
    /// Puts the image together.
    pub(crate) image: Converter,
    /// Converts a layer that comes.
    pub(crate) layer: Converter,
    /// Where layers go that are to be flattened.
    pub(crate) scratch: Option<Arc<Scratch>>,
}

/// Why an output cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Dictionary(#[from] ChunkDictError),
    #[error("prefetch-list={name}: {}", status.message)]
    List { name: String, status: Status },
    #[error(transparent)]
    Scratch(#[from] StoreError),
}

impl Preparation {
    /// Gets what `options` need for an image that goes to `destination`, which need be known only if there is a dictionary.
    pub(crate) async fn prepare(
        &self,
        options: &Options,
        destination: Option<&dyn Destination>,
    ) -> Result<Prepared, PrepareError> {
        let listed = match &options.prefetch_list {
            Some(name) => {
                let failed = |status| PrepareError::List { name: name.clone(), status };
                let missing = || {
                    failed(Status::new(
                        Code::InvalidArgument,
                        "expected a build context (`--local context=DIR`)",
                    ))
                };
                let list = self.files.as_ref().ok_or_else(missing)?.read(name).await;
                Pattern::list(&list.map_err(failed)?)
            }
            None => Vec::new(),
        };
        let dictionary = match &options.chunk_dict {
            Some(name) => Some(ChunkDict::load(name, self.client_for(name, destination)).await?),
            None => None,
        };
        let image = self.converter.with(Recipe::new(options.clone(), dictionary, listed, self.threads)?);
        if !options.flatten {
            return Ok(Prepared { layer: image.clone(), image, scratch: None });
        }
        let scratch = Some(Arc::new(self.scratch_space.begin().await?));
        Ok(Prepared { layer: image.for_scratch(), image, scratch })
    }

    /// Reaches the registry of the image `name`: as the output's own is reached, if it is that one.
    fn client_for<'a>(&'a self, name: &str, destination: Option<&'a dyn Destination>) -> &'a Client {
        let Ok(Location::Registry(reference)) = name.parse() else { return &self.client };
        let own = destination.and_then(Destination::repository);
        let own = own.filter(|(_, repository)| repository.host() == reference.repository().host());
        own.map_or(&self.client, |(client, _)| client)
    }
}

impl Prepared {
    /// Where layers go, where that is not the output's own destination.
    pub(crate) fn destination(&self) -> Option<Arc<dyn Destination>> {
        let scratch = self.scratch.as_ref()?;
        Some(Arc::<Scratch>::clone(scratch))
    }
}
