//! Images that the node itself runs from: they are mounted after each start.
//!
//! One has a number as a snapshot has, which names its bootstrap's directory and its mount, and is nobody else's.

use redb::{ReadableTable as _, Table};
use serde::{Deserialize, Serialize};

use super::sets::{decode, encode};
use super::write::number_is_taken;
use super::{ChainSource, FailedAction, LazyLayer, NODE_IMAGES, NUMBERS, SnapshotId, State};
use crate::control::NodeImage;
use crate::error::Error;

/// A node image, and its number.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct StoredNodeImage {
    pub(crate) id: SnapshotId,
    pub(crate) image: NodeImage,
}

impl StoredNodeImage {
    /// The same as a layer that shows all of the image, which is what is mounted.
    pub(crate) fn layer(&self) -> LazyLayer {
        let NodeImage { name, backends, bootstrap, blobs } = self.image.clone();
        LazyLayer {
            set: name,
            chain: bootstrap.diff_id.clone(),
            // Where an image has no data, its bootstrap is asked for alone.
            blob: blobs.first().unwrap_or(&bootstrap.digest).clone(),
            backends,
            source: ChainSource::Merged(bootstrap),
            blobs,
        }
    }
}

type NodeImages<'t> = Table<'t, &'static str, &'static [u8]>;

impl State {
    /// Stores a node image that was checked, instead of one of its name.
    pub(crate) fn put_node_image(&self, stored: &StoredNodeImage) -> Result<(), Error> {
        let name = stored.image.name.as_str();
        let transaction = self.write("store a node image")?;
        {
            let mut images = transaction.open_table(NODE_IMAGES).during("store a node image")?;
            let mut numbers = transaction.open_table(NUMBERS).during("store a node image")?;
            images.insert(name, encode(name, stored)?.as_slice()).during("store a node image")?;
            number_is_taken(&mut numbers, stored.id)?;
        }
        transaction.commit().during("store a node image")
    }

    /// Forgets a node image; what it was, if there was one of that name.
    pub(crate) fn remove_node_image(&self, name: &str) -> Result<Option<StoredNodeImage>, Error> {
        let transaction = self.write("forget a node image")?;
        let removed = {
            let mut images: NodeImages<'_> =
                transaction.open_table(NODE_IMAGES).during("forget a node image")?;
            let removed = images.remove(name).during("forget a node image")?;
            removed.map(|value| decode(name, value.value())).transpose()?
        };
        transaction.commit().during("forget a node image")?;
        Ok(removed)
    }

    /// The node image of that name.
    pub(crate) fn node_image(&self, name: &str) -> Result<Option<StoredNodeImage>, Error> {
        let images = self.read()?.open_table(NODE_IMAGES).during("read a node image")?;
        let found = images.get(name).during("read a node image")?;
        found.map(|value| decode(name, value.value())).transpose()
    }

    /// All node images, in order of their names.
    pub(crate) fn node_images(&self) -> Result<Vec<StoredNodeImage>, Error> {
        let images = self.read()?.open_table(NODE_IMAGES).during("read the node images")?;
        let mut found = Vec::new();
        for entry in images.iter().during("read the node images")? {
            let (name, value) = entry.during("read the node images")?;
            found.push(decode(name.value(), value.value())?);
        }
        Ok(found)
    }
}
