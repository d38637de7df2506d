//! Work that blocks, off the threads that must not.

use crate::error::Error;

/// Runs `work` on a thread that may block. It runs to its end even if the caller goes away.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Internal(format!("a task did not end: {error}"))),
    }
}
