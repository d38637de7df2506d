//! Blobs on their way: several at once, and each once, however many images have it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::future::join_all;
use image::source::Source;
use registry::Digest;
use registry::client::Descriptor;
use tokio::sync::{OnceCell, Semaphore};

use super::{SaveError, Target};

/// What became of a blob: it is there, or why not.
type Outcome = OnceCell<Result<(), String>>;

/// The blobs of all images.
pub(crate) struct Transfers {
    target: Target,
    slots: Semaphore,
    blobs: Mutex<HashMap<Digest, Arc<Outcome>>>,
}

impl Transfers {
    pub(crate) fn new(target: Target, at_once: usize) -> Self {
        Self { target, slots: Semaphore::new(at_once.max(1)), blobs: Mutex::default() }
    }

    /// Has all of `blobs` at the target; the bytes of each that were fetched now, for this image.
    pub(crate) async fn all(&self, source: &Source, blobs: &[Descriptor]) -> Vec<Result<u64, SaveError>> {
        join_all(blobs.iter().map(|blob| self.one(source, blob))).await
    }

    async fn one(&self, source: &Source, blob: &Descriptor) -> Result<u64, SaveError> {
        let cell = {
            let mut blobs = self.blobs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            blobs.entry(blob.digest().clone()).or_default().clone()
        };
        let mut fetched = Ok(0);
        let result = cell.get_or_init(async || {
            let _slot = self.slots.acquire().await;
            match self.bring(source, blob).await {
                Ok(bytes) => {
                    fetched = Ok(bytes);
                    Ok(())
                }
                Err(error) => {
                    let reason = error.to_string();
                    fetched = Err(error);
                    Err(reason)
                }
            }
        });
        let result = result.await;
        // Whoever fetched it has the whole reason, the others its text.
        match (fetched, result) {
            (Err(error), _) => Err(error),
            (Ok(bytes), Ok(())) => Ok(bytes),
            (Ok(_), Err(reason)) => {
                Err(SaveError::Blob { digest: blob.digest().clone(), reason: reason.clone() })
            }
        }
    }

    /// Has the blob at the target; returns the bytes that were fetched.
    async fn bring(&self, source: &Source, blob: &Descriptor) -> Result<u64, SaveError> {
        match &self.target {
            Target::Layout(layout) => layout.bring(source, blob).await,
            Target::Repository { client, repository } => {
                super::repository::bring(client, repository, source, blob).await
            }
        }
    }
}
