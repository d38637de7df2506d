//! Leaving a containerd that goes on without us: what only we have is taken from it, so that it pulls that again.
//!
//! What refers to our snapshots goes, and containerd's garbage collection takes these away. One by one they could not be removed: where it has
//! collected a snapshot before, the one below says for ever that there is something on it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    CreateRequest, DeleteImageRequest, DeleteRequest, Info, ListNamespacesRequest, UpdateRequest,
};
use prost_types::FieldMask;
use tonic::{Code, Request, Response, Status};

use crate::containerd::{CONFIG, LookupError, Query, UNPACKED_TO, connect};

/// Each image and snapshot is removed from containerd's database, and snapshots from our own.
const DEADLINE: Duration = Duration::from_secs(120);
/// A lease that is given back at once, which has garbage collected.
const LEASE: &str = "nydus-cluster-forgets";

/// Removes from containerd all snapshots that it has of us, whom it calls `snapshotter`, and the images whose layers are nowhere
/// else: without them their names would stand for nothing. Images whose layers it has stay. Returns the names that went.
///
/// # Errors
///
/// When containerd cannot be reached, refuses, or takes too long. It may be called again.
pub async fn forget(socket: &Path, snapshotter: &str) -> Result<Vec<String>, LookupError> {
    let forgetting = async {
        let channel = connect(socket).await?;
        let request = Request::new(ListNamespacesRequest::default());
        let namespaces = NamespacesClient::new(channel.clone()).list(request).await?.into_inner().namespaces;
        let mut names = Vec::new();
        for namespace in namespaces {
            let query = Query { channel: channel.clone(), namespace: &namespace.name };
            names.extend(query.forget_images(snapshotter).await?);
            query.collect_garbage().await?;
            query.forget_snapshots(snapshotter).await?;
        }
        Ok(names)
    };
    match tokio::time::timeout(DEADLINE, forgetting).await {
        Ok(result) => result,
        Err(_) => Err(LookupError::Deadline(DEADLINE)),
    }
}

impl Query<'_> {
    /// Removes images that only we have, and what says of the others that we have them.
    async fn forget_images(&self, snapshotter: &str) -> Result<Vec<String>, LookupError> {
        let label = format!("{UNPACKED_TO}{snapshotter}");
        let configs = self.found(vec![format!("labels.{label:?}")]).await?;
        let mut ours = BTreeSet::new();
        for manifest in self.labelled(CONFIG, &configs).await? {
            if self.lacks_layers(&manifest).await? {
                ours.insert(manifest);
            }
        }
        let names = if ours.is_empty() { Vec::new() } else { self.images_of(&ours).await? };
        for name in &names {
            let request = DeleteImageRequest { name: name.clone(), ..Default::default() };
            gone(ImagesClient::new(self.channel.clone()).delete(self.request(request)?).await)?;
        }
        for digest in configs {
            // A label without a value is none.
            let info = Info { digest, ..Default::default() };
            let mask = FieldMask { paths: vec![format!("labels.{label}")] };
            let request = UpdateRequest { info: Some(info), update_mask: Some(mask) };
            gone(ContentClient::new(self.channel.clone()).update(self.request(request)?).await)?;
        }
        Ok(names)
    }

    async fn collect_garbage(&self) -> Result<(), LookupError> {
        let mut client = LeasesClient::new(self.channel.clone());
        let create = CreateRequest { id: LEASE.to_owned(), ..Default::default() };
        match client.create(self.request(create)?).await {
            // Of one of us that was interrupted.
            Err(status) if status.code() != Code::AlreadyExists => return Err(status.into()),
            _ => {}
        }
        let delete = DeleteRequest { id: LEASE.to_owned(), sync: true };
        gone(client.delete(self.request(delete)?).await)
    }

    /// Whether containerd does not have all layers of a manifest.
    async fn lacks_layers(&self, manifest: &str) -> Result<bool, LookupError> {
        let document: serde_json::Value =
            serde_json::from_slice(&self.content(manifest.to_owned()).await?).unwrap_or_default();
        for layer in document["layers"].as_array().into_iter().flatten() {
            let Some(digest) = layer["digest"].as_str() else { continue };
            if self.info(digest).await?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes what containers hold still, as far as that is possible.
    async fn forget_snapshots(&self, snapshotter: &str) -> Result<(), LookupError> {
        let mut client = SnapshotsClient::new(self.channel.clone());
        let request = ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), filters: Vec::new() };
        let mut found = client.list(self.request(request)?).await?.into_inner();
        let mut keys = Vec::new();
        while let Some(message) = found.message().await? {
            keys.extend(message.info.into_iter().map(|info| info.name));
        }
        for key in keys {
            let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key };
            match client.remove(self.request(request)?).await {
                // Something is on it: it goes with that, the next time that garbage is collected.
                Err(status) if status.code() == Code::FailedPrecondition => {}
                result => gone(result)?,
            }
        }
        Ok(())
    }
}

/// What came of a call that removes something: that it is not there any more is just as well.
fn gone<T>(result: Result<Response<T>, Status>) -> Result<(), LookupError> {
    match result {
        Err(status) if status.code() != Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}
