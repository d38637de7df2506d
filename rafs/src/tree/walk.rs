//! Walking through a tree along a path that may lead through symbolic links, never out of the root.

use super::{Kind, NodeId, Tree};

/// The most steps that one walk may take, symbolic links included: a bound on the work that one entry can cause.
const STEPS_LIMIT: usize = 4096;

/// A walk took too many steps, as those through a loop of links do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TooManySteps;

/// A walk under way.
pub(crate) struct Walk {
    /// The directories from the root to where the walk is.
    stack: Vec<NodeId>,
    /// The names still to be walked, in reverse.
    names: Vec<Box<[u8]>>,
    steps: usize,
}

/// Where a walk has come to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    /// The directory that the path leads to.
    Arrived(NodeId),
    /// This directory, in which the next name does not exist or is neither directory nor link. The walk can go on once
    /// it is a directory.
    Missing(NodeId),
}

impl Walk {
    /// A walk along `names` from the last of `stack`, the directories from the root on.
    pub(crate) fn new(stack: Vec<NodeId>, names: &[&[u8]]) -> Self {
        let names = names.iter().rev().map(|&name| name.into()).collect();
        Self { stack, names, steps: 0 }
    }

    /// The next name, after [`Stop::Missing`].
    pub(crate) fn next_name(&self) -> &[u8] {
        self.names.last().map_or(b"", |name| name)
    }

    /// Walks on as far as there are directories and links.
    pub(crate) fn advance(&mut self, tree: &Tree) -> Result<Stop, TooManySteps> {
        while let Some(name) = self.names.last() {
            self.steps += 1;
            if self.steps > STEPS_LIMIT {
                return Err(TooManySteps);
            }
            let at = self.at();
            if **name == *b".." {
                self.names.pop();
                self.stack.truncate(self.stack.len().saturating_sub(1).max(1));
                continue;
            }
            let child = tree.entries(at).and_then(|entries| entries.get(name)).copied();
            match child.map(|id| (id, &tree.node(id).kind)) {
                Some((id, Kind::Directory(_))) => {
                    self.names.pop();
                    self.stack.push(id);
                }
                Some((_, Kind::Symlink(target))) => {
                    self.names.pop();
                    self.follow(target)?;
                }
                _ => return Ok(Stop::Missing(at)),
            }
        }
        Ok(Stop::Arrived(self.at()))
    }

    /// Puts the names of a link's target in front of those still to be walked.
    fn follow(&mut self, target: &[u8]) -> Result<(), TooManySteps> {
        if target.starts_with(b"/") {
            self.stack.truncate(1);
        }
        // `..` stays: what is before it may be a link.
        let names = target.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
        // Counted before they are kept: a target may be far longer than any that can be followed.
        self.steps += names.clone().take(STEPS_LIMIT + 1).count();
        if self.steps > STEPS_LIMIT {
            return Err(TooManySteps);
        }
        self.names.extend(names.rev().map(Box::from));
        Ok(())
    }

    fn at(&self) -> NodeId {
        self.stack.last().copied().unwrap_or(Tree::ROOT)
    }
}
