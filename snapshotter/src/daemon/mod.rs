//! The life of the daemon that serves the images.
//!
//! The daemon is a process in a session of its own and outlives the snapshotter: containers read through it. A
//! snapshotter that starts looks for it on its control socket first, and starts one only if nobody answers. A daemon that
//! ends is replaced, with growing pauses if that keeps happening, and the next one goes on with its mounts: this process
//! holds their descriptors meanwhile.

mod adopt;
mod held;
mod left;
mod process;
mod supervise;

use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use fuse_daemon::control::Client;
use tokio::sync::watch;

pub(crate) use ::service::describe;

use crate::broker::Broker;
use crate::config::DaemonConfig;
use held::Held;

/// How the daemon is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Condition {
    /// Being looked for or started.
    Starting,
    /// It answers. The number tells one daemon from the next.
    Ready(u64),
    /// The last attempt to find or start it failed; the next one follows.
    Failed(String),
}

/// The daemon, whichever process it is at the moment.
pub(crate) struct Daemon {
    config: DaemonConfig,
    client: Client,
    broker: Arc<Broker>,
    condition: watch::Sender<Condition>,
    /// Its process, if it is ready.
    process: AtomicU32,
    /// Daemons that were found or started.
    found: AtomicU64,
    /// The last process that was started here, and the last of these that ended, and how.
    started: AtomicU32,
    exit: watch::Sender<Option<(u32, ExitStatus)>>,
    /// Apart from the daemon's process, which may end at any time.
    held: Arc<Held>,
}

impl Daemon {
    /// Nothing happens until [`Self::supervise`] runs.
    pub(crate) fn new(config: DaemonConfig, broker: Arc<Broker>) -> Self {
        let client = Client::new(config.socket.path());
        let condition = watch::Sender::new(Condition::Starting);
        let (process, started) = (AtomicU32::new(0), AtomicU32::new(0));
        let (found, exit) = (AtomicU64::new(0), watch::Sender::new(None));
        let held = Arc::new(Held::of_manager());
        Self { config, client, broker, condition, process, found, started, exit, held }
    }

    /// Daemons that were found or started so far.
    pub(crate) fn found_count(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Mounts that are held.
    pub(crate) fn held_count(&self) -> usize {
        self.held.len()
    }

    /// A client whose requests have a deadline.
    pub(crate) fn client(&self, deadline: Duration) -> Client {
        self.client.clone().with_deadline(deadline)
    }

    /// How it is now.
    pub(crate) fn condition(&self) -> Condition {
        self.condition.borrow().clone()
    }

    /// Whether it is the daemon with this process id that is ready: one that has just come is to take over first what is held.
    pub(crate) fn is_ready(&self, process: u32) -> bool {
        matches!(self.condition(), Condition::Ready(_)) && self.process.load(Ordering::Relaxed) == process
    }

    /// Follows how it is.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// Waits until it answers; the caller sets the deadline. Gives the number of [`Condition::Ready`].
    pub(crate) async fn ready(&self) -> u64 {
        let mut condition = self.subscribe();
        loop {
            if let Condition::Ready(generation) = *condition.borrow_and_update() {
                return generation;
            }
            if condition.changed().await.is_err() {
                // The sender lives as long as `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until it is no longer the daemon of that number.
    pub(crate) async fn gone(&self, generation: u64) {
        // The sender lives as long as `self`, so this cannot fail.
        let _ = self.subscribe().wait_for(|condition| *condition != Condition::Ready(generation)).await;
    }
}
