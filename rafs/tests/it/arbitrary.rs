//! Arbitrary file trees.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use rafs::tree::{DeviceNumber, Metadata, Time, Xattrs};

/// A file of any type, by value: names that share content are names of one file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct File {
    pub(crate) metadata: Metadata,
    pub(crate) kind: FileKind,
}

/// What a file is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum FileKind {
    Directory,
    Regular(SegmentedContent),
    Symlink(Vec<u8>),
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
}

/// Data at offsets, in order, with holes between; and the size.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SegmentedContent {
    pub(crate) segments: Vec<(u64, Vec<u8>)>,
    pub(crate) size: u64,
}

impl SegmentedContent {
    /// The content with its holes as zeros.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        for (offset, data) in &self.segments {
            bytes[*offset as usize..][..data.len()].copy_from_slice(data);
        }
        bytes
    }
}

/// A tree as a list: every path, the number of its file, and the files. The root's path is empty and the first; a
/// directory's comes before those in it.
#[derive(Clone, Debug)]
pub(crate) struct FileTree {
    pub(crate) files: Vec<File>,
    pub(crate) names: BTreeMap<Vec<u8>, usize>,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(File),
    Directory(Metadata, BTreeMap<Vec<u8>, Node>),
}

/// Trees of some dozens of files, up to six levels deep, with hard links to files of every type but directories.
pub(crate) fn file_tree() -> impl Strategy<Value = FileTree> {
    let leaf = (metadata(), leaf_kind()).prop_map(|(mut metadata, kind)| {
        // What no file system gives to other types is left out.
        if !matches!(kind, FileKind::Regular(_)) {
            metadata.xattrs.retain(|name, _| !name.starts_with(b"user."));
        }
        Node::Leaf(File { metadata, kind })
    });
    let node = leaf.prop_recursive(6, 64, 12, |node| {
        (metadata(), btree_map(name(), node, 0..12))
            .prop_map(|(metadata, entries)| Node::Directory(metadata, entries))
    });
    let root = (metadata(), btree_map(name(), node, 0..16));
    let links = vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), name()), 0..6);
    (root, links).prop_map(|((metadata, entries), links)| {
        let mut tree = FileTree { files: Vec::new(), names: BTreeMap::new() };
        tree.flatten(Vec::new(), Node::Directory(metadata, entries));
        for (target, directory, name) in links {
            tree.link(target, directory, &name);
        }
        tree
    })
}

impl FileTree {
    pub(crate) fn file(&self, path: &[u8]) -> &File {
        &self.files[self.names[path]]
    }

    fn flatten(&mut self, path: Vec<u8>, node: Node) {
        self.names.insert(path.clone(), self.files.len());
        match node {
            Node::Leaf(file) => self.files.push(file),
            Node::Directory(metadata, entries) => {
                self.files.push(File { metadata, kind: FileKind::Directory });
                for (name, node) in entries {
                    self.flatten(joined(&path, &name), node);
                }
            }
        }
    }

    /// Gives one of the files that may have it another name, if that is free.
    fn link(&mut self, target: prop::sample::Index, directory: prop::sample::Index, name: &[u8]) {
        let is_directory = |number: &usize| self.files[*number].kind == FileKind::Directory;
        let directories = self.names.iter().filter(|(_, number)| is_directory(number));
        let directories = directories.map(|(path, _)| path.clone()).collect::<Vec<_>>();
        let targets = self.names.values().filter(|number| !is_directory(number)).copied().collect::<Vec<_>>();
        if !targets.is_empty() {
            let directory: &Vec<u8> = directory.get(&directories);
            let path = joined(directory, name);
            self.names.entry(path).or_insert(*target.get(&targets));
        }
    }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Any name but those that mean something: `.`, `..` and whiteouts.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/') { b'_' } else { byte });
    let any_name = prop_oneof![
        6 => "[a-z.-]{1,6}".prop_map(String::into_bytes),
        2 => vec(byte.clone(), 1..40),
        1 => vec(byte, 255),
    ];
    any_name.prop_filter("names that mean something", |name| {
        !matches!(name.as_slice(), b"." | b"..") && !name.starts_with(b".wh.")
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let owner = || prop_oneof![3 => 0..2_000_u32, 1 => any::<u32>()];
    let seconds = prop_oneof![3 => 0..2_000_000_000_i64, 1 => -10_000_000_000..100_000_000_000_i64];
    let nanoseconds = prop_oneof![1 => Just(0), 1 => 0..1_000_000_000_u32];
    let time = (seconds, nanoseconds).prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds });
    (0..0o10000_u16, owner(), owner(), time, xattrs())
        .prop_map(|(permissions, uid, gid, mtime, xattrs)| Metadata { permissions, uid, gid, mtime, xattrs })
}

fn xattrs() -> impl Strategy<Value = Xattrs> {
    let name = "(user|trusted|security)\\.[a-z.]{1,20}".prop_map(|name| Box::from(name.as_bytes()));
    let value = vec(any::<u8>(), 0..200).prop_map(Box::from);
    prop_oneof![4 => Just(Xattrs::new()), 1 => btree_map(name, value, 1..5)]
}

fn leaf_kind() -> impl Strategy<Value = FileKind> {
    let device = || (0..1_u32 << 12, 0..1_u32 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor });
    let target =
        prop_oneof![4 => "[a-z./]{1,20}".prop_map(String::into_bytes), 1 => vec(1..=255_u8, 1..4095)];
    prop_oneof![
        8 => content().prop_map(FileKind::Regular),
        2 => target.prop_map(FileKind::Symlink),
        1 => device().prop_map(FileKind::CharDevice),
        1 => device().prop_map(FileKind::BlockDevice),
        1 => Just(FileKind::Fifo),
    ]
}

fn content() -> impl Strategy<Value = SegmentedContent> {
    let gap = prop_oneof![3 => Just(0), 1 => 0..20_000_u64];
    // Bytes that repeat, so that chunks do too, and so that some compress and some do not.
    let data = (any::<u8>(), 1..=3_u8, 1..9_000_usize).prop_map(|(seed, step, length)| {
        let next = |byte: &u8| Some(byte.wrapping_mul(step).wrapping_add(seed));
        std::iter::successors(Some(seed & 3), next).take(length).collect::<Vec<_>>()
    });
    (vec((gap.clone(), data), 0..4), gap).prop_map(|(pieces, end)| {
        let mut segments = Vec::new();
        let mut size = 0;
        for (gap, data) in pieces {
            segments.push((size + gap, data));
            size += gap + segments.last().map_or(0, |(_, data)| data.len() as u64);
        }
        SegmentedContent { segments, size: size + end }
    })
}
