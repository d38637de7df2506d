//! Files that decide how registries are read: whether one of them has changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Entries of a folder of settings that are looked at: one folder a registry, each with a few certificates.
const ENTRIES_LIMIT: usize = 4096;

/// What a file was when it was looked at: device, inode, length, and when it was last changed.
type Look = Option<(u64, u64, u64, i64, i64)>;

/// What files were when they were looked at.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Looks(Vec<(PathBuf, Look)>);

impl Looks {
    /// Looks at `files`, and at all in `folders` and in the folders there. Links are followed, so that one that leads
    /// elsewhere is a change.
    pub(super) fn at(files: &[PathBuf], folders: &[PathBuf]) -> Self {
        let mut looks = Vec::new();
        for file in files {
            looks.push((file.clone(), look(file)));
        }
        for folder in folders {
            add_folder(&mut looks, folder, 2);
        }
        Self(looks)
    }
}

fn look(path: &Path) -> Look {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
}

fn add_folder(looks: &mut Vec<(PathBuf, Look)>, folder: &Path, depth: usize) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        if looks.len() >= ENTRIES_LIMIT {
            return;
        }
        looks.push((path.clone(), look(&path)));
        if depth > 1 && path.is_dir() {
            add_folder(looks, &path, depth - 1);
        }
    }
}
