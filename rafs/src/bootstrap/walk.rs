//! Walking through all files of an image, within bounds that a hostile bootstrap cannot exceed.

use std::collections::{HashMap, HashSet};

use super::{At, Bootstrap, Inode, Nid, ReadError};
use crate::layout::v6::FileType;
use crate::limits::Limits;

/// A file, as it is found under one of its names.
#[derive(Debug)]
pub struct Found<'a> {
    /// FileNames from the root, without a leading `/`; empty for the root.
    pub path: &'a [u8],
    /// Its inode's number.
    pub nid: Nid,
    /// Its inode.
    pub inode: Inode,
    /// The directory that it is found in; of the root, the root.
    pub directory: Nid,
    /// Its type, as that directory has it.
    pub listed_kind: FileType,
    names: &'a FileNames,
}

impl Found<'_> {
    /// Whether the same file was found before, under another name.
    pub fn is_link(&self) -> bool {
        self.names.first.contains_key(&self.nid)
    }

    /// The path under which the same file was found before.
    pub fn link_to(&self) -> Option<Vec<u8>> {
        self.is_link().then(|| self.names.path(self.nid, usize::MAX))
    }

    /// Its name in its directory.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
    }
}

/// What is wrong with a name, or with what it leads to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Flaw {
    /// The inode cannot be read, or overlaps others. It is left out.
    Inode(ReadError),
    /// What the directory holds cannot be read, or not to its end. The rest is left out.
    Directory(ReadError),
    /// It does not come behind the name before it in byte order.
    Order,
    /// The directory has a name already. It is not gone into again.
    SecondName,
    /// The path is longer than the limits allow.
    LongPath,
}

impl Flaw {
    /// The flaw of the file `nid` as an error that ends a walk.
    fn into_error(self, nid: Nid) -> ReadError {
        match self {
            Self::Inode(error) | Self::Directory(error) => error,
            Self::Order => corrupt(nid, "names in ascending order"),
            Self::SecondName => corrupt(nid, "directories with one name each"),
            Self::LongPath => corrupt(nid, "paths that a system call takes"),
        }
    }
}

/// What is done while walking.
pub trait Visitor {
    /// What ends the walk.
    type Error: From<ReadError>;

    /// For every file, directories before what is in them, names in byte order.
    ///
    /// # Errors
    ///
    /// The walk ends with it.
    fn enter(&mut self, found: &Found<'_>) -> Result<(), Self::Error>;

    /// For every directory, after all that is in it.
    ///
    /// # Errors
    ///
    /// The walk ends with it.
    fn leave(&mut self, path: &[u8], nid: Nid) -> Result<(), Self::Error>;

    /// For what is wrong at `path`, which leads to `nid`. Whoever lists flaws returns `Ok`, and the walk goes on.
    ///
    /// # Errors
    ///
    /// The walk ends with it; unless a visitor says otherwise, it ends with the first flaw.
    fn flaw(&mut self, _path: &[u8], nid: Nid, flaw: Flaw) -> Result<(), Self::Error> {
        Err(flaw.into_error(nid).into())
    }
}

/// Walks through all of an image, and returns which files it met how often. Directories with two names and paths longer than `limits`
/// allow are flaws, and so are inodes that overlap: the work is in proportion to the bootstrap's size.
///
/// # Errors
///
/// The visitor's own, or that the bootstrap is broken.
pub fn walk<V: Visitor>(
    bootstrap: &Bootstrap,
    limits: Limits,
    visitor: &mut V,
) -> Result<FileNames, V::Error> {
    let names = FileNames { directories: Vec::new(), first: HashMap::new() };
    let mut walk = FileWalk { bootstrap, budget: 2 * bootstrap.size(), names, pending: Vec::new() };
    let mut directories = HashSet::new();
    let mut path = Vec::new();
    let root = bootstrap.root();
    let entry =
        ListedName { nid: root, directory: root, kind: FileType::Directory, parent: 0, name: [].into() };
    walk.pending.push(Step::Enter(entry));
    while let Some(step) = walk.pending.pop() {
        let entry = match step {
            Step::Enter(entry) => entry,
            Step::Leave { nid, above } => {
                visitor.leave(&path, nid)?;
                path.truncate(above);
                continue;
            }
        };
        let above = path.len();
        if above > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        let nid = entry.nid;
        // A small bootstrap of nested directories would make a huge archive otherwise, where each entry has the whole path.
        if path.len() > limits.path_bytes {
            visitor.flaw(&path, nid, Flaw::LongPath)?;
        }
        if directories.contains(&nid) {
            visitor.flaw(&path, nid, Flaw::SecondName)?;
            path.truncate(above);
            continue;
        }
        let inode = match walk.inode(nid) {
            Ok(inode) => inode,
            Err(error) => {
                visitor.flaw(&path, nid, Flaw::Inode(error))?;
                path.truncate(above);
                continue;
            }
        };
        let ListedName { directory, kind: listed_kind, .. } = entry;
        visitor.enter(&Found { path: &path, nid, inode, directory, listed_kind, names: &walk.names })?;
        if inode.kind != FileType::Directory {
            path.truncate(above);
            walk.names.met(entry);
            continue;
        }
        directories.insert(nid);
        walk.names.directories.push((entry.parent, entry.name));
        walk.pending.push(Step::Leave { nid, above });
        walk.enter(nid, &mut path, visitor)?;
    }
    Ok(walk.names)
}

enum Step {
    Enter(ListedName),
    Leave { nid: Nid, above: usize },
}

/// A name of a directory.
struct ListedName {
    nid: Nid,
    directory: Nid,
    kind: FileType,
    /// The directory's place in [`FileNames::directories`].
    parent: usize,
    name: Box<[u8]>,
}

struct FileWalk<'a> {
    bootstrap: &'a Bootstrap,
    /// Bytes that inodes, the content of directories, link targets and chunk addresses may still take. They do not overlap (but in
    /// version 5, where directories consist of inodes, these count twice), so together they are no larger than the
    /// bootstrap.
    budget: u64,
    names: FileNames,
    pending: Vec<Step>,
}

