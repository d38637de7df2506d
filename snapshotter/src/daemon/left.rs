//! Duplicates of what is held, with the service manager: who kills this process and the daemon at once ends no mount. The process
//! that is started in this one's place gets them back, before it looks for a daemon.
//!
//! Under a mount's id are its descriptor, and a file in memory that says what it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use fuse_daemon::control::Handover;
use nix::sys::memfd::{MFdFlags, memfd_create};
use service::manager;
use tracing::{info, warn};

use crate::sys;

/// Leaves a mount with the manager, in the place of what it has under that id.
pub(super) fn leave(id: &str, handover: &Handover, descriptor: BorrowedFd<'_>) {
    manager::forget(id);
    match described(handover) {
        Ok(file) => manager::leave(id, &[descriptor, file.as_fd()]),
        Err(error) => warn!(mount = id, %error, "the service manager does not hold a mount"),
    }
}

/// Has the manager drop a mount.
pub(super) fn forget(id: &str) {
    manager::forget(id);
}

/// What earlier processes left there.
pub(super) fn take_back() -> BTreeMap<String, (Handover, OwnedFd)> {
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

fn mount_of(descriptors: Vec<OwnedFd>) -> io::Result<(Handover, OwnedFd)> {
    let (mut handover, mut mount) = (None, None);
    for descriptor in descriptors {
        let mut file = File::from(descriptor);
        if file.metadata()?.is_file() {
            let mut text = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut text)?;
            handover = Some(serde_json::from_slice(&text)?);
        } else {
            mount = Some(file.into());
        }
    }
    handover
        .zip(mount)
        .ok_or_else(|| io::Error::other("expected the mount's descriptor and a file that says what it is"))
}
