//! Walking two trees side by side.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::change::{Change, ChangeKind, Difference, Side};
use super::content::{Compared, by_digest, comparable};
use crate::blob::source::BlobError;
use crate::layout::v6::FileType;
use crate::limits::Limits;
use crate::tree::{ChunkRef, Image, Kind, Metadata, Name, NodeId, Tree};

/// Why images cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// A path is longer than a program can name.
    #[error("{start}...: a path of more than {limit} bytes")]
    LongPath {
        /// Its first bytes.
        start: String,
        /// The most that a path may have.
        limit: usize,
    },
    /// A file had to be read, and could not.
    #[error("{path}: cannot read its content")]
    Content {
        /// The file.
        path: String,
        /// Why not.
        source: Box<BlobError>,
    },
}

/// Compares files whose digests cannot be compared: gives where they differ first, `None` where they do not.
pub type ReadContent<'a> = &'a mut dyn FnMut(&[ChunkRef], &[ChunkRef]) -> Result<Option<u64>, BlobError>;

/// Tells of every path that differs between `a` and `b`, in byte order of names, directories before what is in them.
///
/// Content is compared by digests. Where these say nothing, because the images differ in chunk size or digest algorithm,
/// `read` compares the files; see [`ContentReader`](super::ContentReader). A directory that is only
/// [implied](Tree::is_implied) in `a` has no metadata that could differ.
///
/// # Errors
///
/// When a path is too long, or content cannot be read.
pub fn images(
    a: &Image,
    b: &Image,
    read: ReadContent<'_>,
    found: &mut dyn FnMut(Change),
) -> Result<(), DiffError> {
    images_within(a, b, read, found, Limits::DEFAULT)
}

/// [`images`], with paths that are no longer than `limits` say: longer ones no program can name, and a small bootstrap of nested
/// directories could fill memory with them.
///
/// # Errors
///
/// As there.
pub fn images_within(
    a: &Image,
    b: &Image,
    read: ReadContent<'_>,
    found: &mut dyn FnMut(Change),
    limits: Limits,
) -> Result<(), DiffError> {
    let (names_a, names_b) = (Names::of(&a.tree), Names::of(&b.tree));
    let comparable = comparable(a, b);
    let (path, once, limit) = (Vec::new(), HashSet::new(), limits.path_bytes);
    SideBySide { a, b, names_a, names_b, comparable, read, found, path, once, limit }.run()
}

struct SideBySide<'a> {
    a: &'a Image,
    b: &'a Image,
    names_a: Names,
    names_b: Names,
    comparable: bool,
    read: ReadContent<'a>,
    found: &'a mut dyn FnMut(Change),
    path: Vec<u8>,
    /// Files of one image alone, or pairs, whose content was counted.
    once: HashSet<(Option<NodeId>, Option<NodeId>)>,
    /// The longest path in bytes.
    limit: usize,
}

/// The files of a tree that have several names, and the name that the walk met first of those that both images have.
struct Names {
    first: HashMap<NodeId, Option<Box<[u8]>>>,
}

impl Names {
    fn of(tree: &Tree) -> Self {
        let mut seen = vec![false; tree.node_count()];
        let mut first = HashMap::new();
        let mut stack = vec![Tree::ROOT];
        while let Some(id) = stack.pop() {
            for &entry in tree.entries(id).into_iter().flat_map(BTreeMap::values) {
                if std::mem::replace(&mut seen[entry.0 as usize], true) {
                    first.insert(entry, None);
                } else if tree.entries(entry).is_some() {
                    stack.push(entry);
                }
            }
        }
        Self { first }
    }

    /// The first path of a file that is met at `path` now.
    fn meet(&mut self, id: NodeId, path: &[u8]) -> Box<[u8]> {
        match self.first.get_mut(&id) {
            Some(first) => first.get_or_insert_with(|| path.into()).clone(),
            None => path.into(),
        }
    }

    fn has_several(&self, id: NodeId) -> bool {
        self.first.contains_key(&id)
    }
}

/// A step of the walk, which keeps its own stack: an image may nest deeper than a thread's.
enum PairStep<'a> {
    Enter { name: &'a [u8], a: Option<NodeId>, b: Option<NodeId> },
    Leave { len: usize },
}

impl<'a> SideBySide<'a> {
    fn run(mut self) -> Result<(), DiffError> {
        let mut steps = Vec::new();
        self.meet(Some(Tree::ROOT), Some(Tree::ROOT), &mut steps)?;
        while let Some(step) = steps.pop() {
            match step {
                PairStep::Leave { len } => self.path.truncate(len),
                PairStep::Enter { name, a, b } => {
                    let len = self.path.len();
                    self.path.push(b'/');
                    self.path.extend_from_slice(name);
                    // The slash in front is no part of the path.
                    if self.path.len() > self.limit + 1 {
                        let shown = self.path.len().min(80);
                        let start = self.path[..shown].escape_ascii().to_string();
                        return Err(DiffError::LongPath { start, limit: self.limit });
                    }
                    steps.push(PairStep::Leave { len });
                    self.meet(a, b, &mut steps)?;
                }
            }
        }
        Ok(())
    }

