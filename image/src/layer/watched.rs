//! A destination for tests, which keeps nothing and says what comes to it.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use registry::digest::Digest;
use registry::reference::Reference;
use tokio::sync::watch;

use crate::destination::{BlobWriter, Destination, Storing};
use crate::document::Stored;

/// What has come of blobs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrived {
    /// Blobs that were begun.
    pub(super) begun: usize,
    /// Bytes of all of them.
    pub(super) bytes: usize,
    /// Whether one was given up.
    pub(super) given_up: bool,
}

/// See the module. Its blobs are all one to it.
#[derive(Clone, Debug)]
pub(super) struct WatchedDestination(Arc<watch::Sender<Arrived>>);

impl WatchedDestination {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Arrived::default())))
    }

    /// What has come so far, and what comes from now on.
    pub(super) fn watch(&self) -> watch::Receiver<Arrived> {
        self.0.subscribe()
    }
}

impl Destination for WatchedDestination {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        self.0.send_modify(|arrived| arrived.begun += 1);
        ready(Ok(Box::new(self.clone()) as Box<dyn BlobWriter>)).boxed()
    }

    fn has_blob<'a>(&'a self, _digest: &'a Digest) -> Storing<'a, bool> {
        ready(Ok(false)).boxed()
    }

    fn publish<'a>(&'a self, _names: &'a [Reference], _root: Option<&'a Stored>) -> Storing<'a, ()> {
        ready(Ok(())).boxed()
    }
}

impl BlobWriter for WatchedDestination {
    fn write(&mut self, data: Bytes) -> Storing<'_, ()> {
        self.0.send_modify(|arrived| arrived.bytes += data.len());
        ready(Ok(())).boxed()
    }

    fn finish<'a>(self: Box<Self>, _digest: &'a Digest) -> Storing<'a, u64> {
        ready(Ok(self.0.borrow().bytes as u64)).boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.0.send_modify(|arrived| arrived.given_up = true);
        ready(()).boxed()
    }
}
