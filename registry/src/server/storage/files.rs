//! Files and folders that appear whole or not at all.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::failed;
use crate::server::error::Failure;

/// Writes a small file under another name, and moves it to `path` when it is on the disk. It is found there after a
/// loss of power.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let changed = create_parent(path)?;
    let temporary = temporary_for(path)?;
    let write = || {
        let mut file = File::create_new(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        failed("writing", path)(e)
    })?;
    sync_folders(&changed)
}

/// Creates the folder of `path`, and returns the folders that must be on the disk for `path` to be found: its own, and
/// those above that got a new entry for it.
pub(super) fn create_parent(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let parent = path.parent().unwrap_or(path);
    let mut changed = vec![parent.to_owned()];
    let mut created = parent;
    while !created.try_exists().map_err(failed("looking for", created))? {
        let Some(above) = created.parent() else { break };
        changed.push(above.to_owned());
        created = above;
    }
    fs::create_dir_all(parent).map_err(failed("creating folder", parent))?;
    Ok(changed)
}

/// Brings the entries of `folders` to the disk.
pub(super) fn sync_folders(folders: &[PathBuf]) -> Result<(), Failure> {
    for folder in folders {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(failed("syncing folder", folder))?;
    }
    Ok(())
}

/// A name of its own in the folder of `path`, that CNCF distribution passes over.
fn temporary_for(path: &Path) -> Result<PathBuf, Failure> {
    Ok(path.with_file_name(format!(".new-{}", random_id()?)))
}

/// A random UUID (version 4), the form of upload ids.
pub(super) fn random_id() -> Result<String, Failure> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).map_err(failed("reading", source))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    Ok([&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_version_4_uuids_and_differ() {
        let (one, other) = (random_id().unwrap(), random_id().unwrap());
        assert_ne!(one, other);
        let lengths: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!((lengths.as_slice(), &one[14..15]), (&[8, 4, 4, 4, 12][..], "4"));
    }

    #[test]
    fn a_file_written_atomically_leaves_nothing_next_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/link");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn every_folder_with_a_new_entry_is_to_be_synced() {
        let dir = tempfile::tempdir().unwrap();
        let under = |name: &str| dir.path().join(name);
        let changed = create_parent(&under("a/b/link")).unwrap();
        assert_eq!(changed, [under("a/b"), under("a"), dir.path().to_owned()]);
        assert_eq!(create_parent(&under("a/b/other")).unwrap(), [under("a/b")]);
        assert_eq!(create_parent(&under("a/c/link")).unwrap(), [under("a/c"), under("a")]);
        sync_folders(&changed).unwrap();
        let error = sync_folders(&[under("gone")]).unwrap_err().to_string();
        assert!(error.contains("gone"), "{error}");
    }
}
