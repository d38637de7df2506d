//! Reading extended attributes.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::{Errno, Result};

use super::error::VisitFailure;
use crate::tree::Xattrs;

/// Linux has at most this many bytes of attribute names a file, and of value an attribute.
const LIMIT_BYTES: usize = 64 << 10;

/// Reads extended attributes into buffers that it keeps.
pub(super) struct XattrReader {
    names: Box<[u8]>,
    value: Box<[u8]>,
}

impl XattrReader {
    pub(super) fn new() -> Self {
        Self { names: vec![0; LIMIT_BYTES].into(), value: vec![0; LIMIT_BYTES].into() }
    }

    /// The attributes of an open file.
    pub(super) fn of_descriptor(&mut self, fd: &impl AsFd) -> std::result::Result<Xattrs, VisitFailure> {
        self.read(|names| flistxattr(fd, names), |name, value| fgetxattr(fd, name, value))
    }

    /// The attributes of a file that cannot be opened for them: a symbolic link, a device, a fifo or a socket.
    pub(super) fn of_name(
        &mut self,
        directory: &impl AsFd,
        name: &CStr,
    ) -> std::result::Result<Xattrs, VisitFailure> {
        // The calls that take a directory's descriptor and a name, getxattrat and its like, are as new as Linux 6.13.
        let path = path_through(directory.as_fd(), name);
        let path = path.as_slice();
        self.read(|names| llistxattr(path, names), |name, value| lgetxattr(path, name, value))
    }

    fn read(
        &mut self,
        list: impl FnOnce(&mut [u8]) -> Result<usize>,
        get: impl Fn(&CStr, &mut [u8]) -> Result<usize>,
    ) -> std::result::Result<Xattrs, VisitFailure> {
        let mut xattrs = Xattrs::new();
        let length = match list(&mut self.names) {
            Ok(length) => length,
            // The file system has none.
            Err(Errno::OPNOTSUPP) => 0,
            Err(errno) => return Err(VisitFailure::io("list the extended attributes of")(errno)),
        };
        for name in self.names[..length].split_inclusive(|&byte| byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            match get(name, &mut self.value) {
                Ok(length) => drop(xattrs.insert(name.to_bytes().into(), self.value[..length].into())),
                // Removed since, or not for this process to read.
                Err(Errno::NODATA | Errno::ACCESS | Errno::PERM) => {}
                Err(errno) => return Err(VisitFailure::io("read an extended attribute of")(errno)),
            }
        }
        Ok(xattrs)
    }
}

/// A path by which the kernel finds `name` in an open directory, however deep that is and whatever it is called now.
fn path_through(directory: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}
