//! What a walk over an image's tree finds.

use std::collections::{BTreeMap, HashSet};

use rafs::bootstrap::{Bootstrap, Nid, ReadError};
use rafs::layout::v6::FileType;
use rafs::tree::{ChunkRef, Image, Kind, NodeId, Tree};
use serde::Serialize;

/// How many of the largest files and directories are shown.
const LARGEST: usize = 10;

/// A path and its size in bytes.
#[derive(Debug, Serialize)]
pub(super) struct Sized {
    pub(super) path: String,
    pub(super) content_bytes: u64,
}

/// Everything that the tree tells.
#[derive(Default)]
pub(super) struct Survey {
    /// How many files there are, by type.
    pub(super) files: BTreeMap<&'static str, u64>,
    /// What the files hold, hard links counted once.
    pub(super) content_bytes: u64,
    /// Chunks that files refer to, each counted as often as that happens.
    pub(super) chunk_uses: u64,
    /// Chunks that files refer to, each counted once.
    pub(super) chunks: HashSet<ChunkRef>,
    sizes: Vec<Sized>,
    directories: Vec<Sized>,
    seen: HashSet<NodeId>,
}

/// A step of the walk, which keeps its own stack: an image may nest deeper than a thread's.
enum Step {
    Enter { node: NodeId, path: String, parent: usize },
    Leave { path: String, parent: usize },
}

impl Survey {
    /// Walks over the whole tree.
    pub(super) fn of(image: &Image) -> Self {
        let mut survey = Self::default();
        // The sizes of the directories that the walk is in; the first stands above the root.
        let mut open = vec![0];
        let mut steps = vec![Step::Enter { node: Tree::ROOT, path: String::new(), parent: 0 }];
        while let Some(step) = steps.pop() {
            match step {
                Step::Leave { path, parent } => {
                    let size = open.pop().unwrap_or_default();
                    survey.directories.push(Sized { path: format!("{path}/"), content_bytes: size });
                    open[parent] += size;
                }
                Step::Enter { node, path, parent } => {
                    let Some(entries) = image.tree.entries(node) else {
                        open[parent] += survey.file(node, &image.tree.node(node).kind, path);
                        continue;
                    };
                    survey.count("directory");
                    open.push(0);
                    let this = open.len() - 1;
                    let inside = entries.iter().map(|(name, node)| Step::Enter {
                        node: *node,
                        path: format!("{path}/{}", name.escape_ascii()),
                        parent: this,
                    });
                    let inside: Vec<_> = inside.collect();
                    steps.push(Step::Leave { path, parent });
                    steps.extend(inside);
                }
            }
        }
        survey
    }

    /// The largest files, the largest first.
    pub(super) fn largest_files(&mut self) -> Vec<Sized> {
        largest(std::mem::take(&mut self.sizes))
    }

    /// The directories that hold most, those in them included.
    pub(super) fn largest_directories(&mut self) -> Vec<Sized> {
        largest(std::mem::take(&mut self.directories))
    }

    fn count(&mut self, kind: &'static str) {
        *self.files.entry(kind).or_default() += 1;
    }

    /// Takes note of what is no directory, and returns its size: 0 under a second name.
    fn file(&mut self, node: NodeId, kind: &Kind, path: String) -> u64 {
        if !self.seen.insert(node) {
            return 0;
        }
        match kind {
            Kind::Regular { size, chunks } => {
                self.count(FileType::Regular.word());
                self.content_bytes += size;
                self.chunk_uses += chunks.len() as u64;
                self.chunks.extend(chunks);
                self.sizes.push(Sized { path, content_bytes: *size });
                return *size;
            }
            Kind::Directory(_) => {}
            other => self.count(other.file_type().word()),
        }
        0
    }
}

fn largest(mut all: Vec<Sized>) -> Vec<Sized> {
    all.sort_by(|a, b| b.content_bytes.cmp(&a.content_bytes).then_with(|| a.path.cmp(&b.path)));
    all.truncate(LARGEST);
    all
}

/// The prefetch list as paths, in its order; what no path leads to stays a number.
pub(super) fn prefetch(bootstrap: &Bootstrap) -> Result<Vec<String>, ReadError> {
    let list = bootstrap.prefetch()?;
    let mut paths: BTreeMap<u64, Option<String>> = list.iter().map(|nid| (nid.0, None)).collect();
    let mut missing = paths.len();
    let mut note = |nid: Nid, path: &str| {
        if let Some(found) = paths.get_mut(&nid.0).filter(|found| found.is_none()) {
            *found = Some(path.to_owned());
            missing -= 1;
        }
        missing > 0
    };
    let mut pending = Vec::new();
    if note(bootstrap.root(), "/") {
        pending.push((bootstrap.root(), String::new()));
    }
    'walk: while let Some((directory, path)) = pending.pop() {
        for entry in bootstrap.read_dir(directory, 0)? {
            let entry = entry?;
            let path = format!("{path}/{}", entry.name.escape_ascii());
            if !note(entry.nid, &path) {
                // Lists have a few names, and images may have a million: the walk ends with the last one.
                break 'walk;
            }
            if entry.kind == FileType::Directory {
                pending.push((entry.nid, path));
            }
        }
    }
    let shown = |nid: &Nid| paths[&nid.0].clone().unwrap_or_else(|| format!("inode {}", nid.0));
    Ok(list.iter().map(shown).collect())
}
