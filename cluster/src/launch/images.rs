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
    for image in lock.into_iter().flat_map(|lock| &lock.images) {
        // One that was not saved is pulled from where it comes from.
        let found = saved.lock().get(&image.reference);
        if let Some(found) = found.filter(|found| found.digest != image.digest) {
            let reason = format!(
                "{} is {} in it, and {} in the cluster image's lock: save the images of this cluster image",
                image.reference, found.digest, image.digest
            );
            return Err(LaunchError::wrong(name, reason));
        }
    }
    let hosts = serve::hosts(saved).map_err(|error| LaunchError::wrong(name, error.to_string()))?;
    Ok(Images { repository: repository.to_string(), digest: saved.digest().clone(), hosts })
}
