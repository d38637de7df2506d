//! Files that are left out.

use std::path::Path;

use ::ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::DiscoverError;
use super::tree::Tree;

/// Where a tree says itself what is to be left out.
const FILE: &str = ".sealignore";

/// Patterns in the syntax of `.gitignore`, from the tree's root.
#[derive(Debug)]
pub(crate) struct Ignore(Gitignore);

impl Ignore {
    /// What the tree's `.sealignore` says, and after that `patterns`: the last one that fits counts.
    pub(crate) fn new(tree: &Tree, patterns: &[String]) -> Result<Self, DiscoverError> {
        let mut builder = GitignoreBuilder::new("");
        let own = if tree.exists(Path::new(FILE)) { tree.text(Path::new(FILE))? } else { String::new() };
        let lines = own.lines().enumerate().map(|(index, line)| (format!("{FILE}:{}", index + 1), line));
        for (place, line) in lines.chain(patterns.iter().map(|pattern| (pattern.clone(), pattern.as_str()))) {
            builder
                .add_line(None, line)
                .map_err(|error| DiscoverError::Ignore { pattern: place, reason: error.to_string() })?;
        }
        let built = builder.build();
        let matcher = built.map_err(|error| DiscoverError::Ignore {
            pattern: patterns.join(", "),
            reason: error.to_string(),
        })?;
        Ok(Self(matcher))
    }

    /// Whether `path` is left out, by itself or with a folder that it is in.
    pub(crate) fn covers(&self, path: &Path, is_dir: bool) -> bool {
        !path.as_os_str().is_empty() && self.0.matched_path_or_any_parents(path, is_dir).is_ignore()
    }
}
