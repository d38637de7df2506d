//! Finding, starting and replacing the daemon.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fuse_daemon::control::Status;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Condition, Daemon, process};

/// How long a running daemon may take to say that it runs.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// How often a new daemon is asked whether it serves.
const READY_POLL: Duration = Duration::from_millis(20);
/// Pause before another attempt, doubled with every failure …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// … or this, while somebody may be waiting for a daemon that has answered before.
const LONGEST_PAUSE_FOR_MOUNTS: Duration = Duration::from_secs(1);
/// A daemon that ran so long did not fail to start; it is replaced at once.
const HEALTHY: Duration = Duration::from_secs(10);

impl Daemon {
    /// Keeps a daemon running until `shutdown`, which leaves it running. Our mounts are those under `ours`.
    pub(crate) async fn supervise(&self, ours: &Path, shutdown: &CancellationToken) {
        shutdown.run_until_cancelled(self.keep_running(ours)).await;
    }

    async fn keep_running(&self, ours: &Path) {
        let mut pause = FIRST_PAUSE;
        let mut generation = 0;
        loop {
            let found = self.find_or_start(ours).await;
            let answered = found.is_ok();
            match found {
                Ok(pid) => {
                    generation += 1;
                    let since = Instant::now();
                    self.process.store(pid, Ordering::Relaxed);
                    self.found.store(generation, Ordering::Relaxed);
                    self.condition.send_replace(Condition::Ready(generation));
                    let ended = tokio::select! {
                        ended = process::ended(pid) => ended,
                        never = self.broker.serve(self.client.clone()) => match never {},
                    };
                    if let Err(error) = ended {
                        warn!(pid, %error, "cannot watch the nydus daemon");
                    }
                    warn!(pid, "the nydus daemon ended");
                    self.condition.send_replace(Condition::Starting);
                    if since.elapsed() >= HEALTHY {
                        pause = FIRST_PAUSE;
                        continue;
                    }
                }
                Err(problem) => {
                    warn!(problem, pause_ms = pause.as_millis(), "no nydus daemon");
                    self.condition.send_replace(Condition::Failed(problem));
                }
            }
            let waited_for = answered || !self.held.is_empty();
            tokio::time::sleep(if waited_for { pause.min(LONGEST_PAUSE_FOR_MOUNTS) } else { pause }).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The process id of a daemon that answers, and serves what an earlier one did.
    async fn find_or_start(&self, ours: &Path) -> Result<u32, String> {
        let status = match self.client(STATUS_DEADLINE).status().await {
            Ok(status) => {
                info!(pid = status.pid, mounts = status.mounts.len(), "found the nydus daemon");
                status
            }
            Err(error) if error.is_not_running() && self.config.spawn => self.start().await?,
            Err(error) => return Err(describe(&error)),
        };
        // What it takes over it is to read as its predecessor did.
        self.broker.hand_out_all(&self.client(STATUS_DEADLINE)).await;
        self.take_over(ours, &status.mounts).await?;
        Ok(status.pid)
    }

    async fn start(&self) -> Result<Status, String> {
        let mut child = process::start(&self.config).map_err(|error| describe(&error))?;
        let deadline = tokio::time::Instant::now() + self.config.ready_timeout();
        let problem = loop {
            if let Ok(status) = self.client(STATUS_DEADLINE).status().await {
                info!(pid = status.pid, "started the nydus daemon");
                // The child is reaped when it ends, by whoever runs then.
                tokio::spawn(async move { child.wait().await });
                return Ok(status);
            }
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => return Err(format!("the daemon ended at once: {status}")),
                Err(error) => break format!("the daemon cannot be waited for: {error}"),
            }
            if tokio::time::Instant::now() >= deadline {
                break format!("the daemon did not answer within {:?}", self.config.ready_timeout());
            }
            tokio::time::sleep(READY_POLL).await;
        };
        // It has served nobody yet, and must not compete with the next one for the socket.
        if let Err(error) = child.kill().await {
            warn!(%error, "cannot end a daemon that does not answer");
        }
        Err(problem)
    }
}

/// An error with its causes.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