    /// Looks at a path, and puts what is below it on the stack.
    fn meet(
        &mut self,
        a: Option<NodeId>,
        b: Option<NodeId>,
        steps: &mut Vec<PairStep<'a>>,
    ) -> Result<(), DiffError> {
        let (first, second) = (self.a, self.b);
        let what = match (a, b) {
            (Some(a), Some(b)) => {
                let differences = self.compare(a, b)?;
                (!differences.is_empty()).then_some(ChangeKind::Changed(differences))
            }
            (Some(a), None) => Some(ChangeKind::Removed(self.side(&first.tree, a, (Some(a), None)))),
            (None, Some(b)) => Some(ChangeKind::Added(self.side(&second.tree, b, (None, Some(b))))),
            (None, None) => None,
        };
        if let Some(what) = what {
            (self.found)(Change { path: self.path.clone(), what });
        }
        let entries = |tree: &'a Tree, id: Option<NodeId>| id.and_then(|id| tree.entries(id));
        push_entries(entries(&first.tree, a), entries(&second.tree, b), steps);
        Ok(())
    }

    fn side(&mut self, tree: &Tree, id: NodeId, key: (Option<NodeId>, Option<NodeId>)) -> Side {
        let kind = &tree.node(id).kind;
        let bytes = match kind {
            Kind::Regular { size, .. } if self.once.insert(key) => *size,
            _ => 0,
        };
        Side { kind: kind.file_type(), bytes }
    }

    fn compare(&mut self, a: NodeId, b: NodeId) -> Result<Vec<Difference>, DiffError> {
        let (ours, theirs) = (self.a.tree.node(a), self.b.tree.node(b));
        let mut found = Vec::new();
        let types = (ours.kind.file_type(), theirs.kind.file_type());
        if types.0 != types.1 {
            found.push(Difference::Type(types.0, types.1));
        }
        match (&ours.kind, &theirs.kind) {
            (Kind::Symlink(a), Kind::Symlink(b)) if a != b => {
                found.push(Difference::Target(a.clone(), b.clone()));
            }
            (Kind::CharDevice(a), Kind::CharDevice(b)) | (Kind::BlockDevice(a), Kind::BlockDevice(b))
                if a != b =>
            {
                found.push(Difference::Device(*a, *b));
            }
            (Kind::Regular { size: size_a, chunks: in_a }, Kind::Regular { size: size_b, chunks: in_b }) => {
                if size_a != size_b {
                    found.push(Difference::Size(*size_a, *size_b));
                }
                found.extend(self.content(a, b, in_a, in_b)?);
            }
            _ => {}
        }
        if !self.a.tree.is_implied(a) {
            metadata(&ours.metadata, &theirs.metadata, types.0, &mut found);
        }
        if types.0 != FileType::Directory
            && types.1 != FileType::Directory
            && (self.names_a.has_several(a) || self.names_b.has_several(b))
        {
            let firsts = (self.names_a.meet(a, &self.path), self.names_b.meet(b, &self.path));
            if firsts.0 != firsts.1 {
                found.push(Difference::HardLink(firsts.0, firsts.1));
            }
        }
        Ok(found)
    }

    fn content(
        &mut self,
        a: NodeId,
        b: NodeId,
        in_a: &[ChunkRef],
        in_b: &[ChunkRef],
    ) -> Result<Option<Difference>, DiffError> {
        let compared = match (&self.a.tree.node(a).kind, &self.b.tree.node(b).kind) {
            (Kind::Regular { size: 0, .. }, Kind::Regular { size: 0, .. }) => Compared::Same,
            (Kind::Regular { size: ours, .. }, Kind::Regular { size, .. })
                if !self.comparable && ours != size =>
            {
                Compared::Differs { offset: None, bytes: *size }
            }
            _ if self.comparable => by_digest((self.a, in_a), (self.b, in_b)),
            _ => Compared::Unknown,
        };
        let (offset, bytes) = match compared {
            Compared::Same => return Ok(None),
            Compared::Differs { offset, bytes } => (offset, bytes),
            Compared::Unknown => {
                let path = || self.path.escape_ascii().to_string();
                let read = (self.read)(in_a, in_b);
                let read =
                    read.map_err(|source| DiffError::Content { path: path(), source: Box::new(source) })?;
                let Some(offset) = read else { return Ok(None) };
                let Kind::Regular { size, .. } = self.b.tree.node(b).kind else { return Ok(None) };
                (Some(offset), size)
            }
        };
        // Counted under one of its names.
        let bytes = if self.once.insert((Some(a), Some(b))) { bytes } else { 0 };
        Ok(Some(Difference::Content { offset, bytes }))
    }
}

fn push_entries<'a>(
    a: Option<&'a BTreeMap<Name, NodeId>>,
    b: Option<&'a BTreeMap<Name, NodeId>>,
    steps: &mut Vec<PairStep<'a>>,
) {
    let start = steps.len();
    let names: BTreeSet<&[u8]> =
        a.into_iter().chain(b).flat_map(BTreeMap::keys).map(|name| &**name).collect();
    for name in names {
        let of = |entries: Option<&BTreeMap<Name, NodeId>>| entries.and_then(|all| all.get(name)).copied();
        steps.push(PairStep::Enter { name, a: of(a), b: of(b) });
    }
    // The last is taken first.
    steps[start..].reverse();
}

fn metadata(a: &Metadata, b: &Metadata, kind: FileType, found: &mut Vec<Difference>) {
    // Nobody can set the mode of a symbolic link, and archives make up one.
    if a.permissions != b.permissions && kind != FileType::Symlink {
        found.push(Difference::Mode(a.permissions, b.permissions));
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        found.push(Difference::Owner((a.uid, a.gid), (b.uid, b.gid)));
    }
    if a.mtime != b.mtime {
        found.push(Difference::Time(a.mtime, b.mtime));
    }
    let names: BTreeSet<_> = a.xattrs.keys().chain(b.xattrs.keys()).collect();
    for name in names {
        let (ours, theirs) = (a.xattrs.get(name), b.xattrs.get(name));
        if ours != theirs {
            found.push(Difference::Xattr(name.clone(), ours.cloned(), theirs.cloned()));
        }
    }
}
