//! One repository of a registry, that of the cluster image, for all images: one credential reads them. What names them there is
//! in `set`.

use image::source::Source;
use registry::Repository;
use registry::client::{Client, Descriptor};

use super::SaveError;
use super::plan::Plan;

/// Has the blob in the repository; returns the bytes that were fetched.
pub(crate) async fn bring(
    client: &Client,
    repository: &Repository,
    source: &Source,
    blob: &Descriptor,
) -> Result<u64, SaveError> {
    let digest = blob.digest();
    if client.has_blob(repository, digest).await? {
        return Ok(0);
    }
    if let Some(from) = source.repository()
        && from != repository
        && client.mount_blob(repository, from, digest).await?
    {
        return Ok(0);
    }
    let mut stream = source.blob(blob).await?;
    let mut upload = client.begin_upload(repository).await?;
    let mut bytes = 0;
    loop {
        let piece = match stream.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => break,
            Err(error) => {
                upload.cancel().await;
                return Err(error.into());
            }
        };
        bytes += piece.len() as u64;
        upload.write(piece).await?;
    }
    upload.finish(digest).await?;
    Ok(bytes)
}

/// Puts those manifests of an image that are saved as they are, all of whose blobs are there.
pub(crate) async fn push(client: &Client, repository: &Repository, plan: &Plan) -> Result<(), SaveError> {
    for manifest in &plan.plain {
        let reference = repository.with_digest(manifest.descriptor.digest().clone());
        if client.head_manifest(&reference).await?.is_none() {
            let media_type = manifest.descriptor.media_type().to_string();
            client.put_manifest(&reference, &media_type, manifest.content.clone()).await?;
        }
    }
    Ok(())
}
