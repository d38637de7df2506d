//! Finding, starting and replacing the daemon.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fuse_daemon::control::Summary;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::adopt::ADOPTION_DEADLINE;
use super::{Condition, Daemon, describe, process};

/// How long a running daemon may take to say that it runs.
const SIGN_DEADLINE: Duration = Duration::from_secs(5);
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
            let found = self.find_or_start().await;
            let lived = match found {
                Ok(summary) => tokio::select! {
                    lived = self.live_with(ours, &summary, &mut generation) => lived,
                    // What a registry refuses while mounts are taken over is found out as well.
                    never = self.broker.serve(self.client.clone()) => match never {},
                },
                Err(problem) => Err(problem),
            };
            let answered = lived.is_ok();
            match lived {
                Ok(lived) if lived >= HEALTHY => {
                    pause = FIRST_PAUSE;
                    continue;
                }
                Ok(_) => {}
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

    /// Has a daemon serve what an earlier one did, and is ready as long as it lives. Gives how long it was. An error: it ended before.
    async fn live_with(
        &self,
        ours: &Path,
        summary: &Summary,
        generation: &mut u64,
    ) -> Result<Duration, String> {
        // What it takes over it is to read as its predecessor did.
        self.broker.hand_out_all(&self.client(SIGN_DEADLINE)).await;
        self.take_over(ours, summary).await?;
        *generation += 1;
        let (pid, since) = (summary.pid, Instant::now());
        self.process.store(pid, Ordering::Relaxed);
        self.found.store(*generation, Ordering::Relaxed);
        self.condition.send_replace(Condition::Ready(*generation));
        let rest = async {
            self.take_over_rest(pid).await;
            std::future::pending().await
        };
        let ended = tokio::select! {
            ended = process::ended(pid) => ended,
            never = rest => never,
        };
        if let Err(error) = ended {
            warn!(pid, %error, "cannot watch the nydus daemon");
        }
        warn!(pid, "the nydus daemon ended");
        self.condition.send_replace(Condition::Starting);
        Ok(since.elapsed())
    }

    /// A daemon that answers.
    async fn find_or_start(&self) -> Result<Summary, String> {
        match self.client(SIGN_DEADLINE).summary().await {
            Ok(summary) => {
                let summary = self.settled(summary).await?;
                info!(pid = summary.pid, mounts = summary.mounts.len(), "found the nydus daemon");
                Ok(summary)
            }
            Err(error) if error.is_not_running() && self.config.spawn => self.start().await,
            Err(error) => Err(describe(&error)),
        }
    }

    /// What a daemon serves once it has taken over what another process of ours asked it for, which cannot say any more that it
    /// holds that.
    async fn settled(&self, mut summary: Summary) -> Result<Summary, String> {
        let deadline = tokio::time::Instant::now() + ADOPTION_DEADLINE;
        while !summary.coming.is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(READY_POLL).await;
            let asked = self.client(SIGN_DEADLINE).summary().await;
            summary = asked.map_err(|error| describe(&error))?;
        }
        Ok(summary)
    }

    async fn start(&self) -> Result<Summary, String> {
        let mut child = process::start(&self.config).map_err(|error| describe(&error))?;
        let deadline = tokio::time::Instant::now() + self.config.ready_timeout();
        let problem = loop {
            if let Ok(summary) = self.client(SIGN_DEADLINE).summary().await {
                info!(pid = summary.pid, "started the nydus daemon");
                self.started.store(summary.pid, Ordering::Relaxed);
                // The child is reaped when it ends, by whoever runs then.
                let (exit, pid) = (self.exit.clone(), child.id());
                tokio::spawn(async move {
                    let ended = child.wait().await.ok();
                    exit.send_replace(pid.zip(ended));
                });
                return Ok(summary);
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
