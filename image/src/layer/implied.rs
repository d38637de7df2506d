//! The directories of a layer that it has no entry for. A merge has to know them, and a bootstrap does not say which they are.

use std::collections::BTreeMap;

use rafs::tree::{NodeId, Tree};

/// Their paths, in order; the root's is empty.
pub(super) fn implied(tree: &Tree) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut todo: Vec<(Vec<u8>, NodeId)> = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, directory)) = todo.pop() {
        for (name, &id) in tree.entries(directory).into_iter().flat_map(BTreeMap::iter) {
            if tree.entries(id).is_some() {
                let within = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
                todo.push((within, id));
            }
        }
        if tree.is_implied(directory) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Says of the directories at `paths` that the layer has no entry for them; `false` if one is not there.
#[must_use]
pub(super) fn set_implied(tree: &mut Tree, paths: &[impl AsRef<[u8]>]) -> bool {
    paths.iter().all(|path| {
        let names = path.as_ref().split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let id = tree.lookup(names).filter(|&id| tree.entries(id).is_some());
        id.map(|id| tree.set_implied(id, true)).is_some()
    })
}

#[cfg(test)]
mod tests {
    use rafs::build::{BuildOptions, build_layer};

    use super::*;

    #[test]
    fn directories_without_entries_are_found_and_marked_again() {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind) in [("own/", tar::EntryType::Directory), ("own/a/b/file", tar::EntryType::Regular)] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(0);
            tar.append_data(&mut header, name, std::io::empty()).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let mut tree = build_layer(tar.as_slice(), std::io::sink(), &BuildOptions::default()).unwrap().tree;
        let paths = implied(&tree);
        assert_eq!(paths, [&b""[..], b"own/a", b"own/a/b"]);
        let marked = tree.clone();
        for path in &paths {
            let id = tree.lookup(path.split(|&byte| byte == b'/').filter(|name| !name.is_empty())).unwrap();
            tree.set_implied(id, false);
        }
        assert_eq!(implied(&tree), [b""; 0]);
        assert!(set_implied(&mut tree, &paths) && tree == marked);
        assert!(!set_implied(&mut tree, &["own/a/b/file"]) && !set_implied(&mut tree, &["gone"]));
    }
}
