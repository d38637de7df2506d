//! Paths of entries: from raw bytes to names below the root.

use super::error::PathProblem;
use crate::layout::{NAME_LIMIT_BYTES, PATH_LIMIT_BYTES};

/// The names that `path` leads through from the root, taken literally (symbolic links are not looked at): no empty ones,
/// no `.`, and `..` goes up but never out of the root. An empty list is the root.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathProblem> {
    // This bounds the depth of a tree too.
    if path.len() > PATH_LIMIT_BYTES {
        return Err(PathProblem::TooLong { length: path.len() });
    }
    if path.contains(&0) {
        return Err(PathProblem::Nul);
    }
    let mut names = Vec::with_capacity(8);
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => _ = names.pop(),
            name if name.len() > NAME_LIMIT_BYTES => {
                return Err(PathProblem::NameTooLong { length: name.len() });
            }
            name => names.push(name),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(path: &str) -> String {
        let names = components(path.as_bytes()).unwrap();
        names.iter().map(|name| str::from_utf8(name).unwrap()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn every_spelling_of_a_path_leads_to_the_same_names() {
        for path in ["a/b", "./a/b", "/a/b", "//a/./b/", "x/../a/b", "../../a/b", "/../a/c/../b", "a/b/."] {
            assert_eq!(joined(path), "a|b", "{path}");
        }
        for root in ["", ".", "./", "/", "..", "a/..", "../../"] {
            assert_eq!(joined(root), "", "{root}");
        }
    }

    #[test]
    fn impossible_names_are_refused() {
        assert!(components(&[b'n'; 255]).is_ok());
        assert_eq!(components(&[b'n'; 256]), Err(PathProblem::NameTooLong { length: 256 }));
        assert_eq!(components(b"a\0b"), Err(PathProblem::Nul));
        assert_eq!(components(&b"a/".repeat(2048)), Err(PathProblem::TooLong { length: 4096 }));
    }
}
