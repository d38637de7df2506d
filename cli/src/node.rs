//! `node`: what a node's daemon serves.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use fuse_daemon::control::{Client, MountStatus};

use crate::config::Config;
use crate::{args, stdout};

/// Asks the daemon.
pub(crate) async fn run(config: Config, command: args::Node) -> anyhow::Result<ExitCode> {
    match command {
        args::Node::Status { json, socket } => {
            let status = Client::new(socket.of(&config)).status().await?;
            if json { stdout::print_json(&status)? } else { stdout::print(&table(&status.mounts))? }
        }
        args::Node::Trace { image, socket } => {
            let client = Client::new(socket.of(&config));
            let mounts = client.status().await?.mounts;
            let mut text = client.trace(&mount(&mounts, &image)?.id).await?.join("\n");
            if !text.is_empty() {
                text.push('\n');
            }
            stdout::print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(mounts: &[MountStatus]) -> String {
    let mut text = String::new();
    let width = mounts.iter().map(|mount| mount.image.len()).max().unwrap_or(0).max("IMAGE".len());
    let _ = writeln!(text, "{:width$}  CACHED  FROM  MOUNT", "IMAGE");
    for mount in mounts {
        // Rounded down: 100% is all of it.
        let cached = (mount.chunks.ready * 100).checked_div(mount.chunks.all).unwrap_or(100);
        let (image, from) = (&mount.image, mount.backends.len());
        let _ = writeln!(text, "{image:width$}  {cached:>5}%  {from:>4}  {}", mount.mountpoint.display());
        for backend in &mount.backends {
            let _ = writeln!(text, "{:width$}                {backend}", "");
        }
    }
    text
}

/// The mount that a user means.
fn mount<'a>(mounts: &'a [MountStatus], name: &str) -> anyhow::Result<&'a MountStatus> {
    let meant: Vec<_> = mounts.iter().filter(|mount| mount.id == name || mount.image == name).collect();
    let ids =
        |mounts: &[&MountStatus]| mounts.iter().map(|mount| mount.id.clone()).collect::<Vec<_>>().join(", ");
    match &meant[..] {
        [mount] => Ok(mount),
        [] => {
            bail!("{name}: no such image is mounted here; `nydus-cluster node status` lists those that are")
        }
        several => bail!("{name}: several mounts have this image; name one by its id: {}", ids(several)),
    }
}
