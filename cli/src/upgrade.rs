//! `nydus-cluster upgrade`: the program at its place takes over from the daemon that runs.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use fuse_daemon::control::{Client, Summary};

use crate::args::DaemonSocket;
use crate::config::Config;
use crate::stdout;

/// What the daemon may take to find out whether the new program would work.
const ASK: Duration = Duration::from_secs(30);
/// What the new daemon may take until it serves all that the old one did.
const TAKE_OVER: Duration = Duration::from_secs(60);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(50);

/// Has the daemon make place, and waits until the next one serves what this one did.
pub(crate) async fn run(config: Config, socket: DaemonSocket) -> anyhow::Result<ExitCode> {
    let client = Client::new(socket.of(&config)).with_deadline(ASK);
    let before = client.summary().await?;
    let version = client.upgrade().await?;
    let begun = Instant::now();
    let after = taken_over(&client.with_deadline(Duration::from_secs(5)), &before).await;
    let after = after.with_context(|| {
        format!("daemon {} made place for version {version}, whose log says more", before.pid)
    })?;
    stdout::print(&format!(
        "daemon {} of version {} serves {} mounts in place of daemon {} of version {}, after {:.1} s\n",
        after.pid,
        after.version,
        after.mounts.len(),
        before.pid,
        before.version,
        begun.elapsed().as_secs_f64(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn taken_over(client: &Client, before: &Summary) -> anyhow::Result<Summary> {
    let wanted: BTreeSet<&str> = before.mounts.iter().map(|mount| mount.id.as_str()).collect();
    let until = Instant::now() + TAKE_OVER;
    let mut last = "nobody answers".to_owned();
    while Instant::now() < until {
        match client.summary().await {
            Ok(now) if now.pid != before.pid => {
                let served: BTreeSet<&str> = now.mounts.iter().map(|mount| mount.id.as_str()).collect();
                let lacking: Vec<&str> = wanted.difference(&served).copied().collect();
                if lacking.is_empty() {
                    return Ok(now);
                }
                last = format!("daemon {} does not serve {}", now.pid, lacking.join(", "));
            }
            Ok(_) => "the old daemon still answers".clone_into(&mut last),
            Err(error) => last = format!("{:#}", anyhow::Error::from(error)),
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("not taken over within {TAKE_OVER:?}: {last}")
}
