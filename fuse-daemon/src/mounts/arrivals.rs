//! Mounts of a daemon that has ended which this one is about to serve: not served yet, and in use by programs.

use std::collections::BTreeSet;

use tokio::sync::watch;

/// Their ids.
#[derive(Debug, Default)]
pub(super) struct Arrivals(watch::Sender<BTreeSet<String>>);

/// A mount is on its way, until this is dropped.
#[derive(Debug)]
pub struct Arrival<'a> {
    id: String,
    arrivals: &'a Arrivals,
}

impl Arrivals {
    /// Says that a mount is on its way, as soon as nobody else does.
    pub(super) async fn begin(&self, id: &str) -> Arrival<'_> {
        while !self.0.send_if_modified(|ids| ids.insert(id.to_owned())) {
            self.over(id).await;
        }
        Arrival { id: id.to_owned(), arrivals: self }
    }

    /// Waits until a mount is not on its way.
    pub(super) async fn over(&self, id: &str) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.0.subscribe().wait_for(|ids| !ids.contains(id)).await;
    }

    /// Those that are on their way, in order.
    pub(super) fn ids(&self) -> Vec<String> {
        self.0.borrow().iter().cloned().collect()
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.arrivals.0.send_if_modified(|ids| ids.remove(&self.id));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_is_on_its_way_and_others_wait_for_it() {
        let arrivals = Arrivals::default();
        let first = arrivals.begin("a").await;
        let _other = arrivals.begin("b").await;
        assert_eq!(arrivals.ids(), ["a", "b"]);
        let mut second = Box::pin(arrivals.begin("a"));
        assert!(second.as_mut().now_or_never().is_none() && arrivals.over("a").now_or_never().is_none());
        drop(first);
        let second = second.await;
        assert_eq!(arrivals.ids(), ["a", "b"]);
        drop(second);
        arrivals.over("a").await;
        assert_eq!(arrivals.ids(), ["b"]);
    }
}
