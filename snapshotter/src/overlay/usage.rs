//! What a directory takes on disk.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::Error;
use crate::state::Usage;

/// Unit of `st_blocks`, whatever the file system's block size.
const BLOCK_BYTES: u64 = 512;

/// Counts files and bytes of a directory and all in it, a file with several names once. What disappears meanwhile is not
/// counted: a container may be at work in it.
pub(crate) fn disk_usage(root: &Path) -> Result<Usage, Error> {
    let mut seen = HashSet::new();
    let (mut inodes, mut blocks) = (0_i64, 0_u64);
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let Some(metadata) = unless_gone(fs::symlink_metadata(&path), &path)? else { continue };
        let linked = !metadata.is_dir() && metadata.nlink() > 1;
        if linked && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        inodes = inodes.saturating_add(1);
        blocks = blocks.saturating_add(metadata.blocks());
        if metadata.is_dir() {
            let Some(entries) = unless_gone(fs::read_dir(&path), &path)? else { continue };
            for entry in entries {
                pending.extend(unless_gone(entry, &path)?.map(|entry| entry.path()));
            }
        }
    }
    let size = i64::try_from(blocks.saturating_mul(BLOCK_BYTES)).unwrap_or(i64::MAX);
    Ok(Usage { inodes, size })
}

fn unless_gone<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("measure", path)(error)),
    }
}
