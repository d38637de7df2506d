//! The program that runs.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// What Linux adds to the name of a program whose file was removed or replaced.
const DELETED: &[u8] = b" (deleted)";

/// Where the running program was started from. If its file was replaced meanwhile, that is where the new one is.
///
/// # Errors
///
/// `/proc` is not there.
pub fn path() -> io::Result<PathBuf> {
    std::env::current_exe().map(|path| without_mark(path.as_os_str(), |path| path.exists()))
}

fn without_mark(path: &OsStr, exists: impl Fn(&PathBuf) -> bool) -> PathBuf {
    let path = PathBuf::from(path);
    // A file may be called so.
    if exists(&path) {
        return path;
    }
    match path.as_os_str().as_bytes().strip_suffix(DELETED) {
        Some(before) => PathBuf::from(std::ffi::OsString::from_vec(before.to_vec())),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_is_where_it_was() {
        let at = |path: &str, exists| without_mark(OsStr::new(path), |_| exists);
        assert_eq!(at("/bin/x", true), PathBuf::from("/bin/x"));
        assert_eq!(at("/bin/x (deleted)", false), PathBuf::from("/bin/x"));
        assert_eq!(at("/bin/x (deleted)", true), PathBuf::from("/bin/x (deleted)"));
    }
}
