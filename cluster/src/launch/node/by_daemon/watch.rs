//! What the unit of the tree runs: it lays the tree, and ends when what it lies on is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::io::Interest;
use tokio::time::Instant;

use super::super::image;
use super::lazy;
use crate::launch::error::LaunchError;
use crate::sys::watched_mounts;

/// How long the image may take until it is mounted, before whoever started us is told that it is not: the next attempt follows.
const MOUNT_DEADLINE: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often it is looked at least whether the image is there.
const LOOK: Duration = Duration::from_secs(10);
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Waits until the snapshotter has the node image of this name mounted, lays the writable tree of `dir` on it, and says so by `laid`.
/// Returns when the image is not mounted any more: programs that run out of the tree have lost it then.
///
/// # Errors
///
/// When the image is not mounted in time, the tree cannot be laid, or the image has gone: so it always ends.
pub async fn lay_tree(dir: &Path, name: &str, laid: impl FnOnce()) -> Result<(), LaunchError> {
    let place = mountpoint(name).await?;
    let gone = || LaunchError::wrong(name, format!("it is not mounted at {} any more", place.display()));
    let changes = watched_mounts().map_err(LaunchError::io(MOUNTINFO))?;
    let device = device_at(&place)?.ok_or_else(gone)?;
    lay(dir, &place)?;
    laid();
    loop {
        // The kernel says that some mount is another one, which is read again. Nobody has to be believed for ever.
        if let Ok(Ok(mut ready)) = tokio::time::timeout(LOOK, changes.ready(Interest::PRIORITY)).await {
            ready.clear_ready();
        }
        if device_at(&place)?.as_ref() != Some(&device) {
            return Err(gone());
        }
    }
}

/// Where the image is mounted, once it is.
async fn mountpoint(name: &str) -> Result<PathBuf, LaunchError> {
    let late = Instant::now() + MOUNT_DEADLINE;
    let client = lazy::control();
    loop {
        let found = client.node_images().await;
        let reason = match found {
            Ok(images) => match images.into_iter().find(|image| image.name == name) {
                Some(image) if image.mounted => return Ok(image.mountpoint),
                Some(_) => "the daemon has not mounted it yet".to_owned(),
                None => "the snapshotter was not asked to have it mounted".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        if Instant::now() >= late {
            return Err(LaunchError::wrong(name, reason));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Lays the tree on what is mounted at `lower`, instead of one that lies on what was there before.
fn lay(dir: &Path, lower: &Path) -> Result<(), LaunchError> {
    let tree = image::tree(dir);
    let failed = |error: nix::Error| LaunchError::io(&tree)(error.into());
    while device_at(&tree)?.is_some() {
        umount2(&tree, MntFlags::MNT_DETACH).map_err(failed)?;
    }
    let (lower, dir) = (lower.display(), dir.display());
    let options = format!("lowerdir={lower},upperdir={dir}/upper,workdir={dir}/work");
    mount(Some("overlay"), &tree, Some("overlay"), MsFlags::empty(), Some(options.as_str())).map_err(failed)
}

/// The device number of what is mounted at `place`, which is not touched.
fn device_at(place: &Path) -> Result<Option<String>, LaunchError> {
    let table = fs::read_to_string(MOUNTINFO).map_err(LaunchError::io(MOUNTINFO))?;
    Ok(device_in(&table, place))
}

/// The same in this table: what lies on top of all that is there.
fn device_in(table: &str, place: &Path) -> Option<String> {
    let lines = table.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut at_place = lines.filter(|line| line.get(4).is_some_and(|point| Path::new(point) == place));
    at_place.next()?.get(2).map(|device| (*device).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_that_of_the_topmost_mount() {
        let table = "22 1 8:1 / / rw - ext4 /dev/a rw\n\
                     30 22 0:51 / /var/lib/m/1 ro - fuse snapshot-1 ro\n\
                     31 22 0:52 / /var/lib/m/1 ro - fuse snapshot-1 ro\n\
                     32 22 0:53 / /var/lib/m/11 ro - fuse snapshot-11 ro\n";
        assert_eq!(device_in(table, Path::new("/var/lib/m/1")).as_deref(), Some("0:52"));
        assert_eq!(device_in(table, Path::new("/var/lib/m/11")).as_deref(), Some("0:53"));
        assert_eq!(device_in(table, Path::new("/var/lib/m")), None);
    }

    /// Every mount and unmount of the machine is said, so that nobody has to look at the table all the time.
    #[tokio::test]
    async fn a_change_of_mounts_is_seen_at_once() {
        test_support::needs!(test_support::Need::Root);
        let dir = tempfile::tempdir().unwrap();
        let changes = watched_mounts().unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        assert!(device_at(dir.path()).unwrap().is_some());
        let mut ready =
            tokio::time::timeout(LOOK, changes.ready(Interest::PRIORITY)).await.expect("in time").unwrap();
        ready.clear_ready();
        umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
        // What others mount meanwhile is seen as well.
        while device_at(dir.path()).unwrap().is_some() {
            let ready = tokio::time::timeout(LOOK, changes.ready(Interest::PRIORITY)).await;
            ready.expect("in time").unwrap().clear_ready();
        }
    }
}
