//! Files that were found, layer by layer, until they are written.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::FilesError;

/// The most that files have together. Manifests and charts of the largest known clusters have some megabytes.
const LIMIT_BYTES: u64 = 256 << 20;

/// The most files.
const LIMIT_FILES: u64 = 200_000;

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
}

/// What is wanted of an image, by path.
#[derive(Debug, Default)]
pub(super) struct Collected {
    items: BTreeMap<Vec<u8>, Item>,
    bytes: u64,
}

impl Collected {
    /// How many bytes there still may be.
    pub(super) fn left(&self) -> u64 {
        LIMIT_BYTES - self.bytes
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<&Item> {
        self.items.get(path)
    }

    /// Puts `item` to `path`, in place of what is there.
    pub(super) fn put(&mut self, path: Vec<u8>, item: Item) -> Result<(), FilesError> {
        if item != Item::Directory {
            self.remove(&path);
        }
        if let Item::File(content) = &item {
            let size = content.len() as u64;
            let too_much = FilesError::TooMuch { what: "bytes", limit: LIMIT_BYTES };
            self.bytes = self.bytes.checked_add(size).filter(|sum| *sum <= LIMIT_BYTES).ok_or(too_much)?;
        }
        if self.items.len() as u64 == LIMIT_FILES {
            return Err(FilesError::TooMuch { what: "files", limit: LIMIT_FILES });
        }
        match self.items.get(&path) {
            Some(Item::Directory) if item == Item::Directory => {}
            _ => drop(self.items.insert(path, item)),
        }
        Ok(())
    }

    /// Takes away `path` and all in it.
    pub(super) fn remove(&mut self, path: &[u8]) {
        self.remove_within(path);
        if let Some(Item::File(content)) = self.items.remove(path) {
            self.bytes -= content.len() as u64;
        }
    }

    /// Takes away all that is in the directory `path`, which is empty for the root.
    pub(super) fn remove_within(&mut self, path: &[u8]) {
        let prefix: Vec<u8> = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        let within: Vec<Vec<u8>> = self
            .items
            .range(prefix.clone()..)
            .take_while(|(path, _)| path.starts_with(&prefix))
            .map(|(path, _)| path.clone())
            .collect();
        for path in within {
            if let Some(Item::File(content)) = self.items.remove(&path) {
                self.bytes -= content.len() as u64;
            }
        }
    }

    /// Writes everything to the directory `to`, which is empty.
    pub(super) fn write(&self, to: &Path) -> Result<(), FilesError> {
        // Links come last: nothing is written through one.
        let is_link = |item: &Item| matches!(item, Item::Symlink(_));
        let (links, others): (Vec<_>, Vec<_>) = self.items.iter().partition(|(_, item)| is_link(item));
        for (name, item) in others.into_iter().chain(links) {
            let path = to.join(OsStr::from_bytes(name));
            let failed = |error| FilesError::Io { path: path.clone(), error };
            let folder = path.parent().unwrap_or(to);
            fs::create_dir_all(folder).map_err(failed)?;
            match item {
                Item::Directory => fs::create_dir_all(&path).map_err(failed)?,
                Item::File(content) => fs::write(&path, content).map_err(failed)?,
                Item::Symlink(target) => {
                    std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).map_err(failed)?;
                }
            }
        }
        Ok(())
    }
}

/// A path of an archive without what stands before its first name; `None` for the root and for what leads out.
pub(super) fn normalised(path: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let leads_out = parts.contains(&b"..".as_slice()) || path.contains(&0);
    (!parts.is_empty() && !leads_out).then(|| parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_away_goes_with_all_in_it() {
        let mut collected = Collected::default();
        for path in ["a/b", "a/c/d", "a.b", "ab"] {
            collected.put(path.into(), Item::File(b"x".to_vec())).unwrap();
        }
        collected.remove(b"a");
        assert_eq!(collected.items.keys().collect::<Vec<_>>(), [&b"a.b".to_vec(), &b"ab".to_vec()]);
        assert_eq!(collected.bytes, 2);
        collected.put(b"ab/c".to_vec(), Item::Directory).unwrap();
        collected.remove_within(b"");
        assert_eq!((collected.items.len(), collected.bytes), (0, 0));
    }

    #[test]
    fn paths_that_lead_out_are_none() {
        assert_eq!(normalised(b"./a//b/"), Some(b"a/b".to_vec()));
        for path in [b"".as_slice(), b"/", b"./", b"../a", b"a/../../b", b"a\0"] {
            assert_eq!(normalised(path), None);
        }
    }
}
