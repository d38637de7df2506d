//! Stacking trees.

use std::collections::{BTreeMap, HashMap};

use super::whiteout::{Meaning, hide_overlay_xattrs, is_opaque, meaning};
use crate::tree::{Kind, Metadata, Name, Node, NodeId, Stop, TooManySteps, Tree, Walk};

/// A stack of trees as one; chunk references are still those of the layer that a node is from.
pub(super) struct Stacked {
    pub(super) tree: Tree,
    /// The layer of every node of the tree.
    pub(super) origin: Vec<u32>,
}

/// Stacks trees, the lowest first.
pub(super) fn stack(layers: Vec<Tree>) -> Stacked {
    let mut stacked = Stacked { tree: Tree::new(), origin: vec![0] };
    for (layer, tree) in (0..).zip(layers) {
        Applied::new(&mut stacked, layer, tree).run();
    }
    stacked
}

/// A layer that is being laid over a stack.
struct Applied<'a> {
    below: &'a mut Stacked,
    layer: u32,
    upper: Tree,
    /// The nodes of the stack that nodes of the layer have become: hard links stay hard links.
    moved: Vec<Option<NodeId>>,
    /// Directories of the layer whose entries are still to be applied, and what they are in the stack.
    todo: Vec<(NodeId, NodeId)>,
    /// Directories that the layer implies where the stack has a symbolic link.
    through_links: Vec<ThroughLink>,
    /// The parents of the stack's directories, once a link has to be followed.
    parents: Option<HashMap<NodeId, NodeId>>,
}

/// A layer that has `bin/tool` and no entry for `bin`, over a layer where `bin` is a symbolic link: unpacking the one
/// over the other puts the tool where the link leads.
struct ThroughLink {
    /// The implied directory in the layer.
    upper: NodeId,
    /// The directory of the stack that the link is in.
    parent: NodeId,
    name: Name,
}

/// A layer's directory, taken apart.
#[derive(Default)]
struct Entries {
    opaque: bool,
    removed: Vec<Name>,
    files: Vec<(Name, NodeId)>,
}

impl<'a> Applied<'a> {
    fn new(below: &'a mut Stacked, layer: u32, upper: Tree) -> Self {
        let moved = vec![None; upper.node_count()];
        Self { below, layer, upper, moved, todo: Vec::new(), through_links: Vec::new(), parents: None }
    }

    fn run(mut self) {
        if !self.upper.is_implied(Tree::ROOT) {
            self.replace_metadata(Tree::ROOT, Tree::ROOT);
        }
        self.todo.push((Tree::ROOT, Tree::ROOT));
        self.apply_directories();
        // What links lead to depends on all else that the layer has.
        while !self.through_links.is_empty() {
            self.resolve_links();
            self.apply_directories();
        }
    }

    fn apply_directories(&mut self) {
        while let Some((upper, lower)) = self.todo.pop() {
            self.apply_directory(upper, lower);
        }
    }

    /// Finds the directories that links lead to.
    fn resolve_links(&mut self) {
        for ThroughLink { upper, parent, name } in std::mem::take(&mut self.through_links) {
            let parents = self.parents.get_or_insert_with(|| parents(&self.below.tree));
            let mut stack = vec![parent];
            while let Some(&above) = stack.last().and_then(|id| parents.get(id)) {
                stack.push(above);
            }
            stack.reverse();
            let end = match Walk::new(stack, &[&name]).advance(&self.below.tree) {
                Ok(Stop::Arrived(id)) => id,
                // Nowhere: the directory takes the link's place.
                Ok(Stop::Missing(_)) | Err(TooManySteps) => {
                    let id = self.add_directory(upper, parent);
                    if let Some(entries) = self.below.tree.entries_mut(parent) {
                        entries.insert(name, id);
                    }
                    id
                }
            };
            self.todo.push((upper, end));
        }
    }

    fn apply_directory(&mut self, upper: NodeId, lower: NodeId) {
        let Entries { opaque, removed, files } = self.take_entries(upper);
        let mut entries = self.below.tree.entries_mut(lower).map(std::mem::take).unwrap_or_default();
        if opaque {
            entries.clear();
        }
        for name in removed {
            entries.remove(&name);
        }
        let entries = if entries.is_empty() {
            // The common case: nothing below, and the names come sorted, so the map is made in one go.
            files.into_iter().map(|(name, id)| (name, self.apply(id, None, lower))).collect()
        } else {
            for (name, id) in files {
                let below = entries.get(&name).copied();
                if self.leads_through(id, below) {
                    self.through_links.push(ThroughLink { upper: id, parent: lower, name });
                    continue;
                }
                let id = self.apply(id, below, lower);
                entries.insert(name, id);
            }
            entries
        };
        if let Some(place) = self.below.tree.entries_mut(lower) {
            *place = entries;
        }
    }

