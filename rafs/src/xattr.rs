//! Which extended attributes a file of Linux can have.

use crate::layout::v6::{FileType, XATTR_PREFIXES};

/// The namespace that only regular files and directories have.
const USER: &[u8] = b"user.";

/// The number that RAFS v6 has for the name's prefix, and the rest of the name. `None` for a namespace that neither RAFS nor a
/// file system of Linux stores.
pub(crate) fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    XATTR_PREFIXES.iter().find_map(|&(index, prefix)| {
        let suffix = name.strip_prefix(prefix)?;
        // A namespace has names in it; any other prefix is itself the name.
        (prefix.ends_with(b".") != suffix.is_empty()).then_some((index, suffix))
    })
}

/// Whether a file of this type can have an attribute of this name. No file system gives `user.*` to what is neither a regular
/// file nor a directory (`xattr(7)`): to set one there fails with EPERM, and programs that copy what they are shown fail too.
pub fn fits(kind: FileType, name: &[u8]) -> bool {
    matches!(kind, FileType::Regular | FileType::Directory) || !name.starts_with(USER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_attributes_are_for_files_and_directories() {
        let kinds = [FileType::Symlink, FileType::Fifo, FileType::CharDevice, FileType::Socket];
        assert!(kinds.iter().all(|kind| !fits(*kind, b"user.note") && fits(*kind, b"security.selinux")));
        assert!(fits(FileType::Regular, b"user.note") && fits(FileType::Directory, b"user.note"));
    }

    #[test]
    fn namespaces_that_nothing_stores_have_no_number() {
        assert_eq!(split(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(split(b"system.posix_acl_access"), Some((2, &b""[..])));
        for name in [&b"user."[..], b"system.posix_acl_access.x", b"com.apple.quarantine", b""] {
            assert_eq!(split(name), None, "{}", name.escape_ascii());
        }
    }
}
