//! The bootstrap of what a layer of an image set shows. It is made once, by the daemon, when a container first needs it, and is in
//! the layer's directory from then on.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::{MutexGuard, PoisonError};

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{
    BackendSpec, BlobId, BootstrapRequest, BootstrapSource, Client, ClientError, LayerTree,
};
use registry::digest::Digest;
use tracing::warn;

use super::images::{CONTROL_DEADLINE, Image, Images, failure, mount_id};
use crate::broker::repositories;
use crate::daemon::describe;
use crate::error::{Error, MountFailure};
use crate::state::{self, ChainSource, LazyLayer, SnapshotId};
use crate::tasks::blocking;

impl Images {
    /// Has a mounted image of an image set read from whom sets name now as well.
    pub(crate) async fn tell_backends(&self, image: &Image) -> Result<(), Error> {
        let Some(layer) = &image.lazy else { return Ok(()) };
        let client = self.daemon.client(CONTROL_DEADLINE);
        self.broker.find_out_new(&repositories(&layer.backends), Some(&layer.blob)).await;
        self.broker.hand_out(&client, &layer.backends).await;
        match client.add_backends(&mount_id(image.id), &layer.backends).await {
            // It is told when it is mounted.
            Err(ClientError::Reported { kind: ErrorKind::Unknown, .. }) => return Ok(()),
            told => told.map_err(|error| Error::Daemon { problem: describe(&error) })?,
        }
        // The next daemon is to know as well, from its first read on.
        let held = self.daemon.hold(&client, &mount_id(image.id)).await;
        held.map_err(|error| Error::Daemon { problem: describe(&error) })?;
        self.note_told(image.id, &layer.backends);
        Ok(())
    }

    /// The same before a container is made on it, if sets name somebody of whom the daemon does not know: while no container was on
    /// the image it was not told.
    pub(super) async fn tell_new_backends(&self, image: &Image) {
        let Some(layer) = &image.lazy else { return };
        let is_told = |told: &Vec<BackendSpec>| layer.backends.iter().all(|backend| told.contains(backend));
        if self.told().get(&image.id).is_some_and(is_told) {
            return;
        }
        if let Err(error) = self.tell_backends(image).await {
            let error = describe(&error);
            warn!(image = image.reference, error, "cannot tell who has an image's blobs");
        }
    }

    /// The daemon reads a mounted image of a set from these.
    pub(super) fn note_told(&self, id: SnapshotId, backends: &[BackendSpec]) {
        self.told().insert(id, backends.to_vec());
    }

    pub(super) fn told(&self) -> MutexGuard<'_, HashMap<SnapshotId, Vec<BackendSpec>>> {
        // A map stays whole whatever its user does.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the bootstrap made, unless it is there.
pub(super) async fn ensure_bootstrap(
    client: &Client,
    image: &Image,
    layer: &LazyLayer,
) -> Result<(), MountFailure> {
    let target = image.bootstrap.clone();
    let is_there = blocking(move || {
        // What is there is whole: it was put there at once.
        match target.symlink_metadata() {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("examine the bootstrap", target)(error)),
        }
        let folder = target.parent().unwrap_or(&target);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(Error::io("make directory", folder))?;
        Ok(false)
    });
    let is_there = is_there.await.map_err(|error| MountFailure::Unavailable(describe(&error)))?;
    if is_there {
        return Ok(());
    }
    let request = BootstrapRequest {
        target: image.bootstrap.clone(),
        image: image.reference.clone(),
        backends: layer.backends.clone(),
        source: source(&layer.source)?,
    };
    client.make_bootstrap(&request).await.map_err(failure)
}

fn source(source: &ChainSource) -> Result<BootstrapSource, MountFailure> {
    Ok(match source {
        ChainSource::Merged(bootstrap) => BootstrapSource::Packed {
            blob: blob(&bootstrap.digest)?,
            size: bootstrap.size,
            diff_id: blob(&bootstrap.diff_id)?,
        },
        ChainSource::Layers(layers) => {
            BootstrapSource::Layers { layers: layers.iter().map(tree).collect::<Result<_, _>>()? }
        }
    })
}

fn tree(layer: &state::LayerTree) -> Result<LayerTree, MountFailure> {
    let state::LayerTree { blob: of, size, toc, tree } = layer;
    Ok(LayerTree {
        blob: blob(of)?,
        size: *size,
        toc: blob(toc)?,
        offset: tree.offset,
        stored_bytes: tree.size,
        digest: blob(&tree.digest)?,
        bytes: tree.uncompressed_size,
    })
}

/// A digest as the daemon has it.
fn blob(digest: &Digest) -> Result<BlobId, MountFailure> {
    digest.as_ref().parse().map_err(|_| MountFailure::Image(format!("{digest} is no SHA-256 digest")))
}
