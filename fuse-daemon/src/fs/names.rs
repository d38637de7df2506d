//! Names of files, and what lies in directories: both need a walk through the image.

use std::collections::{HashMap, HashSet};

use rafs::bootstrap::{Bootstrap, Found, Nid, ReadError, Visitor, walk};
use rafs::layout::v6::FileType;
use rafs::limits::Limits;

/// The paths of `files`, in their order, each with a leading `/`: of several names the first.
pub(super) fn paths(bootstrap: &Bootstrap, files: &[Nid]) -> Result<Vec<Box<[u8]>>, ReadError> {
    struct Paths {
        wanted: HashSet<Nid>,
        found: HashMap<Nid, Box<[u8]>>,
    }
    impl Visitor for Paths {
        type Error = ReadError;

        fn enter(&mut self, found: &Found<'_>) -> Result<(), ReadError> {
            if self.wanted.remove(&found.nid) {
                self.found.insert(found.nid, [b"/", found.path].concat().into());
            }
            Ok(())
        }

        fn leave(&mut self, _path: &[u8], _nid: Nid) -> Result<(), ReadError> {
            Ok(())
        }
    }
    let mut paths = Paths { wanted: files.iter().copied().collect(), found: HashMap::new() };
    walk(bootstrap, Limits::DEFAULT, &mut paths)?;
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
