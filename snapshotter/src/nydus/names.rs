//! The names of an image. Each of their repositories has its blobs.
//!
//! containerd prepares a layer once, for the image that brings it first. Other images with the same layers, of another
//! repository or registry, are names that containerd alone knows. It is asked whenever a container begins to use the image,
//! without keeping that waiting.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_daemon::control::{BackendSpec, Client};
use tracing::{Instrument, debug, info, warn};

use super::images::{CONTROL_DEADLINE, Image, Images, mount_id};
use crate::broker::repositories;
use crate::containerd::{self, Caller, LookupError};
use crate::daemon::describe;
use crate::error::{Error, MountFailure};
use crate::state::{MountedImage, SnapshotId};
use crate::tasks::blocking;

/// The images whose names are being asked for.
#[derive(Default)]
pub(super) struct Names(Mutex<BTreeSet<SnapshotId>>);

impl Names {
    fn asking(&self) -> MutexGuard<'_, BTreeSet<SnapshotId>> {
        // A set stays whole whatever its user does.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is added to an image that is gone.
    pub(super) fn forget(&self, id: SnapshotId) {
        self.asking().remove(&id);
    }
}

impl Images {
    /// Asks containerd, in the background, for the names of a mounted image, and gives the daemon the repositories that it
    /// does not know yet.
    pub(crate) fn learn_names(
        self: &Arc<Self>,
        containerd: PathBuf,
        caller: Caller,
        image: Image,
        chain_ids: Vec<String>,
    ) {
        if !self.names.asking().insert(image.id) {
            return;
        }
        let images = Arc::clone(self);
        let span = tracing::info_span!(
            parent: None, "names", image = image.reference, snapshot = %image.id, mount = mount_id(image.id)
        );
        let learning = async move {
            let names = containerd::images_unpacked_to(&containerd, &caller, &chain_ids).await;
            let learnt = match names {
                // It need not be there; the next container asks again.
                Err(error @ LookupError::Connect(..)) => {
                    debug!(error = describe(&error), "containerd cannot be asked for names");
                    Ok(())
                }
                Err(error) => Err(describe(&error)),
                Ok(names) => images.add_names(&image, names).await.map_err(|error| describe(&error)),
            };
            if let Err(error) = learnt {
                warn!(error, "cannot learn the names of an image");
            }
            images.names.forget(image.id);
        };
        tokio::spawn(learning.instrument(span));
    }

    /// Adds those of `names` that are new.
    async fn add_names(&self, image: &Image, names: Vec<String>) -> Result<(), Error> {
        let Some(mounted) = self.mounted_image(image.id).await? else { return Ok(()) };
        let known: Vec<_> = names_and(&mounted).filter_map(|name| BackendSpec::of_image(name).ok()).collect();
        let backends = backends(&names, &known);
        if backends.is_empty() || !self.names.asking().contains(&image.id) {
            return Ok(());
        }
        let client = self.daemon.client(CONTROL_DEADLINE);
        let blob = mounted.blobs.first().and_then(|blob| blob.parse().ok());
        self.broker.find_out_new(&repositories(&backends), blob.as_ref()).await;
        self.broker.hand_out(&client, &backends).await;
        let added = client.add_backends(&mount_id(image.id), &backends).await;
        added.map_err(|error| Error::Daemon { problem: describe(&error) })?;
        self.hold_with_names(image, &client).await?;
        let names: Vec<_> = names.into_iter().filter(|name| *name != mounted.reference).collect();
        info!(names = names.join(", "), "the image has other names");
        let (state, id, image) = (Arc::clone(&self.state), image.id, MountedImage { names, ..mounted });
        blocking(move || state.remember_image(id, &image)).await
    }

    /// Has the next daemon read from them from the first read on: what comes corrupt from one repository, another one has.
    async fn hold_with_names(&self, image: &Image, client: &Client) -> Result<(), Error> {
        let mount = mount_id(image.id);
        let held = self.daemon.hold(client, &mount).await;
        // Whoever unmounts it forgets its names first, and then lets go of it: one of the two comes last.
        if !self.names.asking().contains(&image.id) {
            self.daemon.release(&mount);
        }
        held.map_err(|error| Error::Daemon { problem: describe(&error) })
    }

    /// What an image was when it was mounted last.
    pub(super) async fn known_of(&self, image: &Image) -> Result<MountedImage, MountFailure> {
        let mounted = self.mounted_image(image.id).await;
        let mounted = mounted.map_err(|error| MountFailure::Unavailable(describe(&error)))?;
        Ok(mounted.unwrap_or_default())
    }

    async fn mounted_image(&self, id: SnapshotId) -> Result<Option<MountedImage>, Error> {
        let state = Arc::clone(&self.state);
        let images = blocking(move || state.images()).await?;
        Ok(images.into_iter().find_map(|(found, image)| (found == id).then_some(image)))
    }
}

fn names_and(image: &MountedImage) -> impl Iterator<Item = &String> {
    std::iter::once(&image.reference).chain(&image.names)
}

/// The repositories of images, without those that are known, each once.
pub(super) fn backends(names: &[String], known: &[BackendSpec]) -> Vec<BackendSpec> {
    let mut found = Vec::new();
    for backend in names.iter().filter_map(|name| BackendSpec::of_image(name).ok()) {
        if !known.contains(&backend) && !found.contains(&backend) {
            found.push(backend);
        }
    }
    found
}
