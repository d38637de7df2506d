//! Walking through all files of an image, within bounds that a hostile bootstrap cannot exceed.

use std::collections::{HashMap, HashSet};

use super::{At, Bootstrap, Inode, Nid, ReadError};
use crate::layout::v6::FileType;
use crate::limits::Limits;

/// A file, as it is found under one of its names.
#[derive(Debug)]
pub struct Found<'a> {
    /// Names from the root, without a leading `/`; empty for the root.
    pub path: &'a [u8],
    /// Its inode's number.
    pub nid: Nid,
    /// Its inode.
    pub inode: Inode,
    /// The path under which the same file was found before.
    pub link_to: Option<Vec<u8>>,
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
}

/// Walks through all of an image. Directories with two names and paths longer than `limits` allow are refused, and so are
/// inodes that overlap: the work is in proportion to the bootstrap's size.
///
/// # Errors
///
/// The visitor's own, or that the bootstrap is broken.
pub fn walk<V: Visitor>(bootstrap: &Bootstrap, limits: Limits, visitor: &mut V) -> Result<(), V::Error> {
    let mut walk = Walk { bootstrap, budget: 2 * bootstrap.size(), names: Vec::new(), first: HashMap::new() };
    let mut directories = HashSet::new();
    let mut path = Vec::new();
    let mut pending = vec![Step::Enter { nid: bootstrap.root(), parent: 0, name: [].into() }];
    while let Some(step) = pending.pop() {
        let (nid, parent, name) = match step {
            Step::Enter { nid, parent, name } => (nid, parent, name),
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
        path.extend_from_slice(&name);
        // A small bootstrap of nested directories would make a huge archive otherwise, where each entry has the whole path.
        if path.len() > limits.path_bytes {
            return Err(corrupt(nid, "paths that a system call takes").into());
        }
        let inode = bootstrap.inode(nid)?;
        let link_to = walk.first_path(nid);
        if link_to.is_none() {
            walk.spend_inode(nid, &inode)?;
        }
        visitor.enter(&Found { path: &path, nid, inode, link_to })?;
        if inode.kind != FileType::Directory {
            path.truncate(above);
            // A link count that lies must not turn one file into two, so every file is remembered.
            walk.first.entry(nid).or_insert((parent, name));
            continue;
        }
        if !directories.insert(nid) {
            return Err(corrupt(nid, "directories with one name each").into());
        }
        walk.names.push((parent, name));
        pending.push(Step::Leave { nid, above });
        walk.enter(nid, &mut pending)?;
    }
    Ok(())
}

enum Step {
    Enter { nid: Nid, parent: usize, name: Box<[u8]> },
    Leave { nid: Nid, above: usize },
}

struct Walk<'a> {
    bootstrap: &'a Bootstrap,
    /// Bytes that inodes, the content of directories, link targets and chunk addresses may still take. They do not overlap (but in
    /// version 5, where directories consist of inodes, these count twice), so together they are no larger than the
    /// bootstrap.
    budget: u64,
    /// Of each directory, its parent's place here and its name. The root is the first, and its own parent.
    names: Vec<(usize, Box<[u8]>)>,
    /// Directory and name under which each other file was met first.
    first: HashMap<Nid, (usize, Box<[u8]>)>,
}

impl Walk<'_> {
    /// Puts the entries of the directory that was met last on the list, so that the first comes next.
    fn enter(&mut self, nid: Nid, pending: &mut Vec<Step>) -> Result<(), ReadError> {
        self.spend(nid, self.bootstrap.directory_size(nid)?)?;
        let start = pending.len();
        let mut last: Option<&[u8]> = None;
        for entry in self.bootstrap.read_dir(nid, 0)? {
            let entry = entry?;
            if last.is_some_and(|last| last >= entry.name) {
                return Err(corrupt(nid, "names in ascending order"));
            }
            last = Some(entry.name);
            pending.push(Step::Enter {
                nid: entry.nid,
                parent: self.names.len() - 1,
                name: entry.name.into(),
            });
        }
        pending[start..].reverse();
        Ok(())
    }

    /// Counts an inode that is met for the first time, with its extended attributes and chunk addresses.
    fn spend_inode(&mut self, nid: Nid, inode: &Inode) -> Result<(), ReadError> {
        self.spend(nid, self.bootstrap.inode_size(nid)?)?;
        match inode.kind {
            FileType::Regular => self.spend(nid, self.bootstrap.chunks(nid, 0..0)?.stored_size()),
            FileType::Symlink => self.spend(nid, inode.size),
            _ => Ok(()),
        }
    }

    fn spend(&mut self, nid: Nid, size: u64) -> Result<(), ReadError> {
        let left = self.budget.checked_sub(size);
        self.budget = left.ok_or(corrupt(nid, "inodes and directories that do not overlap"))?;
        Ok(())
    }

    /// The path under which a file was met first.
    fn first_path(&self, nid: Nid) -> Option<Vec<u8>> {
        let (directory, name) = self.first.get(&nid)?;
        let mut directory = *directory;
        let mut names = vec![&name[..]];
        while directory > 0 {
            let (parent, name) = &self.names[directory];
            names.push(name);
            directory = *parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }
}

fn corrupt(nid: Nid, expected: &'static str) -> ReadError {
    ReadError::corrupt("directory", At::Number(nid.0), expected)
}
