//! Paths and globs of an image's files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use rafs::tree::{Name, NodeId, Tree};

/// Characters that make a text a glob.
const SPECIAL: &[char] = &['*', '?', '[', '{', '\\'];

/// A path in an image, or a glob of paths.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// This path.
    Path(Box<[u8]>),
    /// All paths that match, from the root and without the slash there.
    Glob(Glob),
}

impl Pattern {
    /// A path as text; a glob where it has one of `*?[{\`. In globs, `*` and `?` stand for what is within a name, `**` for any
    /// number of directories, `[a-z]` and `{a,b}` for one of several, and what follows `\` for itself.
    ///
    /// # Errors
    ///
    /// When it is a glob that cannot be; it says what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.contains(SPECIAL) {
            return Ok(Self::Path(text.as_bytes().into()));
        }
        let relative = text.trim_start_matches('/');
        let glob = GlobBuilder::new(relative).literal_separator(true).backslash_escape(true).build();
        let expected = |error: globset::Error| {
            format!(
                "expected paths, or globs such as /usr/lib/**/*.so with \\ before what stands for itself: {}",
                error.kind()
            )
        };
        glob.map(Self::Glob).map_err(expected)
    }

    /// The paths of a list, one a line, each taken as it stands; empty lines are left out.
    pub fn list(content: &[u8]) -> Vec<Self> {
        let lines = content.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
        lines.filter(|line| !line.is_empty()).map(|line| Self::Path(line.into())).collect()
    }
}

/// What `patterns` mean in `tree`: for each, in their order, its path or the paths that match it, in the tree's order.
pub fn expand(patterns: &[Pattern], tree: &Tree) -> Vec<Box<[u8]>> {
    let globs: Vec<&Glob> = patterns.iter().filter_map(Pattern::as_glob).collect();
    let mut found = match set_of(&globs) {
        Some(set) if !globs.is_empty() => matches(&set, tree),
        _ => BTreeMap::new(),
    };
    let mut number = 0..;
    let mut paths = Vec::new();
    for pattern in patterns {
        match pattern {
            Pattern::Path(path) => paths.push(path.clone()),
            Pattern::Glob(glob) => {
                let matched =
                    number.next().and_then(|number: usize| found.remove(&number)).unwrap_or_default();
                if matched.is_empty() {
                    tracing::warn!(glob = %glob, "prefetch: nothing in the image matches");
                }
                paths.extend(matched);
            }
        }
    }
    paths
}

impl Pattern {
    fn as_glob(&self) -> Option<&Glob> {
        match self {
            Self::Path(_) => None,
            Self::Glob(glob) => Some(glob),
        }
    }
}

fn set_of(globs: &[&Glob]) -> Option<GlobSet> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add((*glob).clone());
    }
    match builder.build() {
        Ok(set) => Some(set),
        // Each is one alone; only all of them together may be too large.
        Err(error) => {
            tracing::warn!(%error, "prefetch: the globs are too large together and are left out");
            None
        }
    }
}

/// The paths of the tree that match, by the number of their glob.
fn matches(set: &GlobSet, tree: &Tree) -> BTreeMap<usize, Vec<Box<[u8]>>> {
    let mut found: BTreeMap<usize, Vec<Box<[u8]>>> = BTreeMap::new();
    let mut path = Vec::new();
    // Directories under way: where each one's path ends, and the entries that are still to come.
    let mut open: Vec<(usize, Vec<(&Name, NodeId)>)> = vec![(0, entries(tree, Tree::ROOT))];
    let mut numbers = Vec::new();
    while let Some((end, rest)) = open.last_mut() {
        let end = *end;
        let Some((name, id)) = rest.pop() else {
            open.pop();
            continue;
        };
        path.truncate(end);
        if end > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        set.matches_into(Path::new(OsStr::from_bytes(&path)), &mut numbers);
        for number in &numbers {
            found.entry(*number).or_default().push(path.as_slice().into());
        }
        if tree.entries(id).is_some() {
            open.push((path.len(), entries(tree, id)));
        }
    }
    found
}

/// A directory's entries, the last first.
fn entries(tree: &Tree, id: NodeId) -> Vec<(&Name, NodeId)> {
    tree.entries(id).into_iter().flatten().rev().map(|(name, id)| (name, *id)).collect()
}

#[cfg(test)]
mod tests {
    use rafs::build::{BuildOptions, build_layer};

    use super::*;

    fn tree(paths: &[&str]) -> Tree {
        let mut tar = tar::Builder::new(Vec::new());
        for path in paths {
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            tar.append_data(&mut header, path, std::io::empty()).unwrap();
        }
        let options = BuildOptions { threads: 1, ..BuildOptions::default() };
        build_layer(tar.into_inner().unwrap().as_slice(), std::io::sink(), &options).unwrap().tree
    }

    fn expanded(texts: &[&str], tree: &Tree) -> Vec<String> {
        let patterns: Vec<Pattern> = texts.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        let paths = expand(&patterns, tree);
        paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    }

    #[test]
    fn globs_stand_for_the_paths_that_match_in_the_order_of_the_patterns() {
        let tree = tree(&["usr/lib/b.so", "usr/lib/a.so", "usr/lib/x/c.so", "usr/bin/[", "etc/a,b"]);
        assert_eq!(
            expanded(&["/usr/bin", "/usr/lib/*.so"], &tree),
            ["/usr/bin", "usr/lib/a.so", "usr/lib/b.so"]
        );
        assert_eq!(expanded(&["/usr/**/*.so"], &tree), ["usr/lib/a.so", "usr/lib/b.so", "usr/lib/x/c.so"]);
        assert_eq!(
            expanded(&["usr/lib/?.so", "/usr/bin/\\["], &tree),
            ["usr/lib/a.so", "usr/lib/b.so", "usr/bin/["]
        );
        assert_eq!(expanded(&["/etc/a\\,b", "/none/*"], &tree), ["etc/a,b"]);
        assert_eq!(expanded(&["/usr/{bin,lib/x}/*"], &tree), ["usr/bin/[", "usr/lib/x/c.so"]);
    }

    #[test]
    fn a_list_has_paths_and_no_globs() {
        let tree = tree(&["usr/bin/[", "usr/bin/a"]);
        let listed = Pattern::list(b"/usr/bin/[\n\n /usr/bin/* \n");
        let paths = expand(&listed, &tree);
        assert_eq!(paths, [Box::from(&b"/usr/bin/["[..]), Box::from(&b"/usr/bin/*"[..])]);
    }

    #[test]
    fn a_glob_that_cannot_be_says_why() {
        let error = Pattern::parse("/usr/bin/[").unwrap_err();
        assert!(error.contains("unclosed character class") && error.contains('\\'), "{error}");
    }
}
