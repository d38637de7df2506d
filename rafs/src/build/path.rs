//! Paths of entries: from raw bytes to names below the root.

use super::error::PathProblem;

/// Longest name in bytes that a file system holds.
pub(super) const MOST_NAME_BYTES: usize = 255;

/// Longest path in bytes that a system call takes (`PATH_MAX` without its NUL). Also bounds the depth of a tree.
const MOST_PATH_BYTES: usize = 4095;

/// The names that `path` leads through from the root, taken literally (symbolic links are not looked at): no empty ones,
/// no `.`, and `..` goes up but never out of the root. An empty list is the root.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathProblem> {
    if path.len() > MOST_PATH_BYTES {
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
            name if name.len() > MOST_NAME_BYTES => {
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
