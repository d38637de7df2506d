//! A directory and a tar of it are read alike.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::sync::Arc;

use super::*;
use crate::digest::sha256;

/// Files of a layout, with names that begin alike.
fn files() -> BTreeMap<String, String> {
    let blob = sha256(b"blob");
    let manifest = sha256(b"manifest");
    let mut files = BTreeMap::new();
    for (digest, content) in [(&blob, "blob"), (&manifest, "manifest")] {
        let path = Paths::new(Path::new("reg")).data(digest);
        files.insert(path.display().to_string(), content.to_owned());
    }
    for name in ["app", "app/sub", "app-2", "team/app"] {
        let paths = Paths::new(Path::new("reg"));
        let mut link = |path: PathBuf, digest: &Digest| {
            files.insert(path.display().to_string(), format!("{digest}\n"));
        };
        link(paths.layer(name, &blob), &blob);
        link(paths.revision(name, &manifest), &manifest);
        link(paths.tag_current(name, "v1"), &manifest);
        link(paths.tag_current(name, "v1.1"), &manifest);
        link(paths.tag_index(name, "unfinished", &manifest), &manifest);
    }
    files.insert("reg/docker/registry/v2/repositories/UPPER/_layers/x".to_owned(), String::new());
    files
}

fn check(layout: &Layout) {
    let (blob, manifest) = (sha256(b"blob"), sha256(b"manifest"));
    assert_eq!(layout.repositories().unwrap(), ["app", "app-2", "app/sub", "team/app"]);
    for name in layout.repositories().unwrap() {
        assert_eq!(layout.tags(&name).unwrap(), ["v1", "v1.1"]);
        assert_eq!(layout.tagged(&name, "v1").unwrap(), Some(manifest.clone()));
        assert_eq!(layout.tagged(&name, "v2").unwrap(), None);
        assert_eq!(layout.manifest(&name, &manifest).unwrap().unwrap(), b"manifest");
        assert_eq!(layout.revisions(&name).unwrap(), std::slice::from_ref(&manifest));
        let part = layout.blob(&name, &blob).unwrap().unwrap();
        let mut content = vec![0; part.size as usize];
        part.file.read_exact_at(&mut content, part.offset).unwrap();
        assert_eq!(content, b"blob");
        assert!(layout.blob(&name, &manifest).unwrap().is_none(), "it is no blob of the repository");
    }
    assert!(layout.has_repository("team/app").unwrap());
    assert!(!layout.has_repository("team").unwrap() && !layout.has_repository("ap").unwrap());
}

#[test]
fn a_directory_and_a_tar_are_read_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (mut parts, mut tar) = (BTreeMap::new(), Vec::new());
    for (name, content) in files() {
        let path = dir.path().join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &content).unwrap();
        parts.insert(name, (tar.len() as u64, content.len() as u64));
        tar.extend_from_slice(content.as_bytes());
    }
    check(&Layout::directory(&dir.path().join("reg")));
    let path = dir.path().join("file");
    fs::write(&path, tar).unwrap();
    let file = Arc::new(File::open(&path).unwrap());
    check(&Layout::archive(Arc::new(Members::new(path, file, parts)), "reg"));
}

#[test]
fn a_page_of_repositories_is_found_without_looking_at_those_before_and_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::directory(dir.path());
    let all = ["a", "a-b", "a.b", "a/b", "a/b/c", "a0", "m", "m/x", "z"];
    for name in all {
        fs::create_dir_all(layout.paths().repository(name).join("_manifests")).unwrap();
    }
    for last in all.into_iter().chain(["", "a-", "a/", "a/b/", "b", "zz"]) {
        let behind: Vec<&str> = all.into_iter().filter(|name| *name > last).collect();
        for limit in 0..=all.len() {
            let found = layout.repositories_after(last, limit).unwrap();
            assert_eq!(found, behind[..limit.min(behind.len())], "{limit} after {last:?}");
        }
    }
    // What cannot be looked at is an error only for whoever comes there.
    for name in ["a", "z"] {
        let part = layout.paths().repository(name).join("_manifests");
        fs::remove_dir(&part).unwrap();
        symlink(&part, &part).unwrap();
    }
    assert_eq!(layout.repositories_after("a/b/c", 3).unwrap(), ["a0", "m", "m/x"]);
    assert!(layout.repositories_after("", 1).is_err() && layout.repositories_after("m", 2).is_err());
}

#[test]
fn what_is_no_link_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::directory(dir.path());
    let path = layout.paths().tag_current("app", "v1");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    for content in ["", "sha256:../../x", "md5:d41d8cd98f00b204e9800998ecf8427e", &"a".repeat(10_000)] {
        fs::write(&path, content).unwrap();
        let error = layout.tagged("app", "v1").unwrap_err().to_string();
        assert!(error.contains("current/link"), "{error}");
    }
}
