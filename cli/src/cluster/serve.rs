//! `cluster serve`: the registry of saved images on a node.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use cluster::saved::{SavedAt, SavedImages};
use cluster::serve::{self, Kept};
use registry::Reference;
use registry::client::Client;

use super::args;
use crate::config::Config;
use crate::shutdown;

/// Keeps the images' documents, and serves them until a signal comes.
pub(super) async fn run(config: Config, flags: args::Serve) -> anyhow::Result<ExitCode> {
    let stop = shutdown::on_signal()?;
    let listen = flags.listen.0;
    if !listen.ip().is_loopback() {
        bail!("--listen {listen}: expected a loopback address: it is for this machine's containerd alone");
    }
    let place = place(&flags.source)?;
    let client = Client::new(config.registry)?;
    let kept = match Kept::open(&flags.root)?.filter(|kept| is_pinned(&place, kept)) {
        Some(kept) => kept,
        None => {
            let saved = SavedImages::open(&place, &client).await?;
            let kept = Kept::keep(&flags.root, &saved).await;
            kept.with_context(|| format!("keeping the documents of {place}"))?
        }
    };
    let saved = match place {
        SavedAt::Repository(reference) => Some((client, reference.repository().clone())),
        SavedAt::Directory(_) | SavedAt::Package { .. } => None,
    };
    let server = serve::serve(&kept, saved, listen, stop).await?;
    service::manager::ready();
    server.stopped().await;
    Ok(ExitCode::SUCCESS)
}

/// Where `source` says that images were saved.
pub(super) fn place(source: &str) -> anyhow::Result<SavedAt> {
    let path = Path::new(source);
    if path.is_dir() {
        return Ok(SavedAt::Directory(std::path::absolute(path)?));
    }
    let reference = source.strip_prefix("docker://").unwrap_or(source);
    let reference = Reference::parse(reference).with_context(|| {
        format!("{source}: expected the repository and tag, or the directory, that images were saved to")
    })?;
    Ok(SavedAt::Repository(reference))
}

/// Whether the place says by a digest that what is kept is what is there.
fn is_pinned(place: &SavedAt, kept: &Kept) -> bool {
    match place {
        SavedAt::Repository(reference) => reference.digest() == Some(kept.images()),
        SavedAt::Directory(_) | SavedAt::Package { .. } => false,
    }
}