    /// Takes a directory of the layer apart.
    fn take_entries(&mut self, directory: NodeId) -> Entries {
        let entries: BTreeMap<_, _> =
            self.upper.entries_mut(directory).map(std::mem::take).unwrap_or_default();
        let metadata = &self.upper.node(directory).metadata;
        let mut taken = Entries { opaque: is_opaque(metadata), ..Entries::default() };
        for (name, id) in entries {
            match meaning(&name, self.upper.node(id), metadata) {
                Meaning::File => taken.files.push((name, id)),
                Meaning::Removes(removed) => taken.removed.push(removed.into()),
                Meaning::Opaque => taken.opaque = true,
                Meaning::Ignored => {}
            }
        }
        taken
    }

    /// The stack's node for a node of the layer that comes to lie over `below` in the directory `parent` of the stack.
    fn apply(&mut self, upper: NodeId, below: Option<NodeId>, parent: NodeId) -> NodeId {
        if self.upper.entries(upper).is_none() {
            return self.adopt(upper);
        }
        let below = below.filter(|&id| self.below.tree.entries(id).is_some());
        let id = match below {
            Some(id) => {
                if !self.upper.is_implied(upper) {
                    self.replace_metadata(upper, id);
                }
                id
            }
            None => self.add_directory(upper, parent),
        };
        self.todo.push((upper, id));
        id
    }

    /// Whether a node of the layer is a directory that is only implied, over a symbolic link.
    fn leads_through(&self, upper: NodeId, below: Option<NodeId>) -> bool {
        let is_link = |id| matches!(self.below.tree.node(id).kind, Kind::Symlink(_));
        self.upper.is_implied(upper) && below.is_some_and(is_link)
    }

    /// Adds an empty directory to the stack, with the metadata of the layer's.
    fn add_directory(&mut self, upper: NodeId, parent: NodeId) -> NodeId {
        let metadata = self.take_metadata(upper);
        let id = self.add(Node { metadata, kind: Kind::Directory(BTreeMap::new()) });
        self.below.tree.set_implied(id, self.upper.is_implied(upper));
        if let Some(parents) = &mut self.parents {
            parents.insert(id, parent);
        }
        id
    }

    /// Moves a node that is no directory to the stack, once for all its names.
    fn adopt(&mut self, upper: NodeId) -> NodeId {
        if let Some(id) = self.moved[upper.0 as usize] {
            return id;
        }
        let metadata = self.take_metadata(upper);
        let kind = std::mem::replace(&mut self.upper.node_mut(upper).kind, Kind::Fifo);
        let id = self.add(Node { metadata, kind });
        self.moved[upper.0 as usize] = Some(id);
        id
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.below.origin.push(self.layer);
        self.below.tree.add(node)
    }

    fn replace_metadata(&mut self, upper: NodeId, lower: NodeId) {
        self.below.tree.node_mut(lower).metadata = self.take_metadata(upper);
        self.below.tree.set_implied(lower, false);
    }

    /// Takes what a node shows of its metadata. What overlayfs notes in a directory stays: its entries depend on it.
    fn take_metadata(&mut self, upper: NodeId) -> Metadata {
        let node = self.upper.node_mut(upper);
        let mut metadata = match node.kind {
            Kind::Directory(_) => node.metadata.clone(),
            _ => std::mem::take(&mut node.metadata),
        };
        hide_overlay_xattrs(&mut metadata.xattrs);
        metadata
    }
}

/// The parents of all directories but the root.
fn parents(tree: &Tree) -> HashMap<NodeId, NodeId> {
    let mut parents = HashMap::new();
    let mut stack = vec![Tree::ROOT];
    while let Some(directory) = stack.pop() {
        for &id in tree.entries(directory).into_iter().flat_map(BTreeMap::values) {
            if tree.entries(id).is_some() {
                parents.insert(id, directory);
                stack.push(id);
            }
        }
    }
    parents
}
