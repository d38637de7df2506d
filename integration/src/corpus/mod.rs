//! Layers with everything that may be in one: as the tar that a builder would get, and as the directory that unpacking
//! it must leave.
//!
//! A layer is a list of entries, in order. [`Layer::write_tar`] spells them in the dialect and with the path that each
//! asks for; [`Tree`] lays them over one another by the rules of OCI layers, with system calls alone. So a test has
//! what goes in and, independent of any reader of tar, what is to come out.

mod archive;
mod directory;
mod everything;

pub use archive::{Dialect, Sparse};
pub use directory::Tree;
pub use everything::{base, beyond_upstream, large_file, many_entries, upper};

/// A layer of an image.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// Its entries, in order.
    pub entries: Vec<Entry>,
}

/// An entry of a layer.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The path as the tar has it.
    pub spelled: Vec<u8>,
    /// The path that is meant: names from the root, without a leading or trailing slash; empty for the root.
    pub path: Vec<u8>,
    /// Type and content.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// Names and values of extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// How the tar says all this.
    pub dialect: Dialect,
}

/// What an entry is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(Content),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Another name for the entry of this path, which may come later.
    HardLink(Vec<u8>),
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// Not a file: the path is removed from the layers below. The tar spells it `.wh.name`.
    Whiteout,
    /// Not a file: what the directory of the path has in the layers below is removed. The tar spells it `.wh..wh..opq`.
    Opaque,
}

/// The content of a file: data at offsets, in order, with holes between.
#[derive(Clone, Debug)]
pub struct Content {
    /// Offsets in bytes, and what is there.
    pub segments: Vec<(u64, Vec<u8>)>,
    /// Size in bytes, holes included.
    pub size: u64,
    /// How holes are written.
    pub sparse: Sparse,
}

impl From<&[u8]> for Content {
    fn from(data: &[u8]) -> Self {
        Self { segments: vec![(0, data.to_vec())], size: data.len() as u64, sparse: Sparse::Dense }
    }
}

impl Content {
    /// Data at offsets.
    pub fn sparse(segments: &[(u64, &[u8])], size: u64, sparse: Sparse) -> Self {
        let segments = segments.iter().map(|(offset, data)| (*offset, data.to_vec())).collect();
        Self { segments, size, sparse }
    }
}

impl Layer {
    /// Adds an entry of mode 0755, owned by root, with a time in whole seconds, in the dialect of ustar.
    pub fn add(&mut self, path: impl AsRef<[u8]>, kind: Kind) -> &mut Entry {
        let path = path.as_ref().to_vec();
        let entry = Entry {
            spelled: path.clone(),
            path,
            kind,
            mode: 0o755,
            owner: (0, 0),
            mtime: (1_700_000_000, 0),
            xattrs: Vec::new(),
            dialect: Dialect::Ustar,
        };
        self.entries.push(entry);
        self.entries.last_mut().expect("one was just added")
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: impl AsRef<[u8]>) -> &mut Entry {
        self.add(path, Kind::Directory)
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> &mut Entry {
        self.add(path, Kind::File(content.as_ref().into())).mode(0o644)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Entry {
        self.add(path, Kind::Symlink(target.as_ref().to_vec())).mode(0o777)
    }

    /// Adds a hard link.
    pub fn link(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Entry {
        self.add(path, Kind::HardLink(target.as_ref().to_vec()))
    }

    /// Removes a path of the layers below.
    pub fn whiteout(&mut self, path: impl AsRef<[u8]>) {
        self.add(path, Kind::Whiteout).mode(0);
    }

    /// Removes what the layers below have in a directory.
    pub fn opaque(&mut self, path: impl AsRef<[u8]>) {
        self.add(path, Kind::Opaque).mode(0);
    }
}

impl Entry {
    /// With this path in the tar, which need not look like the one that is meant.
    pub fn spelled(&mut self, spelled: impl AsRef<[u8]>) -> &mut Self {
        self.spelled = spelled.as_ref().to_vec();
        self
    }

    /// With these permission bits.
    pub fn mode(&mut self, mode: u32) -> &mut Self {
        self.mode = mode;
        self
    }

    /// Of this user and group.
    pub fn owner(&mut self, uid: u32, gid: u32) -> &mut Self {
        self.owner = (uid, gid);
        self
    }

    /// Of this time.
    pub fn mtime(&mut self, seconds: i64, nanoseconds: u32) -> &mut Self {
        self.mtime = (seconds, nanoseconds);
        self
    }

    /// With an extended attribute; needs [`Dialect::Pax`].
    pub fn xattr(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Self {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// In this dialect.
    pub fn dialect(&mut self, dialect: Dialect) -> &mut Self {
        self.dialect = dialect;
        self
    }
}

/// Reproducible bytes: one in `repeat` is new, so 1 does not compress.
pub fn bytes(seed: u64, length: usize, repeat: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u8
    };
    let mut bytes = Vec::with_capacity(length + repeat);
    while bytes.len() < length {
        let byte = next();
        bytes.extend(std::iter::repeat_n(byte, repeat));
    }
    bytes.truncate(length);
    bytes
}
