//! Names of files, and what lies in directories: both need a walk through the image.

use std::collections::{HashMap, HashSet};

use rafs::bootstrap::{Bootstrap, Found, Nid, ReadError, Visitor, walk};
use rafs::layout::PATH_LIMIT_BYTES;
use rafs::layout::v6::FileType;
use rafs::limits::Limits;

/// Files that a prefetch table stands for, at most: some five times those of a large image.
const FILES_LIMIT: usize = 1 << 20;

/// Directories that are gone into for a prefetch table, at most: each is remembered, and a gigabyte may be nothing else.
const DIRECTORIES_LIMIT: usize = 1 << 18;

/// Directories that lie in each other, at most: a name takes a byte at least, and a `/` before it.
const DEPTH_LIMIT: usize = PATH_LIMIT_BYTES / 2;

/// What ends a walk before all was seen.
enum WalkEnd {
    /// All that is wanted was found, or as much as there may be.
    Enough,
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
            if self.wanted.is_empty() { Err(WalkEnd::Enough) } else { Ok(()) }
        }

        fn leave(&mut self, _path: &[u8], _nid: Nid) -> Result<(), WalkEnd> {
            Ok(())
        }
    }
    let mut paths = Paths { wanted: files.iter().copied().collect(), found: HashMap::new() };
    match walk(bootstrap, Limits::DEFAULT, &mut paths) {
        Ok(_) | Err(WalkEnd::Enough) => {}
        Err(WalkEnd::Broken(error)) => return Err(error),
    }
    Ok(files.iter().filter_map(|file| paths.found.remove(file)).collect())
}

/// The regular files among `named`, in their order, and those in the directories among them, in the order of names: each once,
/// where it comes first. The list ends with the first 2^20, or where directories and chunk addresses take more than a bootstrap
/// of this size can hold.
pub(super) fn regular_files(bootstrap: &Bootstrap, named: &[Nid]) -> Result<Vec<Nid>, ReadError> {
    let mut files = RegularFiles::new(bootstrap);
    match named.iter().try_for_each(|nid| files.take(*nid)) {
        Ok(()) | Err(WalkEnd::Enough) => Ok(files.found),
        Err(WalkEnd::Broken(error)) => Err(error),
    }
}

/// A search through named directories. It remembers places and no names, so that what it keeps depends on the limits alone.
struct RegularFiles<'a> {
    bootstrap: &'a Bootstrap,
    /// Bytes that directories and chunk addresses may still take. As in [`walk`], those of a sound bootstrap do not overlap, and
    /// take no more than twice its size. Thousands of hostile files may have the same addresses, and whoever fetches them reads
    /// these once for each.
    budget: u64,
    found: Vec<Nid>,
    seen: HashSet<Nid>,
    entered: HashSet<Nid>,
}

impl<'a> RegularFiles<'a> {
    fn new(bootstrap: &'a Bootstrap) -> Self {
        let (found, seen, entered) = (Vec::new(), HashSet::new(), HashSet::new());
        Self { bootstrap, budget: 2 * bootstrap.size(), found, seen, entered }
    }

    /// Adds what is named: a file, or all files in a directory.
    fn take(&mut self, named: Nid) -> Result<(), WalkEnd> {
        match self.bootstrap.inode(named)?.kind {
            FileType::Regular => self.add(named),
            FileType::Directory => self.search(named),
            _ => Ok(()),
        }
    }

    fn add(&mut self, file: Nid) -> Result<(), WalkEnd> {
        if !self.seen.insert(file) {
            return Ok(());
        }
        // Of a broken file nothing is read, and the others are still fetched: it fails when its turn comes.
        self.spend(self.bootstrap.chunks(file, 0..0).map_or(0, |pieces| pieces.stored_size()))?;
        self.found.push(file);
        if self.found.len() < FILES_LIMIT { Ok(()) } else { Err(WalkEnd::Enough) }
    }

    /// Adds all files in a directory and below, as deep as a path goes.
    fn search(&mut self, named: Nid) -> Result<(), WalkEnd> {
        // The directories that lie in each other, and where to go on in each.
        let mut open = Vec::new();
        if self.enter(named)? {
            open.push((named, 0));
        }
        while let Some((directory, offset)) = open.pop() {
            if let Some((below, next)) = self.read(directory, offset, open.len())? {
                open.extend([(directory, next), (below, 0)]);
            }
        }
        Ok(())
    }

