//! Hard links whose target had not come when they did.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::BuildError;
use super::error::SourcePath;
use super::tree::TreeBuilder;
use crate::tree::{NodeId, Tree};

/// Hard links to be resolved at the end. Each has a placeholder node in the tree until then.
#[derive(Default)]
pub(super) struct PendingLinks {
    names: Vec<PendingName>,
    targets: HashMap<NodeId, Vec<u8>>,
}

/// A name that a placeholder was given.
struct PendingName {
    path: Vec<u8>,
    parent: NodeId,
    name: Box<[u8]>,
    placeholder: NodeId,
}

impl PendingLinks {
    /// Whether a node is a placeholder.
    pub(super) fn contains(&self, id: NodeId) -> bool {
        self.targets.contains_key(&id)
    }

    /// A link at `path`, which is `name` in `parent`, to a target that does not exist yet.
    pub(super) fn add(
        &mut self,
        path: &[u8],
        parent: NodeId,
        name: &[u8],
        placeholder: NodeId,
        target: Vec<u8>,
    ) {
        self.targets.insert(placeholder, target);
        self.add_name(path, parent, name, placeholder);
    }

    /// A link to a placeholder.
    pub(super) fn add_name(&mut self, path: &[u8], parent: NodeId, name: &[u8], placeholder: NodeId) {
        self.names.push(PendingName { path: path.to_vec(), parent, name: name.into(), placeholder });
    }

    /// Puts the targets in the placeholders' places.
    pub(super) fn resolve(self, builder: &mut TreeBuilder) -> Result<(), BuildError> {
        let mut resolved = HashMap::new();
        let mut reachable = None;
        for link in &self.names {
            // A later entry may have replaced the link. Its path says nothing: it may have led through a symbolic link that
            // was replaced since, while the directory that it led to is still there.
            let named = builder.tree.entries(link.parent).and_then(|entries| entries.get(&link.name));
            if named != Some(&link.placeholder) {
                continue;
            }
            let target = self.target_of(link.placeholder, &mut resolved, builder);
            let is_broken = target.is_none_or(|target| builder.tree.entries(target).is_some());
            // Nobody misses what is in a directory that was replaced.
            if is_broken
                && !reachable.get_or_insert_with(|| directories(&builder.tree)).contains(&link.parent)
            {
                continue;
            }
            let Some(target) = target else {
                let target = self.targets[&link.placeholder].clone();
                let path = SourcePath(link.path.clone());
                return Err(BuildError::LinkTarget { path, target: SourcePath(target) });
            };
            if builder.tree.entries(target).is_some() {
                let target = self.targets[&link.placeholder].clone();
                let path = SourcePath(link.path.clone());
                return Err(BuildError::LinkToDirectory { path, target: SourcePath(target) });
            }
            builder.name(link.parent, &link.name, target);
        }
        Ok(())
    }

    /// The node that a placeholder stands for, through other placeholders. `None` if that leads nowhere.
    fn target_of(
        &self,
        placeholder: NodeId,
        resolved: &mut HashMap<NodeId, Option<NodeId>>,
        builder: &mut TreeBuilder,
    ) -> Option<NodeId> {
        let mut passed = HashSet::new();
        let mut at = placeholder;
        let end = loop {
            if let Some(&known) = resolved.get(&at) {
                break known;
            }
            let Some(target) = self.targets.get(&at) else { break Some(at) };
            if !passed.insert(at) {
                break None;
            }
            match builder.find(target) {
                Ok(Some(next)) => at = next,
                Ok(None) | Err(_) => break None,
            }
        };
        resolved.extend(passed.into_iter().map(|id| (id, end)));
        end
    }
}

/// All directories of a tree that a path leads to.
fn directories(tree: &Tree) -> HashSet<NodeId> {
    let mut found = HashSet::from([Tree::ROOT]);
    let mut stack = vec![Tree::ROOT];
    while let Some(directory) = stack.pop() {
        for &id in tree.entries(directory).into_iter().flat_map(BTreeMap::values) {
            if tree.entries(id).is_some() && found.insert(id) {
                stack.push(id);
            }
        }
    }
    found
}
