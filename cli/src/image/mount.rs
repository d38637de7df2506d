//! `image mount`: one image in the foreground.

mod archive;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use fuse_daemon::worker::{Backend, DirectoryBackend, RegistryBackend};
use fuse_daemon::{ForegroundMount, ReadConfig};
use tokio_util::sync::CancellationToken;

use super::source::{Blobs, Located};
use crate::stdout;

/// Mounts until `stop` or until it is unmounted by somebody else.
pub(super) async fn run(
    located: &Located,
    mountpoint: &Path,
    cache: Option<PathBuf>,
    read: &ReadConfig,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let backend: Arc<dyn Backend> = match &located.blobs {
        Blobs::Registry(place) => {
            let (client, reference) = place.as_ref();
            Arc::new(RegistryBackend::new(client.clone(), reference.repository().clone()))
        }
        Blobs::Directory(directory) => Arc::new(DirectoryBackend::new(directory)),
        Blobs::Archive(source) => Arc::new(archive::ArchiveBackend::new(source.clone())),
        Blobs::Unknown => {
            anyhow::bail!("{}: say where its blobs are with --blobs DIR", located.name)
        }
    };
    let temporary = tempfile::tempdir().context("making a temporary directory")?;
    let cache = cache.unwrap_or_else(|| temporary.path().to_owned());
    let mount =
        ForegroundMount { bootstrap: &located.bootstrap, mountpoint, backend, cache_dir: &cache, read };
    // That nobody reads it ends no mount.
    let line = format!("mounted on {}; interrupt to unmount\n", mountpoint.display());
    let mounted = || _ = stdout::print(&line);
    fuse_daemon::mount_foreground(mount, mounted, stop).await?;
    Ok(ExitCode::SUCCESS)
}