    /// Adds the files of a directory from `offset` on, up to the first directory to go into: returns that, and where to go on
    /// behind it. `depth` is how many directories are open above.
    fn read(&mut self, directory: Nid, offset: u64, depth: usize) -> Result<Option<(Nid, u64)>, WalkEnd> {
        let bootstrap = self.bootstrap;
        for entry in bootstrap.read_dir(directory, offset)? {
            let entry = entry?;
            match bootstrap.inode(entry.nid)?.kind {
                FileType::Regular => self.add(entry.nid)?,
                FileType::Directory if depth < DEPTH_LIMIT && self.enter(entry.nid)? => {
                    return Ok(Some((entry.nid, entry.next_offset)));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Whether to go into a directory: once into each, and into no more than the limit says.
    fn enter(&mut self, directory: Nid) -> Result<bool, WalkEnd> {
        if self.entered.len() == DIRECTORIES_LIMIT || !self.entered.insert(directory) {
            return Ok(false);
        }
        // Paid for before it is read: many directories may lie over each other in the same bytes.
        self.spend(self.bootstrap.directory_size(directory)?)?;
        Ok(true)
    }

    fn spend(&mut self, bytes: u64) -> Result<(), WalkEnd> {
        self.budget = self.budget.checked_sub(bytes).ok_or(WalkEnd::Enough)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rafs::bootstrap::{WriteOptions, write};
    use rafs::build::{BuildOptions, build_layer};
    use rafs::layout::v6::{CHUNK_FORMAT_INDEXES, LAYOUT_CHUNKED};
    use test_support::tar_of;

    use super::*;

    fn found(bootstrap: &Bootstrap, files: &[Nid]) -> Vec<String> {
        let found = paths(bootstrap, files).unwrap();
        found.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    fn bootstrap_of(tar: &[u8]) -> Vec<u8> {
        let layer = build_layer(tar, Vec::new(), &BuildOptions::default()).unwrap();
        let image = rafs::merge::merge(vec![layer]).unwrap();
        let mut bytes = Vec::new();
        write(&image, &WriteOptions::default(), &mut bytes).unwrap();
        bytes
    }

    /// Where inodes begin, in bytes.
    fn inodes(bootstrap: &[u8]) -> usize {
        u32::from_le_bytes(bootstrap[1024 + 40..][..4].try_into().unwrap()) as usize * 4096
    }

    #[test]
    fn a_walk_ends_with_the_last_file_that_is_looked_for() {
        let tar = tar_of(&[("dir/first", "1"), ("dir/second", "2"), ("last", "3")]);
        let mut bytes = bootstrap_of(&tar);
        let whole = Bootstrap::from_bytes(bytes.clone()).unwrap();
        let nids = ["dir/second", "dir/first", "last"]
            .map(|path| whole.lookup_path(path.as_bytes()).unwrap().unwrap());
        assert_eq!(found(&whole, &nids), ["/dir/second", "/dir/first", "/last"]);
        // The last inode has no type any more: whoever comes to it fails.
        let meta = inodes(&bytes);
        bytes[meta + nids[2].0 as usize * 32 + 4..][..2].fill(0);
        let broken = Bootstrap::from_bytes(bytes).unwrap();
        assert_eq!(found(&broken, &nids[..2]), ["/dir/second", "/dir/first"]);
        assert!(paths(&broken, &nids).is_err());
        assert!(found(&broken, &[]).is_empty());
    }

    /// A tar with directories in directories, and `dir/c` as a second name of `last`.
    fn tar_with_link() -> Vec<u8> {
        let files = ["dir/a/deep/one", "dir/a/two", "dir/b", "dir/z/three", "last"].map(|path| (path, path));
        let mut tar = tar::Builder::new(tar_of(&files));
        // Without the two blocks of zeros that end it.
        tar.get_mut().truncate(tar_of(&files).len() - 1024);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_mode(0o644);
        header.set_size(0);
        tar.append_link(&mut header, "dir/c", "last").unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn files_in_named_directories_are_listed_once_in_the_order_of_names() {
        let bootstrap = Bootstrap::from_bytes(bootstrap_of(&tar_with_link())).unwrap();
        let nid = |path: &&str| bootstrap.lookup_path(path.as_bytes()).unwrap().unwrap();
        let (one, two, b, three) = ("dir/a/deep/one", "dir/a/two", "dir/b", "dir/z/three");
        assert_eq!(nid(&"dir/c"), nid(&"last"));
        let cases: [(&[&str], &[&str]); 6] = [
            (&[""], &[one, two, b, "last", three]),
            (&["dir", "dir/a", b], &[one, two, b, "last", three]),
            (&["dir/a/deep", "dir/a"], &[one, two]),
            (&["last", "dir/z", "dir"], &["last", three, one, two, b]),
            (&[b, "dir/a/deep", "dir"], &[b, one, two, "last", three]),
            (&[], &[]),
        ];
        for (named, expected) in cases {
            let listed = regular_files(&bootstrap, &named.iter().map(nid).collect::<Vec<_>>()).unwrap();
            assert_eq!(listed, expected.iter().map(nid).collect::<Vec<_>>(), "{named:?}");
        }
    }

    #[test]
    fn files_that_share_chunk_addresses_are_listed_as_far_as_a_sound_bootstrap_could_hold_them() {
        const FILES: usize = 64;
        const CHUNKS: u32 = 2048;
        let mut bytes = bootstrap_of(&tar_of(&[("file", "content")]));
        let chunk_size = Bootstrap::from_bytes(bytes.clone()).unwrap().chunk_size();
        let start = bytes.len().next_multiple_of(32);
        bytes.resize(start, 0);
        // One behind the other: the addresses of each begin where the next inode does.
        let mut inode = [0; 32];
        inode[..2].copy_from_slice(&(LAYOUT_CHUNKED << 1).to_le_bytes());
        inode[4..6].copy_from_slice(&0o100644_u16.to_le_bytes());
        inode[8..12].copy_from_slice(&(CHUNKS * chunk_size).to_le_bytes());
        inode[16..20].copy_from_slice(&(CHUNK_FORMAT_INDEXES | (chunk_size.ilog2() - 12)).to_le_bytes());
        bytes.extend(inode.repeat(FILES));
        bytes.resize(bytes.len() + CHUNKS as usize * 8, 0);
        let first = (start - inodes(&bytes)) / 32;
        let named: Vec<_> = (first..first + FILES).map(|nid| Nid(nid as u64)).collect();
        let bootstrap = Bootstrap::from_bytes(bytes).unwrap();
        let listed = regular_files(&bootstrap, &named).unwrap();
        let expected = 2 * bootstrap.size() as usize / (CHUNKS as usize * 8);
        assert!((1..FILES).contains(&expected), "{expected}");
        assert_eq!(listed, named[..expected]);
    }
}
