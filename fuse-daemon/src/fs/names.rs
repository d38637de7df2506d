//! Names of files, and what lies in directories: both need a walk through the image.

use std::collections::{HashMap, HashSet};

use rafs::bootstrap::{Bootstrap, Found, Nid, ReadError, Visitor, walk};
use rafs::layout::v6::FileType;
use rafs::limits::Limits;

/// What ends a walk before all was seen.
enum WalkEnd {
    /// All that is wanted was found.
    Found,
    Broken(ReadError),
}

impl From<ReadError> for WalkEnd {
    fn from(error: ReadError) -> Self {
        Self::Broken(error)
    }
}

/// The paths of `files`, in their order, each with a leading `/`: of several names the first. The walk ends with the last that is
/// found.
pub(super) fn paths(bootstrap: &Bootstrap, files: &[Nid]) -> Result<Vec<Box<[u8]>>, ReadError> {
    struct Paths {
        wanted: HashSet<Nid>,
        found: HashMap<Nid, Box<[u8]>>,
    }
    impl Visitor for Paths {
        type Error = WalkEnd;

        fn enter(&mut self, found: &Found<'_>) -> Result<(), WalkEnd> {
            if self.wanted.remove(&found.nid) {
                self.found.insert(found.nid, [b"/", found.path].concat().into());
            }
            if self.wanted.is_empty() { Err(WalkEnd::Found) } else { Ok(()) }
        }

        fn leave(&mut self, _path: &[u8], _nid: Nid) -> Result<(), WalkEnd> {
            Ok(())
        }
    }
    let mut paths = Paths { wanted: files.iter().copied().collect(), found: HashMap::new() };
    match walk(bootstrap, Limits::DEFAULT, &mut paths) {
        Ok(_) | Err(WalkEnd::Found) => {}
        Err(WalkEnd::Broken(error)) => return Err(error),
    }
    Ok(files.iter().filter_map(|file| paths.found.remove(file)).collect())
}

/// The regular files among `named`, in their order, and those in the directories among them.
pub(super) fn regular_files(bootstrap: &Bootstrap, named: &[Nid]) -> Result<Vec<Nid>, ReadError> {
    struct Below<'a> {
        /// Where in the order each directory is named.
        directories: &'a HashMap<Nid, usize>,
        /// The named directories that are open.
        open: Vec<usize>,
        found: Vec<(usize, Nid)>,
    }
    impl Visitor for Below<'_> {
        type Error = ReadError;

        fn enter(&mut self, found: &Found<'_>) -> Result<(), ReadError> {
            if let Some(place) = self.directories.get(&found.nid) {
                self.open.push(*place);
            } else if let Some(place) = self.open.iter().min()
                && found.inode.kind == FileType::Regular
            {
                self.found.push((*place, found.nid));
            }
            Ok(())
        }

        fn leave(&mut self, _path: &[u8], nid: Nid) -> Result<(), ReadError> {
            if self.directories.contains_key(&nid) {
                self.open.pop();
            }
            Ok(())
        }
    }
    let mut directories = HashMap::new();
    let mut files = Vec::new();
    for (place, nid) in named.iter().enumerate() {
        match bootstrap.inode(*nid)?.kind {
            FileType::Regular => files.push((place, *nid)),
            FileType::Directory => drop(directories.entry(*nid).or_insert(place)),
            _ => {}
        }
    }
    if !directories.is_empty() {
        let mut below = Below { directories: &directories, open: Vec::new(), found: Vec::new() };
        walk(bootstrap, Limits::DEFAULT, &mut below)?;
        files.extend(below.found);
    }
    // Stable: what lies in a directory stays in the order of names.
    files.sort_by_key(|(place, _)| *place);
    let mut seen = HashSet::new();
    Ok(files.into_iter().map(|(_, nid)| nid).filter(|nid| seen.insert(*nid)).collect())
}

#[cfg(test)]
mod tests {
    use rafs::bootstrap::{WriteOptions, write};
    use rafs::build::{BuildOptions, build_layer};
    use test_support::tar_of;

    use super::*;

    fn found(bootstrap: &Bootstrap, files: &[Nid]) -> Vec<String> {
        let found = paths(bootstrap, files).unwrap();
        found.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    #[test]
    fn a_walk_ends_with_the_last_file_that_is_looked_for() {
        let tar = tar_of(&[("dir/first", "1"), ("dir/second", "2"), ("last", "3")]);
        let layer = build_layer(tar.as_slice(), Vec::new(), &BuildOptions::default()).unwrap();
        let image = rafs::merge::merge(vec![layer]).unwrap();
        let mut bytes = Vec::new();
        write(&image, &WriteOptions::default(), &mut bytes).unwrap();
        let whole = Bootstrap::from_bytes(bytes.clone()).unwrap();
        let nids = ["dir/second", "dir/first", "last"]
            .map(|path| whole.lookup_path(path.as_bytes()).unwrap().unwrap());
        assert_eq!(found(&whole, &nids), ["/dir/second", "/dir/first", "/last"]);
        // The last inode has no type any more: whoever comes to it fails.
        let meta = u32::from_le_bytes(bytes[1024 + 40..][..4].try_into().unwrap()) as usize * 4096;
        bytes[meta + nids[2].0 as usize * 32 + 4..][..2].fill(0);
        let broken = Bootstrap::from_bytes(bytes).unwrap();
        assert_eq!(found(&broken, &nids[..2]), ["/dir/second", "/dir/first"]);
        assert!(paths(&broken, &nids).is_err());
        assert!(found(&broken, &[]).is_empty());
    }
}
