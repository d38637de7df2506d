//! The files of cluster images that are united, or that must not contradict each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use image::files;
use image::location::Location;
use image::platform::PlatformName;
use registry::client::Client;

use super::locks::Locks;
use super::{Conflict, NotMerged};
use crate::lock::Lock;
use crate::package::{LOCK_FILE, lock_layer};
use crate::saved::{DIRECTORY_REPOSITORY, REPOSITORIES, SavedImages};

/// What has been united so far.
#[derive(Debug, Default)]
pub(super) struct United {
    /// Their locks.
    pub(super) locks: Locks,
    /// Files in `registry/` with their contents, and whose they are.
    registry: BTreeMap<String, (Vec<u8>, String)>,
}

/// The lock, and what in `registry/` is not named by its content.
fn wanted(path: &[u8]) -> bool {
    let is_blob = || path.windows(7).any(|part| part == b"/blobs/");
    path == LOCK_FILE.as_bytes() || path == b"registry" || (path.starts_with(b"registry/") && !is_blob())
}

/// Where `cluster save DIR` names all images that are in `registry/`.
fn saved_set() -> PathBuf {
    Path::new("registry").join(REPOSITORIES).join(DIRECTORY_REPOSITORY)
}

impl United {
    /// Adds the files of an image, for which `saved` was saved.
    pub(super) async fn add(
        &mut self,
        name: &str,
        location: &Location,
        client: &Client,
        platform: &PlatformName,
        saved: Option<&SavedImages>,
    ) -> Result<(), NotMerged> {
        let directory = tempfile::tempdir()?;
        let extracted = files::extract(location, client, platform, wanted, directory.path()).await;
        extracted.map_err(|error| NotMerged::Files { image: name.to_owned(), error: Box::new(error) })?;
        let path = directory.path().join(LOCK_FILE);
        if path.is_file() {
            let lock = Lock::read(&path)?;
            saved
                .map_or(Ok(()), |saved| saved.expect(&lock))
                .map_err(|error| NotMerged::OtherImage { image: name.to_owned(), error })?;
            self.locks.add(name, lock)?;
        }
        self.registry_files(name, directory.path())
    }

    /// Adds the files in `registry/` of the tree `root`. What names all saved images goes first: where two saves differ, the tags of images
    /// that both have may too, and it is the saves that a person has to make anew.
    fn registry_files(&mut self, name: &str, root: &Path) -> Result<(), NotMerged> {
        let mut todo = vec![PathBuf::from("registry"), saved_set()];
        while let Some(folder) = todo.pop() {
            let Ok(entries) = std::fs::read_dir(root.join(&folder)) else { continue };
            for entry in entries {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                match entry.file_type()? {
                    kind if kind.is_dir() => todo.push(path),
                    kind if kind.is_file() => self.file(name, &path, std::fs::read(entry.path())?)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &str, path: &Path, content: Vec<u8>) -> Result<(), Conflict> {
        let is_set = path.starts_with(saved_set());
        let path = path.display().to_string();
        match self.registry.get(&path) {
            Some((before, one)) if *before != content => {
                let (one, other) = (one.clone(), name.to_owned());
                Err(if is_set { Conflict::Saved { one, other } } else { Conflict::File { path, one, other } })
            }
            Some(_) => Ok(()),
            None => {
                self.registry.insert(path, (content, name.to_owned()));
                Ok(())
            }
        }
    }

    /// A tar with the united lock, unless it is that of one image.
    pub(super) fn layer(&self) -> std::io::Result<Option<Bytes>> {
        match self.locks.count() {
            ..2 => Ok(None),
            _ => lock_layer(self.locks.lock(), None).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_path_have_one_content() {
        let mut united = United::default();
        let path = Path::new("registry/x/link");
        united.file("a", path, b"1".to_vec()).unwrap();
        united.file("b", path, b"1".to_vec()).unwrap();
        let error = united.file("c", path, b"2".to_vec()).unwrap_err().to_string();
        assert_eq!(error, "a and c have different files registry/x/link");
        // Both images were filled by a save.
        let set = Path::new(
            "registry/docker/registry/v2/repositories/nydus-cluster/images/_manifests/tags/latest/current/link",
        );
        united.file("a", set, b"1".to_vec()).unwrap();
        let error = united.file("b", set, b"2".to_vec()).unwrap_err().to_string();
        assert!(error.contains("a and b were each filled by `cluster save DIR`"), "{error}");
        assert!(wanted(b"registry/docker/registry/v2/repositories/a/_manifests/tags/v1/current/link"));
        assert!(!wanted(b"registry/docker/registry/v2/blobs/sha256/aa/data") && !wanted(b"etc/registry/x"));
    }

    #[test]
    fn two_saves_are_named_before_the_images_that_both_have() {
        let tree = |link: &str| {
            let root = tempfile::tempdir().unwrap();
            // Folders are read in no order: with this many, one of them comes before the set.
            let images = (0..64).map(|index| format!("app{index}"));
            for repository in images.chain([DIRECTORY_REPOSITORY.to_owned()]) {
                let tag = root.path().join("registry").join(REPOSITORIES).join(repository);
                let tag = tag.join("_manifests/tags/latest/current");
                std::fs::create_dir_all(&tag).unwrap();
                std::fs::write(tag.join("link"), link).unwrap();
            }
            root
        };
        let mut united = United::default();
        united.registry_files("a", tree("1").path()).unwrap();
        let error = united.registry_files("b", tree("2").path()).unwrap_err();
        assert!(matches!(error, NotMerged::Conflict(Conflict::Saved { .. })), "{error}");
    }
}
