//! Hard links whose target had not come when they did.

use std::collections::{HashMap, HashSet};

use super::BuildError;
use super::error::SourcePath;
use super::tree::TreeBuilder;
use crate::tree::NodeId;

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
        for link in &self.names {
            // A later entry may have replaced the link, or a directory above it.
            if builder.find(&link.path).ok().flatten() != Some(link.placeholder) {
                continue;
            }
            let target = self.target_of(link.placeholder, &mut resolved, builder);
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
