//! Images of the node itself, as the control socket has them: mounted from a start on, whatever containers there are.
//!
//! One is mounted like an image of containers, and held like it. What differs is that no snapshot names it, so what it needs is in a row of
//! its own, and that its blobs are pinned: after a start containers may fill the cache before it is mounted again, and without a registry it
//! could not come back.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fuse_daemon::control::BlobId;
use registry::digest::Digest;
use tracing::warn;

use super::Snapshotter;
use crate::control::{NodeImage, NodeImageStatus};
use crate::daemon::describe;
use crate::error::Error;
use crate::nydus::{self, Image};
use crate::state::StoredNodeImage;

/// How long until another attempt to mount what cannot be mounted: the node waits for it.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked whether somebody has unmounted one.
const LOOK: Duration = Duration::from_secs(5);
/// How long the daemon may take to pin blobs.
const PIN_DEADLINE: Duration = Duration::from_secs(10);

impl Snapshotter {
    /// Mounts an image, and remembers that it is to be mounted, instead of one of its name. Where it is, and whether anything is otherwise
    /// than before.
    pub(crate) async fn mount_node_image(&self, image: NodeImage) -> Result<(PathBuf, bool), Error> {
        image.check()?;
        let name = image.name.clone();
        let known = self.on_state(move |state| state.node_image(&name)).await?;
        let same = known.as_ref().filter(|known| known.image.shows_as(&image));
        let stored = StoredNodeImage { id: same.map_or_else(|| self.new_id(), |same| same.id), image };
        let shown = self.image_of_node(&stored);
        let mountpoint = shown.mountpoint.clone();
        if known.as_ref() == Some(&stored) {
            self.images.ensure(shown).await?;
            return Ok((mountpoint, false));
        }
        // Until there is a record of it, neither clean-up nor a full cache may take it away.
        let pending = self.pending.protect(stored.id);
        let in_use = self.images.about_to_use(stored.id);
        let served = self.serve_new(&shown, known.as_ref().filter(|known| known.id == stored.id)).await;
        let recorded = match served {
            Ok(()) => self.on_state(move |state| state.put_node_image(&stored)).await,
            Err(error) => Err(error),
        };
        drop((in_use, pending));
        // What was mounted under its name goes now, or what could not be mounted.
        if recorded.is_err() || known.is_some() {
            self.clean_up_after_node_image(known.as_ref()).await;
        }
        recorded.map(|()| (mountpoint, true))
    }

    /// Has an image serve that is not recorded as it is now. `before`: its mount has been recorded already, with other backends.
    async fn serve_new(&self, image: &Image, before: Option<&StoredNodeImage>) -> Result<(), Error> {
        self.images.ensure(image.clone()).await?;
        if before.is_some() {
            self.images.tell_backends(image).await?;
        }
        self.pin(image.lazy.iter().flat_map(|layer| &layer.blobs), true).await
    }

    /// Has an image of the node mounted no longer; whether there was one of that name.
    pub(crate) async fn unmount_node_image(&self, name: String) -> Result<bool, Error> {
        let removed = self.on_state(move |state| state.remove_node_image(&name)).await?;
        if removed.is_some() {
            self.clean_up_after_node_image(removed.as_ref()).await;
        }
        Ok(removed.is_some())
    }

    /// All images of the node, in order of their names.
    pub(crate) async fn node_images(&self) -> Result<Vec<NodeImageStatus>, Error> {
        let stored = self.on_state(|state| state.node_images()).await?;
        let status = |stored: StoredNodeImage| NodeImageStatus {
            mountpoint: self.directories.mountpoint(stored.id),
            mounted: self.images.is_mounted(stored.id),
            name: stored.image.name,
            backends: stored.image.backends,
        };
        Ok(stored.into_iter().map(status).collect())
    }

    /// The same as they are mounted.
    pub(super) async fn images_of_node(&self) -> Result<Vec<Image>, Error> {
        let stored = self.on_state(|state| state.node_images()).await?;
        Ok(stored.iter().map(|stored| self.image_of_node(stored)).collect())
    }

    /// Keeps the node's images mounted, whatever daemon there is and whoever unmounts one; never returns.
    pub(crate) async fn keep_node_images(&self) {
        loop {
            let generation = self.daemon.ready().await;
            let pause = if self.ensure_node_images().await { LOOK } else { RETRY };
            // The next daemon is waited for above.
            _ = tokio::time::timeout(pause, self.daemon.gone(generation)).await;
        }
    }

    /// Mounts those that are not; whether all are.
    async fn ensure_node_images(&self) -> bool {
        let images = match self.images_of_node().await {
            Ok(images) => images,
            Err(error) => {
                warn!(error = describe(&error), "cannot tell which images the node itself needs");
                return false;
            }
        };
        let mut all = true;
        for image in images {
            // The attempt is in the log.
            all &= self.images.ensure(image.clone()).await.is_ok();
            let id = image.id;
            match self.on_state(move |state| state.ids()).await {
                Ok(live) if !live.contains(&id) => self.clean_up_after_node_image(None).await,
                _ => {}
            }
        }
        all
    }

    /// Frees what is left of an image that was mounted, if there was one, or could not be.
    async fn clean_up_after_node_image(&self, gone: Option<&StoredNodeImage>) {
        let unpinned = match gone {
            Some(gone) => self.unpin(gone).await,
            None => Ok(()),
        };
        if let Err(error) = unpinned {
            warn!(error = describe(&error), "blobs of an image that the node needed stay pinned");
        }
        if let Err(error) = self.cleanup().await {
            warn!(error = describe(&error), "cannot clean up");
        }
    }

    /// Pins the blobs of an image no longer that no other image of the node has.
    async fn unpin(&self, gone: &StoredNodeImage) -> Result<(), Error> {
        let others = self.on_state(|state| state.node_images()).await?;
        let is_needed = |blob: &&Digest| others.iter().any(|other| other.image.blobs.contains(blob));
        self.pin(gone.image.blobs.iter().filter(|blob| !is_needed(blob)), false).await
    }

    async fn pin(&self, blobs: impl Iterator<Item = &Digest>, pinned: bool) -> Result<(), Error> {
        let blobs: Vec<BlobId> = blobs.filter_map(|blob| blob.as_ref().parse().ok()).collect();
        let done = self.daemon.client(PIN_DEADLINE).pin(&blobs, pinned).await;
        done.map_err(|error| Error::Daemon { problem: describe(&error) })
    }

    fn image_of_node(&self, stored: &StoredNodeImage) -> Image {
        Image {
            id: stored.id,
            reference: stored.image.name.clone(),
            bootstrap: nydus::bootstrap_in(&self.directories.upper(stored.id)),
            mountpoint: self.directories.mountpoint(stored.id),
            lazy: Some(Arc::new(stored.layer())),
        }
    }
}
