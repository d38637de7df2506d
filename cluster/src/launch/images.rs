//! Saved container images as nodes are told of them.

use registry::Repository;

use super::error::LaunchError;
use super::task::Images;
use crate::lock::Lock;
use crate::saved::SavedImages;
use crate::serve;

/// What nodes are told of the images that were saved to `repository`, for a cluster image with `lock`.
///
/// # Errors
///
/// When they are others than the lock says, or were not saved as RAFS.
pub fn images(
    saved: &SavedImages,
    repository: &Repository,
    lock: Option<&Lock>,
) -> Result<Images, LaunchError> {
    let name = format!("{repository}@{}", saved.digest());
    lock.map_or(Ok(()), |lock| saved.expect(lock))
        .map_err(|error| LaunchError::wrong(&name, error.to_string()))?;
    let hosts = serve::hosts(saved).map_err(|error| LaunchError::wrong(name, error.to_string()))?;
    let (repository, digest) = (repository.to_string(), saved.digest().clone());
    Ok(Images { repository, digest, hosts, only_lazily: false })
}
