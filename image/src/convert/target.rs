//! Where a converted image goes, and how it gets its name there.

use std::sync::Arc;

use crate::location::Location;
use registry::client::Client;
use registry::reference::Reference;
use serde_json::json;

use super::error::ConversionError;
use super::tree::ImageNode;
use crate::destination::{Destination, Shape, Staging, StoreError};
use crate::document::Stored;

/// Where an image goes.
pub(super) struct Target {
    location: String,
    kind: Kind,
}

enum Kind {
    Registry { client: Client, name: Reference },
    Local(Arc<Staging>),
}

impl Target {
    /// The target at `location`; what is there already is not touched before [`Target::publish`].
    pub(super) fn new(location: &Location, client: &Client) -> Result<Self, ConversionError> {
        let text = location.to_string();
        let stage = |path, shape| {
            let staging = Staging::new(path, shape);
            let staging = staging
                .map_err(|error| ConversionError::Store { what: text.clone(), error: Box::new(error) })?;
            Ok::<_, ConversionError>(Kind::Local(Arc::new(staging)))
        };
        let kind = match location {
            Location::Registry(name) if name.digest().is_some() => {
                return Err(ConversionError::NameWithDigest { location: text });
            }
            Location::Registry(name) => Kind::Registry { client: client.clone(), name: name.clone() },
            Location::Oci(place) => stage(&place.path, Shape::Oci { name: place.image.clone() })?,
            Location::OciArchive(place) => {
                stage(&place.path, Shape::OciArchive { name: place.image.clone() })?
            }
            Location::Files(path) => stage(path, Shape::Files)?,
            Location::DockerArchive(_) | Location::Directory(_) => {
                return Err(ConversionError::NotWritable { location: text });
            }
        };
        Ok(Self { location: text, kind })
    }

    /// Where blobs and manifests go.
    pub(super) fn destination(&self) -> Destination {
        match &self.kind {
            Kind::Registry { client, name } => {
                Destination::Registry { client: client.clone(), repository: name.repository().clone() }
            }
            Kind::Local(staging) => Destination::Local(Arc::clone(staging)),
        }
    }

    /// The folder of a nydus image's parts, if that is what is to be made.
    pub(super) fn files(&self) -> Option<&Arc<Staging>> {
        match &self.kind {
            Kind::Local(staging) if *staging.shape() == Shape::Files => Some(staging),
            _ => None,
        }
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
        let published = match self.kind {
            Kind::Registry { client, name } => match root {
                Some(root) => {
                    let put = client.put_manifest(&name, &root.media_type, root.content.clone()).await;
                    put.map(drop).map_err(StoreError::from)
                }
                None => Ok(()),
            },
            Kind::Local(staging) => {
                let descriptor = root.map(|root| {
                    json!({
                        "mediaType": root.media_type,
                        "digest": root.digest.as_ref(),
                        "size": root.content.len(),
                    })
                });
                staging.commit(descriptor).await
            }
        };
        published.map_err(|error| ConversionError::Store { what: self.location, error: Box::new(error) })
    }
}
