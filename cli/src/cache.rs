//! `cache`: what a node's daemon has of blobs, and what becomes of it.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use fuse_daemon::control::{BlobId, Client};

use crate::config::Config;
use crate::status::Found;
use crate::{args, stdout};

/// Verifying reads all of the cache.
const VERIFY_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// Asks the daemon.
pub(crate) async fn run(config: Config, command: args::Cache) -> anyhow::Result<ExitCode> {
    let client = |socket: args::DaemonSocket| Client::new(socket.of(&config));
    match command {
        args::Cache::Ls { json, socket } => list(&client(socket), json).await,
        args::Cache::Prune { socket } => {
            let freed = client(socket).prune().await?;
            stdout::print(&format!("freed {} blobs, {} bytes\n", freed.freed.len(), freed.freed_bytes))?;
            Ok(ExitCode::SUCCESS)
        }
        args::Cache::Pin { blobs, undo, socket } => {
            client(socket).pin(&blobs, !undo).await?;
            Ok(ExitCode::SUCCESS)
        }
        args::Cache::Verify { blobs, socket } => {
            verify(&client(socket).with_deadline(VERIFY_DEADLINE), &blobs).await
        }
    }
}

async fn list(client: &Client, json: bool) -> anyhow::Result<ExitCode> {
    let blobs = client.cached().await?;
    if json {
        stdout::print_json(&blobs)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{:<71}  {:>14}  STATE\n", "BLOB", "BYTES");
    for blob in blobs {
        let states = [(blob.mounted, "mounted"), (blob.pinned, "pinned")];
        let states: Vec<_> = states.into_iter().filter(|(is, _)| *is).map(|(_, state)| state).collect();
        let _ = writeln!(text, "{:<71}  {:>14}  {}", blob.blob, blob.bytes, states.join(", "));
    }
    stdout::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn verify(client: &Client, blobs: &[BlobId]) -> anyhow::Result<ExitCode> {
    let verified = client.verify(blobs).await?;
    let mut text = format!("verified {} chunks\n", verified.chunks);
    for bad in &verified.bad {
        let _ = writeln!(text, "{}: {} chunks were bad and will be fetched again", bad.blob, bad.chunks);
    }
    stdout::print(&text)?;
    Ok(Found::BadChunks.status_if(!verified.bad.is_empty()))
}
