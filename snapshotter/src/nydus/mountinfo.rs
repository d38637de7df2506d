//! Whether something is mounted at a path, without touching it: a dead or hung file system would fail or block.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::Error;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Whether something is mounted at `path`, which has to be absolute and without symbolic links.
pub(super) fn is_mounted(path: &Path) -> Result<bool, Error> {
    let mounts = fs::read(MOUNTINFO).map_err(Error::io("read", MOUNTINFO))?;
    Ok(contains(&mounts, path.as_os_str().as_bytes()))
}

/// Whether what is mounted at `path`, on top of whatever else is there, has this device number.
pub(crate) fn has_device(path: &Path, device: u64) -> Result<bool, Error> {
    let mounts = fs::read(MOUNTINFO).map_err(Error::io("read", MOUNTINFO))?;
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let (path, number) = (path.as_os_str().as_bytes(), format!("{major}:{minor}"));
    let fields = mounts.split(|&byte| byte == b'\n').map(|line| line.split(|&byte| byte == b' '));
    let mut at_path = fields.filter(|line| line.clone().nth(4).is_some_and(|field| unescape(field) == path));
    Ok(at_path.next_back().is_some_and(|mut line| line.nth(2) == Some(number.as_bytes())))
}

/// Detaches whatever is mounted at `path`, which need not answer.
pub(super) fn detach(path: &Path) -> Result<(), Error> {
    while is_mounted(path)? {
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)
            .map_err(|errno| Error::io("detach the mount at", path)(errno.into()))?;
    }
    Ok(())
}

/// Whether a line's fifth field is `path`.
pub(super) fn contains(mounts: &[u8], path: &[u8]) -> bool {
    mounts
        .split(|&byte| byte == b'\n')
        .any(|line| line.split(|&byte| byte == b' ').nth(4).is_some_and(|field| unescape(field) == path))
}

/// Spaces, tabs, line ends and backslashes are `\` and three octal digits there.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}
