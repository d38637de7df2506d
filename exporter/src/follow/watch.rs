//! Waiting for changes in a directory.

use std::io;
use std::path::Path;

use inotify::{EventStream, Inotify, WatchMask};
use tokio_stream::StreamExt as _;

/// Room for as many events as the kernel gives at once.
const EVENTS_BYTES: usize = 4096;

/// Tells that something has changed, not what: whoever waits looks again.
#[derive(Debug)]
pub(super) struct Watch(EventStream<[u8; EVENTS_BYTES]>);

impl Watch {
    /// Watches the directory at `path`. What changes from now on is not missed, however late it is waited for.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let watch = Self(Inotify::init()?.into_event_stream([0; EVENTS_BYTES])?);
        watch.add(path)?;
        Ok(watch)
    }

    /// Watches the directory at `path` as well.
    pub(super) fn add(&self, path: &Path) -> io::Result<()> {
        // Entries that come and go, and writes to the files among them.
        let changes = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        self.0.watches().add(path, changes)?;
        Ok(())
    }

    /// Waits until something has changed since the last time.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let event = self.0.next().await;
        event.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())).map(drop)
    }
}