/// The names that a walk met. Paths are put together only where one is asked for: those of many files below long names would take a
/// hundred times the bootstrap's size otherwise.
#[derive(Debug)]
pub struct FileNames {
    /// Of each directory, its parent's place here and its name. The root is the first, and its own parent.
    directories: Vec<(usize, Box<[u8]>)>,
    /// Directory and name under which each other file was met first, and how often it was.
    first: HashMap<Nid, First>,
}

#[derive(Debug)]
struct First {
    directory: usize,
    name: Box<[u8]>,
    count: u32,
}

impl FileNames {
    /// A link count that lies must not turn one file into two, so every file is remembered.
    fn met(&mut self, entry: ListedName) {
        let ListedName { nid, parent, name, .. } = entry;
        let first = self.first.entry(nid).or_insert(First { directory: parent, name, count: 0 });
        first.count = first.count.saturating_add(1);
    }

    /// The files other than directories, in the order in which they were met first by directory and name, and how many names each has.
    pub fn counts(&self) -> Vec<(Nid, u32)> {
        let mut files: Vec<_> = self.first.iter().collect();
        files.sort_unstable_by(|(_, a), (_, b)| (a.directory, &a.name).cmp(&(b.directory, &b.name)));
        files.into_iter().map(|(nid, first)| (*nid, first.count)).collect()
    }

    /// The path under which a file was met first, without a leading `/`. Of one that is longer than `limit` the last names, behind
    /// `...`.
    pub fn path(&self, nid: Nid, limit: usize) -> Vec<u8> {
        let Some(First { directory, name, .. }) = self.first.get(&nid) else { return Vec::new() };
        let (mut directory, mut length) = (*directory, name.len());
        let mut names = vec![&name[..]];
        while directory > 0 {
            if length > limit {
                names.push(b"...");
                break;
            }
            let (parent, name) = &self.directories[directory];
            length += name.len() + 1;
            names.push(name);
            directory = *parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

impl FileWalk<'_> {
    /// Puts the entries of the directory that was met last on the list, so that the first comes next. `path` is its own.
    fn enter<V: Visitor>(&mut self, nid: Nid, path: &mut Vec<u8>, visitor: &mut V) -> Result<(), V::Error> {
        let start = self.pending.len();
        let parent = self.names.directories.len() - 1;
        let bootstrap = self.bootstrap;
        let entries = bootstrap
            .directory_size(nid)
            // Paid for before it is read: in a hostile bootstrap thousands of directories may lie over each other in the
            // same bytes.
            .and_then(|size| self.spend(nid, size))
            .and_then(|()| bootstrap.read_dir(nid, 0));
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return visitor.flaw(path, nid, Flaw::Directory(error)),
        };
        let mut last: Option<&[u8]> = None;
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    // Behind a broken entry nothing says where the next one begins.
                    visitor.flaw(path, nid, Flaw::Directory(error))?;
                    break;
                }
            };
            if last.is_some_and(|last| last >= entry.name) {
                let above = path.len();
                if above > 0 {
                    path.push(b'/');
                }
                path.extend_from_slice(entry.name);
                visitor.flaw(path, nid, Flaw::Order)?;
                path.truncate(above);
            }
            last = Some(entry.name);
            let name = entry.name.into();
            let entry = ListedName { nid: entry.nid, directory: nid, kind: entry.kind, parent, name };
            self.pending.push(Step::Enter(entry));
        }
        self.pending[start..].reverse();
        Ok(())
    }

    /// Reads an inode. One that is met for the first time is counted, with its extended attributes and chunk addresses.
    fn inode(&mut self, nid: Nid) -> Result<Inode, ReadError> {
        let inode = self.bootstrap.inode(nid)?;
        if self.names.first.contains_key(&nid) {
            return Ok(inode);
        }
        self.spend(nid, self.bootstrap.inode_size(nid)?)?;
        match inode.kind {
            FileType::Regular => self.spend(nid, self.bootstrap.chunks(nid, 0..0)?.stored_size())?,
            FileType::Symlink => self.spend(nid, inode.size)?,
            _ => {}
        }
        Ok(inode)
    }

    fn spend(&mut self, nid: Nid, size: u64) -> Result<(), ReadError> {
        let left = self.budget.checked_sub(size);
        self.budget = left.ok_or(corrupt(nid, "inodes and directories that do not overlap"))?;
        Ok(())
    }
}

fn corrupt(nid: Nid, expected: &'static str) -> ReadError {
    ReadError::corrupt("directory", At::Number(nid.0), expected)
}
