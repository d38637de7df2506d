//! A file tree in memory: what a layer or an image contains, free of any on-disk layout.
//!
//! Directories map names to nodes, so a hard link is a second name for the same [`NodeId`] and link counts are derived.

mod walk;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use self::walk::{Stop, TooManySteps, Walk};
use crate::blob::{BlobIndex, ChunkIndex};
use crate::layout::v6::FileType;

/// Handle of a node in its [`Tree`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub(crate) u32);

/// A file name: any bytes but `/` and NUL, 1 to 255 of them.
pub type Name = Box<[u8]>;

/// Extended attributes, by full name (`user.a`, `security.capability`).
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Seconds and nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What every node has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metadata {
    /// Permission bits with set-uid, set-gid and sticky: `0o7777`.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification of the content.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// A device number.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the 32 bits of an inode, as Linux has them: 12 of the major number, in the middle, and 20 of the minor one.
    pub(crate) fn decode(number: u32) -> Self {
        Self { major: (number >> 8) & 0xfff, minor: (number & 0xff) | ((number >> 12) & 0xf_ff00) }
    }

    /// The 32 bits of an inode; `None` where the numbers do not fit.
    pub(crate) fn encode(self) -> Option<u32> {
        let Self { major, minor } = self;
        let fits = major < 1 << 12 && minor < 1 << 20;
        fits.then_some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
    }
}

/// A piece of a regular file: one chunk, in file order. Every chunk but the last is of the image's chunk size.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChunkRef {
    /// The blob that holds it.
    pub blob: BlobIndex,
    /// The chunk in that blob.
    pub chunk: ChunkIndex,
}

/// What a node is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A directory and its entries.
    Directory(BTreeMap<Name, NodeId>),
    /// A regular file: size in bytes, and its chunks.
    Regular {
        /// Size in bytes.
        size: u64,
        /// `size` divided by chunk size, rounded up, of them.
        chunks: Vec<ChunkRef>,
    },
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

impl Kind {
    /// The type alone.
    pub fn file_type(&self) -> FileType {
        match self {
            Self::Directory(_) => FileType::Directory,
            Self::Regular { .. } => FileType::Regular,
            Self::Symlink(_) => FileType::Symlink,
            Self::CharDevice(_) => FileType::CharDevice,
            Self::BlockDevice(_) => FileType::BlockDevice,
            Self::Fifo => FileType::Fifo,
            Self::Socket => FileType::Socket,
        }
    }
}

/// A file of any type.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Owner, mode, time, extended attributes.
    pub metadata: Metadata,
    /// Type and content.
    pub kind: Kind,
}

/// An arena of nodes; the first is the root directory. Nodes that no directory names any more are not part of the tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Directories that have no entry of their own in what the tree was made of.
    implied: BTreeSet<NodeId>,
}

impl Tree {
    /// The root directory of every tree.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree of an empty root directory, mode 0755.
    pub fn new() -> Self {
        let metadata = Metadata { permissions: 0o755, ..Metadata::default() };
        Self {
            nodes: vec![Node { metadata, kind: Kind::Directory(BTreeMap::new()) }],
            implied: BTreeSet::new(),
        }
    }

    /// Adds a node that no directory names yet.
    ///
    /// # Panics
    ///
    /// With 2^32 nodes, more than memory holds.
    pub fn add(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("fewer than 2^32 nodes"));
        self.nodes.push(node);
        id
    }

    /// The node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The node, to change it.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// The entries of a directory; `None` for other nodes.
    pub fn entries(&self, id: NodeId) -> Option<&BTreeMap<Name, NodeId>> {
        match &self.node(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// The entries of a directory, to change them; `None` for other nodes.
    pub fn entries_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Name, NodeId>> {
        match &mut self.node_mut(id).kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Follows names from the root, without following symbolic links.
    pub fn lookup<'a>(&self, path: impl IntoIterator<Item = &'a [u8]>) -> Option<NodeId> {
        path.into_iter().try_fold(Self::ROOT, |id, name| self.entries(id)?.get(name).copied())
    }

    /// Whether a directory is there only because something is in it: a layer that holds `a/b` and has no entry for `a`.
    /// Its metadata is made up, so a merge keeps that of the directory below it.
    pub fn is_implied(&self, id: NodeId) -> bool {
        self.implied.contains(&id)
    }

    /// Says whether a directory [is implied](Self::is_implied). Nodes are not when added.
    pub fn set_implied(&mut self, id: NodeId, implied: bool) {
        if implied {
            self.implied.insert(id);
        } else {
            self.implied.remove(&id);
        }
    }

    /// All nodes ever added, to change them.
    pub(crate) fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut()
    }

    /// The number of nodes ever added, so one more than the largest index of [`NodeId`].
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

/// One layer as built from its source: whiteouts are still entries (`.wh.name`, `.wh..wh..opq`) of its tree, and all
/// chunks are in its own blob, [`BlobIndex`] 0, unless a chunk dictionary was given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layer {
    /// What the layer contains.
    pub tree: Tree,
    /// The blobs its chunks are in: its own first, then those of a chunk dictionary.
    pub blobs: Vec<crate::blob::Blob>,
}

/// A merged image: one tree without whiteouts, over all blobs that it uses, in order of first use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Image {
    /// What a container sees.
    pub tree: Tree,
    /// The blobs that chunks refer to.
    pub blobs: Vec<crate::blob::Blob>,
}
