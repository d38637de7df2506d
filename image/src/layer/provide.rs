//! The blob of a layer that was converted before, at another destination: mounted or copied from where it is. And the layer
//! itself, where that is to be there as well.

use std::time::Duration;

use registry::client::Client;
use registry::digest::Digest;
use registry::reference::Repository;
use tokio::time::timeout;

use super::cache::Known;
use crate::destination::{Destination, StoreError, mounted};

/// From so many repositories a blob is fetched from other registries before it is made again, or a layer mounted before it is
/// sent.
const COPIES: usize = 3;

/// Within so long another registry has to say whether it has a blob: it is not the one that anybody asked for.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Has the blob of `known` at `destination`, without making it again. `false` where it can be had nowhere.
pub(super) async fn provide(known: &Known, destination: &dyn Destination) -> Result<bool, StoreError> {
    let digest = &known.layer.digest;
    if destination.has_blob(digest).await? {
        return Ok(true);
    }
    let Some((client, repository)) = destination.repository() else { return Ok(false) };
    let others = || known.repositories.iter().filter(|from| *from != repository);
    for from in others().filter(|from| from.host() == repository.host()) {
        if mounted(client, repository, from, digest).await? {
            return Ok(true);
        }
    }
    for from in others().take(COPIES) {
        if copy(client, from, digest, destination).await? {
            tracing::info!(blob = %digest, %from, to = %repository, "blob copied");
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the registry that `destination` is in made the layer `source`, as it is, part of it: from a repository that has the
/// blob which it became.
pub(super) async fn mount_source(
    known: &Known,
    source: &Digest,
    destination: &dyn Destination,
) -> Result<bool, StoreError> {
    let Some((client, repository)) = destination.repository() else { return Ok(false) };
    let siblings =
        known.repositories.iter().filter(|from| *from != repository && from.host() == repository.host());
    for from in siblings.take(COPIES) {
        if mounted(client, repository, from, source).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies a blob from the repository `from`; `false` if it cannot be read there.
async fn copy(
    client: &Client,
    from: &Repository,
    digest: &Digest,
    destination: &dyn Destination,
) -> Result<bool, StoreError> {
    let unreadable = |error: &dyn std::fmt::Display| tracing::debug!(%error, %from, "blob not copied");
    match timeout(ANSWER_WITHIN, client.blob_size(from, digest)).await {
        Ok(Ok(Some(_))) => {}
        Ok(Ok(None)) => return Ok(false),
        Ok(Err(error)) => {
            unreadable(&error);
            return Ok(false);
        }
        Err(error) => {
            unreadable(&error);
            return Ok(false);
        }
    }
    let mut reader = client.blob(from, digest)?;
    let mut writer = destination.begin().await?;
    loop {
        match reader.next().await {
            Ok(Some(piece)) => writer.write(piece).await?,
            Ok(None) => return writer.finish(digest).await.map(|_| true),
            Err(error) => {
                unreadable(&error);
                writer.cancel().await;
                return Ok(false);
            }
        }
    }
}
