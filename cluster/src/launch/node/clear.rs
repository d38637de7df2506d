//! What programs that we brought have made on a node, and nobody else knows of.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapshotter::SnapshotterConfig;

use crate::launch::error::LaunchError;

/// A shim's name, as far as the kernel keeps it. Shims outlive containerd on purpose.
const SHIM: &str = "containerd-shim";
/// Where containerd and the kubelet keep things and mount file systems.
const OF_CONTAINERD: [&str; 5] =
    ["/run/containerd", "/var/lib/containerd", "/var/lib/kubelet", "/etc/cni/net.d", "/opt/containerd"];
const OF_KUBEADM: [&str; 2] = ["/etc/kubernetes", "/var/lib/etcd"];
/// Where the cluster's network says which addresses pods of this node get.
const POD_NETWORK: &str = "/etc/cni/net.d";

/// Ends the shims of our containerd, which has stopped, and removes all that it and the kubelet kept.
pub(super) fn containerd() -> Result<(), LaunchError> {
    let socket = SnapshotterConfig::default().containerd;
    for entry in fs::read_dir("/proc").map_err(LaunchError::io("/proc"))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while we look.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if name.trim_end() == SHIM && is_shim_of(&words, socket.path()) {
            _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    remove(&OF_CONTAINERD)
}

/// Whether a shim with this command line belongs to the containerd at `socket`: a node may have another one, such as that of k3s.
fn is_shim_of(words: &[u8], socket: &Path) -> bool {
    let words: Vec<_> = words.split(|&byte| byte == 0).collect();
    words.windows(2).any(|pair| {
        matches!(pair, [b"-address" | b"--address", address] if *address == socket.as_os_str().as_bytes())
    })
}

/// Removes what kubeadm leaves of a node's membership.
pub(super) fn kubeadm() -> Result<(), LaunchError> {
    remove(&OF_KUBEADM)
}

/// Names of what networks have written for the containerd of this node.
pub(super) fn pod_networks() -> Result<BTreeSet<String>, LaunchError> {
    let found = match fs::read_dir(POD_NETWORK) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        found => found.map_err(LaunchError::io(POD_NETWORK))?,
    };
    Ok(found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Removes what the cluster's network wrote, all but what was there `before`: the next cluster may give this node other addresses, and the
/// first pods are started by what is there. The directory stays, for containerd does not watch one any longer that was removed.
pub(super) fn pod_network(before: &BTreeSet<String>) -> Result<(), LaunchError> {
    for name in pod_networks()?.difference(before) {
        let path = Path::new(POD_NETWORK).join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(LaunchError::io(path))?;
    }
    Ok(())
}

/// Removes directories with all that is mounted in them.
pub(super) fn remove(directories: &[impl AsRef<Path>]) -> Result<(), LaunchError> {
    for directory in directories.iter().map(AsRef::as_ref) {
        for mount in mounts_below(directory)? {
            match umount2(&mount, MntFlags::MNT_DETACH) {
                // Gone with the one that it lay on.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(error) => return Err(LaunchError::io(mount)(error.into())),
            }
        }
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LaunchError::io(directory)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Mount points in a directory, the last mounted first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, LaunchError> {
    let table = fs::read_to_string("/proc/self/mounts").map_err(LaunchError::io("/proc/self/mounts"))?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut found: Vec<_> = points.filter(|point| point.starts_with(directory)).collect();
    found.reverse();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shims_of_another_containerd_are_not_ours() {
        let of = |address: &str| {
            let words = ["/usr/bin/containerd-shim-runc-v2", "-namespace", "k8s.io", "-address", address, ""];
            is_shim_of(words.join("\0").as_bytes(), Path::new("/run/containerd/containerd.sock"))
        };
        assert!(of("/run/containerd/containerd.sock"));
        assert!(!of("/run/k3s/containerd/containerd.sock"));
        assert!(!of("/run/containerd/containerd.sock.ttrpc"));
        assert!(!is_shim_of(b"", Path::new("")));
    }
}
