//! `image mount`: one image in the foreground.

mod archive;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fuse_daemon::worker::{Backend, DirectoryBackend, RegistryBackend};
use fuse_daemon::{ForegroundMount, ReadConfig, Rights};
use tokio_util::sync::CancellationToken;

use super::mountpoint::Mountpoint;
use super::source::{BlobsPlace, Located};
use crate::args::MountOption;
use crate::stdout;

/// Where and how to mount.
pub(super) struct MountPlace<'a> {
    pub(super) mountpoint: &'a Path,
    pub(super) rights: Rights,
    /// Directory of the chunk cache, if not a temporary one.
    pub(super) cache: Option<PathBuf>,
    /// So long after the mount everything is fetched, if at all.
    pub(super) complete_after: Option<Duration>,
}

/// What is asked for, beyond what somebody needs who only looks.
pub(super) fn rights(options: &[MountOption]) -> Rights {
    Rights {
        suid: options.contains(&MountOption::Suid),
        dev: options.contains(&MountOption::Dev),
        allow_other: options.contains(&MountOption::AllowOther),
    }
}

/// Mounts until `stop` or until it is unmounted by somebody else.
pub(super) async fn run(
    located: &Located,
    place: MountPlace<'_>,
    read: &ReadConfig,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let backend: Arc<dyn Backend> = match &located.blobs {
        BlobsPlace::Registry(place) => {
            let (client, reference) = place.as_ref();
            Arc::new(RegistryBackend::new(client.clone(), reference.repository().clone()))
        }
        BlobsPlace::Directory(directory) => Arc::new(DirectoryBackend::new(directory)),
        BlobsPlace::Archive(source) => Arc::new(archive::ArchiveBackend::new(source.clone())),
        BlobsPlace::Unknown => {
            anyhow::bail!("{}: say where its blobs are with --blobs DIR", located.name)
        }
    };
    let mountpoint = Mountpoint::prepare(place.mountpoint)?;
    // Dropped, and removed, after the mount is gone.
    let (_temporary, cache_dir) = match place.cache {
        Some(directory) => (None, directory),
        None => {
            let temporary = tempfile::tempdir().context("making a temporary directory")?;
            let directory = temporary.path().to_owned();
            (Some(temporary), directory)
        }
    };
    let mount = ForegroundMount {
        bootstrap: &located.bootstrap,
        mountpoint: mountpoint.path(),
        rights: place.rights,
        backend,
        cache_dir: &cache_dir,
        read,
        complete_after: place.complete_after,
    };
    // That nobody reads it ends no mount.
    let line = format!("mounted on {}; interrupt to unmount\n", mountpoint.path().display());
    let mounted = || _ = stdout::print(&line);
    fuse_daemon::mount_foreground(mount, mounted, stop).await?;
    Ok(ExitCode::SUCCESS)
}
