//! Having a daemon go on with the mounts that are held.
//!
//! Programs in containers have files of them open, and wait. A mount that is let go of is their end, so that is done only where
//! no daemon will ever serve it. What the daemon cannot serve for now, such as an image for which the registry is needed and does
//! not answer, holds up no other mount.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{Client, ClientError, Summary};
use nix::libc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::held::{Held, HeldMount, HeldMounts};
use super::{Condition, Daemon, describe};
use crate::nydus::mountinfo;
use crate::tasks::blocking;

/// How long a daemon may take for one mount: longer than its own patience with a registry, which some need.
pub(super) const ADOPTION_DEADLINE: Duration = Duration::from_secs(40);
/// The same the first time, while all others wait: longer than on a busy machine for one that needs no registry.
const FIRST_DEADLINE: Duration = Duration::from_secs(10);
/// How many mounts it is given at once.
const ADOPTIONS_AT_ONCE: usize = 16;
/// How often it is asked for one that it refuses …
const ATTEMPTS: u32 = 4;
/// … with this pause …
const PAUSE: Duration = Duration::from_millis(250);
/// … and no longer than this, as all others wait for the last one.
const PATIENCE: Duration = Duration::from_secs(5);
/// After that it is asked so often, while others are served.
const RETRY: Duration = Duration::from_secs(2);
/// How long a mount is held that the daemon refuses: programs had better fail at last than wait for ever.
const REFUSED_LIMIT: Duration = Duration::from_secs(600);
/// What may count against a mount, by how daemons ended that took it over, until it is thought to be the reason.
const BLAME_LIMIT: u32 = 30;
/// An end of the daemon's own doing, and …
const FAULT: u32 = 6;
/// … one that somebody else wanted: whoever sends signals, at any moment, or the kernel when memory is short.
const KILLED: u32 = 1;
/// How long it may take until it is known how the daemon ended.
const NOTICE: Duration = Duration::from_secs(1);

/// The daemon ended while it took a mount over.
struct Ended {
    id: String,
    mount: Arc<HeldMount>,
    error: ClientError,
}

impl Daemon {
    /// Has the daemon serve what is held and it does not serve yet, and holds what it serves in `ours`. A mount that it
    /// will never serve is let go, to be mounted again. An error: the daemon ended meanwhile; everything is held on.
    pub(super) async fn take_over(&self, ours: &Path, summary: &Summary) -> Result<(), String> {
        let served: BTreeSet<&str> = summary.mounts.iter().map(|mount| mount.id.as_str()).collect();
        self.adopt_all(self.held.without(&served), (ATTEMPTS, FIRST_DEADLINE), summary.pid).await?;
        let client = self.client(ADOPTION_DEADLINE);
        for mount in summary.mounts.iter().filter(|mount| mount.mountpoint.starts_with(ours)) {
            self.hold(&client, &mount.id).await.map_err(|error| describe(&error))?;
        }
        Ok(())
    }

    /// Asks the daemon for what it has refused until it refuses nothing, or ends.
    pub(super) async fn take_over_rest(&self, pid: u32) {
        loop {
            let refused = self.held.refused();
            if refused.is_empty() {
                return;
            }
            tokio::time::sleep(RETRY).await;
            let before = refused.len();
            if self.adopt_all(refused, (1, ADOPTION_DEADLINE), pid).await.is_err() {
                // Whoever watches the daemon sees its end.
                return;
            }
            if self.held.refused().len() < before {
                // What was let go is to be mounted, and what is served to be held as it is now.
                let is_ready = |condition: &mut Condition| matches!(condition, Condition::Ready(_));
                self.condition.send_if_modified(is_ready);
            }
        }
    }

