//! Whether an image has extended attributes at all.

use std::collections::HashSet;

use rafs::bootstrap::{Bootstrap, ReadError};
use rafs::layout::v6::FileType;

/// Bytes of a bootstrap that each entry of a directory takes at least.
const ENTRY_BYTES: u64 = 12;

/// Whether some file of an image has extended attributes, found by looking at all: the bootstrap's own word for it is not always
/// right. Of one whose directories have more entries than fit into it, `true`.
pub(super) fn has_any(bootstrap: &Bootstrap) -> Result<bool, ReadError> {
    let mut left = bootstrap.size() / ENTRY_BYTES;
    let mut pending = vec![bootstrap.root()];
    let mut seen: HashSet<_> = pending.iter().copied().collect();
    while let Some(directory) = pending.pop() {
        if !bootstrap.xattrs(directory)?.is_empty() {
            return Ok(true);
        }
        for entry in bootstrap.read_dir(directory, 0)? {
            let nid = entry?.nid;
            let Some(less) = left.checked_sub(1) else { return Ok(true) };
            left = less;
            if bootstrap.inode(nid)?.kind == FileType::Directory {
                pending.extend(seen.insert(nid).then_some(nid));
            } else if !bootstrap.xattrs(nid)?.is_empty() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use rafs::bootstrap::{WriteOptions, write};
    use rafs::build::{BuildOptions, build_layer};

    use super::*;

    /// The bootstrap of an image whose file lies some directories deep, with an attribute or not.
    fn bootstrap(attribute: Option<&str>) -> Bootstrap {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_pax_extensions(attribute.map(|name| (name, b"value".as_slice()))).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        tar.append_data(&mut header, "some/directories/deep", std::io::empty()).unwrap();
        let tar = tar.into_inner().unwrap();
        let layer = build_layer(tar.as_slice(), Vec::new(), &BuildOptions::default()).unwrap();
        let merged = rafs::merge::merge(vec![layer]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.boot");
        write(&merged, &WriteOptions::default(), &mut std::fs::File::create(&path).unwrap()).unwrap();
        Bootstrap::open(&path).unwrap()
    }

    #[test]
    fn one_attribute_is_found_wherever_it_is() {
        assert!(has_any(&bootstrap(Some("SCHILY.xattr.user.one"))).unwrap());
        assert!(!has_any(&bootstrap(Some("comment"))).unwrap());
        assert!(!has_any(&bootstrap(None)).unwrap());
    }
}
