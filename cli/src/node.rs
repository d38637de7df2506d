//! `node`: what a node's daemon serves, and which images its snapshotter runs as RAFS.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use fuse_daemon::control::{
    CacheTotals, Client, MountStatus, SourceFailure, SourceStatus, Status, Waiting, WorkerStatus,
};
use serde::Serialize;
use snapshotter::control::{self as sets, SetStatus};

use crate::config::Config;
use crate::{args, stdout};

/// What a node serves and runs.
#[derive(Serialize)]
struct NodeStatus {
    #[serde(flatten)]
    daemon: Status,
    /// None: the snapshotter does not run, or is too old to say it.
    image_sets: Option<Vec<SetStatus>>,
}

/// Asks daemon and snapshotter.
pub(crate) async fn run(config: Config, command: args::Node) -> anyhow::Result<ExitCode> {
    match command {
        args::Node::Status { json, socket, snapshotter_socket } => {
            let snapshotter = snapshotter_socket.map(|socket| socket.path().to_owned());
            let snapshotter = snapshotter.unwrap_or_else(|| config.snapshotter.control_socket());
            let daemon = Client::new(socket.of(&config)).status().await?;
            let image_sets = image_sets(snapshotter).await?;
            if json {
                stdout::print_json(&NodeStatus { daemon, image_sets })?;
            } else {
                let Status { mounts, cache, worker, waiting, sources, .. } = daemon;
                let mut text = table(&mounts);
                text += &set_table(&image_sets.unwrap_or_default());
                text += &source_table(&sources);
                text += &daemon_lines(cache, worker.as_ref());
                text += &waiting_table(&waiting);
                stdout::print(&text)?;
            }
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

/// The image sets of the snapshotter, if it runs.
async fn image_sets(socket: PathBuf) -> anyhow::Result<Option<Vec<SetStatus>>> {
    match sets::Client::new(socket).list().await {
        Ok(sets) => Ok(Some(sets)),
        Err(error) if error.is_not_running() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn set_table(sets: &[SetStatus]) -> String {
    let mut text = String::new();
    if sets.is_empty() {
        return text;
    }
    let width = sets.iter().map(|set| set.name.len()).max().unwrap_or(0).max("IMAGE SET".len());
    let _ = writeln!(text, "\n{:width$}  IMAGES  LAYERS  PULLED", "IMAGE SET");
    for SetStatus { name, images, chains, layers, backends } in sets {
        let _ = writeln!(text, "{name:width$}  {images:>6}  {chains:>6}  {layers:>6}");
        for backend in backends {
            let _ = writeln!(text, "{:width$}  {backend}", "");
        }
    }
    text
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

/// Where blobs come from, and whether they do.
fn source_table(sources: &[SourceStatus]) -> String {
    let mut text = String::new();
    if sources.is_empty() {
        return text;
    }
    let names: Vec<String> = sources.iter().map(|source| source.backend.to_string()).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0).max("SOURCE".len());
    let _ = writeln!(
        text,
        "\n{:width$}  {:7}  {:>12}  {:>8}  {:>6}  {:>14}",
        "SOURCE", "STATE", "ANSWERED", "REQUESTS", "FAILED", "BYTES"
    );
    for (name, source) in names.iter().zip(sources) {
        let SourceStatus { state, requests, failures, bytes, answered_ago_ms, failed, silent_ms, .. } =
            source;
        let answered =
            answered_ago_ms.map_or_else(|| "never".to_owned(), |ms| format!("{} s ago", ms / 1000));
        let _ = writeln!(
            text,
            "{name:width$}  {state:7}  {answered:>12}  {requests:>8}  {failures:>6}  {bytes:>14}"
        );
        if let Some(silent_ms) = silent_ms {
            let _ = writeln!(text, "{:width$}  nothing has come for {} s", "", silent_ms / 1000);
        }
        if let Some(SourceFailure { ago_ms, reason }) = failed {
            let _ = writeln!(text, "{:width$}  failed {} s ago: {reason}", "", ago_ms / 1000);
        }
    }
    text
}

/// What the daemon has, as far as it says so.
fn daemon_lines(cache: Option<CacheTotals>, worker: Option<&WorkerStatus>) -> String {
    let mut text = String::new();
    if let Some(CacheTotals { blobs, bytes, quota_bytes, .. }) = cache {
        let quota = quota_bytes.map(|quota| format!(", of {quota} that it may take")).unwrap_or_default();
        let _ = writeln!(text, "\ncache: {blobs} blobs, {bytes} bytes on disk{quota}");
    }
    if let Some(WorkerStatus { pid, restarts, guards }) = worker {
        let process = pid.map_or_else(|| "not ready".to_owned(), |pid| format!("process {pid}"));
        let guards = guards.map_or_else(|| "not known".to_owned(), |guards| guards.to_string());
        let _ = writeln!(text, "worker: {process}, replaced {restarts} times, guards: {guards}");
    }
    text
}

fn waiting_table(waiting: &[Waiting]) -> String {
    let mut text = String::new();
    if waiting.is_empty() {
        return text;
    }
    let _ =
        writeln!(text, "\n{:<71}  {:>8}  {:>7}  {:>7}  REFUSED", "WAITED FOR", "CHUNK", "READERS", "SECONDS");
    for Waiting { blob, chunk, readers, since_ms, refused } in waiting {
        let (seconds, refused) = (since_ms / 1000, refused.as_deref().unwrap_or("-"));
        let _ = writeln!(text, "{blob}  {chunk:>8}  {readers:>7}  {seconds:>7}  {refused}");
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
