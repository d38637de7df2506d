//! Where copies put blobs in a registry, so that none is sent twice: what one repository has is mounted by the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::{Client, Error};
use crate::digest::Digest;
use crate::reference::Repository;

/// A repository that has the blob, once one has.
type Holder = AsyncMutex<Option<Repository>>;

/// What copies to the repositories of a registry share.
#[derive(Debug, Default)]
pub struct PlacedBlobs {
    places: Mutex<HashMap<Digest, Arc<Holder>>>,
}

/// The right to copy a blob, which nobody else has meanwhile.
#[derive(Debug)]
pub struct Turn {
    digest: Digest,
    place: OwnedMutexGuard<Option<Repository>>,
}

/// How a blob came to be where a copy wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// It did not: it is to be sent.
    Absent,
    /// A copy put it there before.
    Present,
    /// The registry took it over from another repository of its own.
    Mounted,
}

impl PlacedBlobs {
    /// Waits until nobody else copies the blob `digest`.
    pub async fn turn(&self, digest: &Digest) -> Turn {
        let place = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(places.entry(digest.clone()).or_default())
        };
        Turn { digest: digest.clone(), place: place.lock_owned().await }
    }
}

impl Turn {
    /// Has the blob in the repository `to` without sending it, if a copy has put it somewhere in that registry.
    ///
    /// # Errors
    ///
    /// When the registry does not answer.
    pub async fn place(&self, client: &Client, to: &Repository) -> Result<Placing, Error> {
        match self.place.as_ref() {
            Some(at) if at == to => Ok(Placing::Present),
            Some(at) if client.mount_blob(to, at, &self.digest).await? => Ok(Placing::Mounted),
            _ => Ok(Placing::Absent),
        }
    }

    /// The blob is in the repository `at` now.
    pub fn done(mut self, at: &Repository) {
        *self.place = Some(at.clone());
    }
}
