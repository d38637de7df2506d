//! Where a converted image goes, and how it gets its name there.

use std::sync::Arc;

use crate::location::Location;
use registry::client::Client;
use registry::reference::Reference;

use super::error::ConversionError;
use super::tree::ImageNode;
use crate::destination::{Destination, InRegistry, Shape, Staging};
use crate::document::Stored;

/// Where an image goes.
pub(super) struct Target {
    location: String,
    names: Vec<Reference>,
    destination: Arc<dyn Destination>,
    /// Where the parts of a nydus image are gathered, if those are to be made.
    files: Option<Arc<Staging>>,
}

impl Target {
    /// The target at `location`; what is there already is not touched before [`Target::publish`].
    pub(super) fn new(location: &Location, client: &Client) -> Result<Self, ConversionError> {
        let text = location.to_string();
        let shape = match location {
            Location::Registry(name) if name.digest().is_some() => {
                return Err(ConversionError::NameWithDigest { location: text });
            }
            Location::Registry(name) => {
                let destination = Arc::new(InRegistry::new(client.clone(), name.repository().clone()));
                return Ok(Self { location: text, names: vec![name.clone()], destination, files: None });
            }
            Location::Oci(place) => (&place.path, Shape::Oci { name: place.image.clone() }),
            Location::OciArchive(place) => (&place.path, Shape::OciArchive { name: place.image.clone() }),
            Location::Files(path) => (path, Shape::Files),
            Location::DockerArchive(_) | Location::Package(_) | Location::Directory(_) => {
                return Err(ConversionError::NotWritable { location: text });
            }
        };
        let is_files = shape.1 == Shape::Files;
        let staging = Staging::new(shape.0, shape.1).map(Arc::new);
        let staging =
            staging.map_err(|error| ConversionError::Store { what: text.clone(), error: Box::new(error) })?;
        let files = is_files.then(|| Arc::clone(&staging));
        Ok(Self { location: text, names: Vec::new(), destination: Arc::new(staging), files })
    }

    /// Where blobs and manifests go.
    pub(super) fn destination(&self) -> Arc<dyn Destination> {
        Arc::clone(&self.destination)
    }

    /// The folder of a nydus image's parts, if that is what is to be made.
    pub(super) fn files(&self) -> Option<&Arc<Staging>> {
        self.files.as_ref()
    }

    /// The names that the image gets in a registry.
    pub(super) fn names(&self) -> &[Reference] {
        &self.names
    }

    /// Whether these images can go there.
    pub(super) fn check(&self, images: &[&ImageNode], also_oci: bool) -> Result<(), ConversionError> {
        if self.files().is_none() {
            return Ok(());
        }
        let location = self.location.clone();
        if also_oci {
            return Err(ConversionError::NoRoomForPlainImage { location });
        }
        if images.len() > 1 {
            let platforms: Vec<_> = images.iter().map(|image| image.platform.to_string()).collect();
            return Err(ConversionError::SeveralPlatforms { location, platforms: platforms.join(", ") });
        }
        Ok(())
    }

    /// Gives the image its name.
    pub(super) async fn publish(self, root: Option<&Stored>) -> Result<(), ConversionError> {
        let published = self.destination.publish(&self.names, root).await;
        published.map_err(|error| ConversionError::Store { what: self.location, error: Box::new(error) })
    }
}