    /// Gives the daemon mounts, each so often and with so much time. What it does not take over by then is noted as refused.
    async fn adopt_all(
        &self,
        mounts: HeldMounts,
        (attempts, deadline): (u32, Duration),
        pid: u32,
    ) -> Result<(), String> {
        let permits = Arc::new(Semaphore::new(ADOPTIONS_AT_ONCE));
        let mut adopting = JoinSet::new();
        for (id, mount) in mounts {
            let (client, held) = (self.client(deadline), Arc::clone(&self.held));
            let permits = Arc::clone(&permits);
            adopting.spawn(async move {
                let _permit = permits.acquire_owned().await;
                let adopted = adopt(&client, &held, &id, &mount, attempts).await;
                adopted.map_err(|error| Ended { id, mount, error })
            });
        }
        let (mut result, mut in_work) = (Ok(()), Vec::new());
        while let Some(adopted) = adopting.join_next().await {
            match adopted {
                Ok(Ok(())) => {}
                Ok(Err(ended)) => {
                    result = result.and(Err(describe(&ended.error)));
                    if matches!(ended.error, ClientError::Broken { .. }) {
                        in_work.push(ended);
                    }
                }
                Err(panic) => result = result.and(Err(panic.to_string())),
            }
        }
        if !in_work.is_empty() {
            self.blame(in_work, pid).await;
        }
        result
    }

    /// Lets go of those over which too many daemons have ended.
    async fn blame(&self, mounts: Vec<Ended>, pid: u32) {
        let blame = if self.has_failed(pid).await { FAULT } else { KILLED };
        for Ended { id, mount, .. } in mounts {
            if mount.ended.fetch_add(blame, Ordering::Relaxed) + blame >= BLAME_LIMIT {
                warn!(mount = id, "too many daemons ended while they took over this mount; letting it go");
                self.held.let_go(&id, &mount);
            }
        }
    }

    /// Whether a daemon that this process started ended over a fault of its own.
    async fn has_failed(&self, pid: u32) -> bool {
        if self.started.load(Ordering::Relaxed) != pid {
            return false;
        }
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(|exit| exit.is_some_and(|(of, _)| of == pid));
        let ended = tokio::time::timeout(NOTICE, ended).await;
        ended.is_ok_and(|exit| exit.is_ok_and(|exit| exit.is_some_and(|(_, status)| failed(status))))
    }
}

fn failed(status: ExitStatus) -> bool {
    match status.signal() {
        Some(signal) => ![libc::SIGKILL, libc::SIGTERM, libc::SIGINT].contains(&signal),
        None => !status.success(),
    }
}

/// Has the daemon go on serving a mount, or lets go of it, or notes that it is refused for now. An error: the daemon ended
/// meanwhile.
async fn adopt(
    client: &Client,
    held: &Held,
    id: &str,
    mount: &Arc<HeldMount>,
    attempts: u32,
) -> Result<(), ClientError> {
    let begun = Instant::now();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let error = match client.adopt(&mount.handover, mount.descriptor.as_fd()).await {
            Ok(()) => break,
            Err(error @ (ClientError::Connect { .. } | ClientError::Broken { .. })) => return Err(error),
            Err(error) => error,
        };
        if !held.is_held(id, mount) {
            return Ok(());
        }
        if attempt < attempts && begun.elapsed() < PATIENCE {
            debug!(mount = id, error = describe(&error), "the daemon does not take over a mount yet");
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let since = mount.note_refusal(true).unwrap_or(begun);
        if is_final(&error) || since.elapsed() > REFUSED_LIMIT || !is_in_place(mount).await {
            warn!(mount = id, error = describe(&error), "the daemon cannot take over a mount; letting it go");
            held.let_go(id, mount);
        } else {
            warn!(
                mount = id,
                error = describe(&error),
                "the daemon cannot take over a mount yet; who reads from it waits"
            );
        }
        return Ok(());
    }
    mount.ended.store(0, Ordering::Relaxed);
    mount.note_refusal(false);
    if held.is_held(id, mount) {
        info!(mount = id, "taken over");
        return Ok(());
    }
    // Somebody released it to have it unmounted, which this daemon may have answered before it had the mount.
    client.umount(id).await
}

/// Whether another attempt would end the same way.
fn is_final(error: &ClientError) -> bool {
    match error {
        ClientError::Reported { kind, .. } => *kind != ErrorKind::Failed,
        ClientError::TooLarge { .. } | ClientError::Protocol { .. } => true,
        ClientError::Connect { .. } | ClientError::Broken { .. } | ClientError::Deadline { .. } => false,
    }
}

/// Whether a mount is where it was: it is not asked, nor touched.
async fn is_in_place(mount: &HeldMount) -> bool {
    let (place, device) = (mount.handover.mount.mountpoint.clone(), mount.handover.device);
    blocking(move || mountinfo::has_device(&place, device)).await.unwrap_or(true)
}
