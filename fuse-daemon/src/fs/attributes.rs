//! Inode numbers and attributes.

use rafs::bootstrap::{Inode, Nid};

/// The inode number of a file towards the kernel.
///
/// It is the file's nid, except that FUSE wants 1 for the root: the root's nid and 1 change places.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of every file system.
    pub const ROOT: Self = Self(1);

    /// The number of a file of an image with that root.
    pub fn of(nid: Nid, root: Nid) -> Self {
        Self(swap(nid.0, root))
    }

    /// The file's nid in an image with that root.
    pub fn nid(self, root: Nid) -> Nid {
        Nid(swap(self.0, root))
    }
}

fn swap(number: u64, Nid(root): Nid) -> u64 {
    match number {
        number if number == root => Ino::ROOT.0,
        number if number == Ino::ROOT.0 => root,
        number => number,
    }
}

/// What `stat` tells of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attributes {
    /// Its number.
    pub ino: Ino,
    /// Everything else.
    pub inode: Inode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_files_are_their_nids_and_the_root_is_one() {
        let root = Nid(36);
        assert_eq!(Ino::of(root, root), Ino::ROOT);
        for nid in [0, 1, 2, 36, 37, u64::MAX].map(Nid) {
            assert_eq!(Ino::of(nid, root).nid(root), nid);
        }
        assert_eq!(Ino::of(Nid(37), root), Ino(37));
        assert_ne!(Ino::of(Nid(1), root), Ino::ROOT);
    }
}
