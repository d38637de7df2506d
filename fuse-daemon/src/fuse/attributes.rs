//! Attributes in `fuser`'s terms.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};
use rafs::layout::v6::FileType as Kind;
use rafs::tree::{DeviceNumber, Time};

use super::BLOCK_BYTES;
use crate::fs::Attributes;

/// Unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

pub(super) fn of(attributes: &Attributes) -> FileAttr {
    let inode = &attributes.inode;
    let mtime = time(inode.mtime);
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: inode.size,
        blocks: inode.size.div_ceil(STAT_BLOCK_BYTES),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(inode.kind),
        perm: inode.permissions,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: device(inode.rdev),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// The attributes of an entry that says that there is no file: inode number 0, the rest is not looked at.
pub(super) fn nothing() -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Regular => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    let time = whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanoseconds.into())));
    // Beyond what the system can say there is no right answer.
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The kernel's `new_encode_dev`: 12 bits of major in the middle of 20 of minor.
fn device(number: DeviceNumber) -> u32 {
    (number.minor & 0xff) | (number.major & 0xfff) << 8 | (number.minor & 0xf_ff00) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_fraction() {
        let epoch = SystemTime::UNIX_EPOCH;
        let before = time(Time { seconds: -2, nanoseconds: 500_000_000 });
        assert_eq!(before, epoch - Duration::from_millis(1500));
        assert_eq!(time(Time { seconds: i64::MIN, nanoseconds: 0 }), epoch - Duration::from_secs(1 << 63));
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(device(DeviceNumber { major: 1, minor: 3 }), 0x103);
        assert_eq!(device(DeviceNumber { major: 259, minor: 0x12345 }), 0x1231_0345);
    }
}
