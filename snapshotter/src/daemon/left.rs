//! Duplicates of what is held, with the service manager: who kills this process and the daemon at once ends no mount. The process
//! that is started in this one's place gets them back, before it looks for a daemon.
//!
//! Under a mount's id are its descriptor, and a file in memory that says what it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fuse_daemon::control::Handover;
use nix::sys::memfd::{MFdFlags, memfd_create};
use service::manager;
use tracing::{info, warn};

use crate::sys;

/// The file that says what a mount is.
pub(super) type About = Arc<File>;

/// Leaves a mount with the manager, in the place of what it has under that id. Gives the file that is left with it.
pub(super) fn leave(id: &str, handover: &Handover, descriptor: BorrowedFd<'_>) -> Option<About> {
    manager::forget(id);
    match described(handover) {
        Ok(file) => {
            manager::leave(id, &[descriptor, file.as_fd()]);
            Some(Arc::new(file))
        }
        Err(error) => {
            warn!(mount = id, %error, "the service manager does not hold a mount");
            None
        }
    }
}

/// Says in the file that is left with a mount that it is something else now. At no moment is the mount not left.
pub(super) fn say_again(about: &File, handover: &Handover) -> io::Result<()> {
    let mut text = serde_json::to_vec(handover)?;
    // What was longer ends in spaces, which say nothing.
    let before = usize::try_from(about.metadata()?.len()).map_err(io::Error::other)?;
    text.resize(text.len().max(before), b' ');
    about.write_all_at(&text, 0)
}

/// Has the manager drop a mount.
pub(super) fn forget(id: &str) {
    manager::forget(id);
}

/// What earlier processes left there.
pub(super) fn take_back() -> BTreeMap<String, (Handover, OwnedFd, About)> {
    let mut left: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    for (descriptor, id) in sys::left_with_manager() {
        left.entry(id).or_default().push(descriptor);
    }
    let mut mounts = BTreeMap::new();
    for (id, descriptors) in left {
        match mount_of(descriptors) {
            Ok(mount) => drop(mounts.insert(id, mount)),
            Err(error) => {
                warn!(mount = id, %error, "cannot use what the service manager holds of a mount");
                manager::forget(&id);
            }
        }
    }
    if !mounts.is_empty() {
        info!(mounts = mounts.len(), "the service manager has held mounts");
    }
    mounts
}

fn described(handover: &Handover) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"nydus-cluster mount", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(handover)?)?;
    Ok(file)
}

fn mount_of(descriptors: Vec<OwnedFd>) -> io::Result<(Handover, OwnedFd, About)> {
    let (mut about, mut mount) = (None, None);
    for descriptor in descriptors {
        let mut file = File::from(descriptor);
        if file.metadata()?.is_file() {
            let mut text = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut text)?;
            about = Some((serde_json::from_slice(&text)?, Arc::new(file)));
        } else {
            mount = Some(file.into());
        }
    }
    match (about, mount) {
        (Some((handover, file)), Some(mount)) => Ok((handover, mount, file)),
        _ => Err(io::Error::other("expected the mount's descriptor and a file that says what it is")),
    }
}

#[cfg(test)]
mod tests {
    use fuse_daemon::control::{BackendSpec, MountRequest, Negotiated};

    use super::*;

    #[test]
    fn what_a_mount_is_can_be_said_again_longer_or_shorter() {
        let handover = |directories: &[&str]| Handover {
            mount: MountRequest {
                id: "i".to_owned(),
                bootstrap: "/b".into(),
                mountpoint: "/m".into(),
                image: "i".to_owned(),
                backends: directories
                    .iter()
                    .map(|path| BackendSpec::Directory { path: path.into() })
                    .collect(),
            },
            device: 7,
            negotiated: Negotiated { minor: 1, flags: 2, max_readahead: 3 },
        };
        let file = described(&handover(&["/a"])).unwrap();
        for directories in [&["/a", "/somewhere/else"][..], &["/c"]] {
            say_again(&file, &handover(directories)).unwrap();
            let descriptors = vec![
                OwnedFd::from(file.try_clone().unwrap()),
                OwnedFd::from(File::open("/dev/null").unwrap()),
            ];
            let (said, _, _) = mount_of(descriptors).unwrap();
            assert_eq!(said, handover(directories));
        }
    }
}
