//! Who converts which layer now: whoever wants one that another converts waits for it instead.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::conversion::ConvertedLayer;
use super::key::Key;
use crate::destination::Destination;
use registry::reference::Repository;

/// Without a sign of progress for so long, a layer is converted by whoever waits for it: the other's registry may hang.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(5);

/// The layers that are being converted.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Key, watch::Receiver<State>>>);

/// How far a layer is.
#[derive(Clone, Debug)]
enum State {
    /// Signs of progress so far.
    Going(u64),
    /// It is converted, and its blob is in this repository, if it is in one.
    Landed(Arc<ConvertedLayer>, Option<Repository>),
}

/// The right to convert a layer, while others wait for it. Dropped, it is given up.
#[derive(Debug)]
pub struct Flight {
    key: Key,
    flights: Arc<Flights>,
    state: watch::Sender<State>,
}

/// What came of a claim.
pub(super) enum Claim {
    /// Nobody else converts it.
    Ours(Flight),
    /// Somebody does.
    Others(Waiting),
}

/// The wait for a layer that somebody else converts.
pub(super) struct Waiting(watch::Receiver<State>);

/// How a wait ended.
pub(super) enum Waited {
    /// The layer, and the repository that has its blob.
    Landed(Arc<ConvertedLayer>, Option<Repository>),
    /// It was given up.
    GivenUp,
    /// It makes no progress.
    Stalled,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<State>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the conversion of a layer.
    pub(super) fn claim(self: &Arc<Self>, key: &Key) -> Claim {
        let mut flights = self.lock();
        if let Some(other) = flights.get(key) {
            return Claim::Others(Waiting(other.clone()));
        }
        let (state, receiver) = watch::channel(State::Going(0));
        flights.insert(key.clone(), receiver);
        Claim::Ours(Flight { key: key.clone(), flights: Arc::clone(self), state })
    }
}

impl Flight {
    /// Tells those who wait that the layer gets on.
    pub fn progress(&self) {
        self.state.send_modify(|state| {
            if let State::Going(signs) = state {
                *signs += 1;
            }
        });
    }

    /// The layer is converted, and its blob is at `destination`.
    pub(super) fn land(self, layer: Arc<ConvertedLayer>, destination: &dyn Destination) {
        self.state.send_replace(State::Landed(
            layer,
            destination.repository().map(|(_, repository)| repository.clone()),
        ));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

impl Waiting {
    /// Waits for the layer until nothing was heard of it for `silence`, and longer if `is_busy` says that nothing could be
    /// converted here either.
    pub(super) async fn ended(mut self, silence: Duration, is_busy: impl Fn() -> bool) -> Waited {
        loop {
            match timeout(silence, self.0.changed()).await {
                Ok(Ok(())) => {
                    if let State::Landed(layer, repository) = self.0.borrow_and_update().clone() {
                        return Waited::Landed(layer, repository);
                    }
                }
                Ok(Err(_)) => return Waited::GivenUp,
                Err(_) if is_busy() => {}
                Err(_) => return Waited::Stalled,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rafs::tree::{Layer, Tree};

    use super::*;
    use crate::destination::Nowhere;
    use crate::options::Recipe;

    const SILENCE: Duration = Duration::from_millis(50);

    fn claim(flights: &Arc<Flights>) -> Result<Flight, Waiting> {
        let recipe = Recipe::default();
        match flights.claim(&Key::new(recipe.fingerprint(), &registry::digest::sha256(b"layer"))) {
            Claim::Ours(flight) => Ok(flight),
            Claim::Others(waiting) => Err(waiting),
        }
    }

    fn layer() -> Arc<ConvertedLayer> {
        let layer = Layer { tree: Tree::new(), blobs: Vec::new() };
        let digest = registry::digest::sha256(b"blob");
        Arc::new(ConvertedLayer { layer, digest, size: 1, source: None, diff_id: None, toc: None })
    }

    #[tokio::test]
    async fn one_converts_and_all_others_get_what_it_made() {
        let flights = Arc::new(Flights::default());
        let flight = claim(&flights).ok().unwrap();
        let waiting: Vec<_> =
            (0..3).map(|_| claim(&flights).err().unwrap().ended(Duration::MAX, || false)).collect();
        flight.progress();
        flight.land(layer(), &Nowhere);
        for waited in futures::future::join_all(waiting).await {
            assert!(matches!(waited, Waited::Landed(layer, None) if layer.size == 1));
        }
        assert!(claim(&flights).is_ok());
    }

    #[tokio::test]
    async fn a_wait_ends_with_what_it_waits_for_or_when_that_stalls() {
        let flights = Arc::new(Flights::default());
        let flight = claim(&flights).ok().unwrap();
        let other = || claim(&flights).err().unwrap();
        assert!(matches!(other().ended(SILENCE, || false).await, Waited::Stalled));
        // Who cannot do anything else waits on.
        assert!(timeout(SILENCE * 5, other().ended(SILENCE, || true)).await.is_err());
        let waiting = other();
        drop(flight);
        assert!(matches!(waiting.ended(Duration::MAX, || false).await, Waited::GivenUp));
    }
}
