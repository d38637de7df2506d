//! The files of cluster images that are united, or that must not contradict each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use image::files;
use image::location::Location;
use image::platform::PlatformName;
use registry::client::Client;
use thiserror::Error;

use super::NotMerged;
use crate::lock::{Lock, Locked};
use crate::package::{LOCK_FILE, lock_layer};
use crate::saved::{DIRECTORY_REPOSITORY, REPOSITORIES};

/// Two images say different things.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// A file in `registry/`.
    #[error("{one} and {other} have different files {path}")]
    File {
        /// The file.
        path: String,
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
    /// A file of what `cluster save DIR` made of all images of `registry/`.
    #[error(
        "{one} and {other} were each filled by `cluster save DIR`, and what names all of their images is not united: \
         merge them as they were before that, and save the images of the merged one"
    )]
    Saved {
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
    /// An image of their locks.
    #[error("the locks of {one} and {other} say different things of {image}")]
    Locked {
        /// The container image.
        image: String,
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
    /// The platforms of their locks.
    #[error("the locks of {one} and {other} are for different platforms: lock both for the same ones")]
    Platforms {
        /// One of the images.
        one: String,
        /// The other one.
        other: String,
    },
}

/// What has been united so far.
#[derive(Debug, Default)]
pub(super) struct United {
    /// The lock, the images that had one, and how many there were.
    lock: Option<(Lock, String, usize)>,
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
    /// Adds the files of an image.
    pub(super) async fn add(
        &mut self,
        name: &str,
        location: &Location,
        client: &Client,
        platform: &PlatformName,
    ) -> Result<(), NotMerged> {
        let directory = tempfile::tempdir()?;
        let extracted = files::extract(location, client, platform, wanted, directory.path()).await;
        extracted.map_err(|error| NotMerged::Files { image: name.to_owned(), error: Box::new(error) })?;
        let path = directory.path().join(LOCK_FILE);
        if path.is_file() {
            self.lock(name, Lock::read(&path)?)?;
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

    fn lock(&mut self, name: &str, lock: Lock) -> Result<(), Conflict> {
        let Some((united, one, count)) = &mut self.lock else {
            self.lock = Some((lock, name.to_owned(), 1));
            return Ok(());
        };
        if united.platforms != lock.platforms {
            return Err(Conflict::Platforms { one: one.clone(), other: name.to_owned() });
        }
        for image in lock.images {
            let before = united.images.iter_mut().find(|before| before.reference == image.reference);
            match before {
                Some(before) if same(before, &image) => {
                    before.asked_by.extend(image.asked_by);
                    before.asked_by.sort();
                    before.asked_by.dedup();
                }
                Some(_) => {
                    let (one, other) = (one.clone(), name.to_owned());
                    return Err(Conflict::Locked { image: image.reference.to_string(), one, other });
                }
                None => united.images.push(image),
            }
        }
        united.images.sort_by_cached_key(|image| image.reference.to_string());
        *one = format!("{one}, {name}");
        *count += 1;
        Ok(())
    }

    /// A tar with the united lock, unless it is that of one image.
    pub(super) fn layer(&self) -> std::io::Result<Option<Bytes>> {
        let Some((lock, _, 2..)) = &self.lock else { return Ok(None) };
        lock_layer(lock, None).map(Some)
    }
}

/// Whether two locks say the same of an image: who asks for it does not matter.
fn same(one: &Locked, other: &Locked) -> bool {
    Locked { asked_by: Vec::new(), ..one.clone() } == Locked { asked_by: Vec::new(), ..other.clone() }
}

#[cfg(test)]
mod tests {
    use registry::Reference;
    use registry::digest::sha256;

    use super::*;

    fn lock(images: &[(&str, &str)]) -> Lock {
        let image = |(name, content): &(&str, &str)| Locked {
            reference: Reference::parse(name).unwrap(),
            digest: sha256(content.as_bytes()),
            media_type: String::new(),
            size: 1,
            platforms: Vec::new(),
            nydus: Vec::new(),
            archive: None,
            asked_by: vec![(*content).to_owned()],
        };
        Lock { platforms: Vec::new(), images: images.iter().map(image).collect() }
    }

    #[test]
    fn locks_unite_and_contradictions_are_named() {
        let mut united = United::default();
        united.lock("a", lock(&[("nginx", "1"), ("redis", "1")])).unwrap();
        assert!(united.layer().unwrap().is_none(), "one lock stays as it is");
        united.lock("b", lock(&[("app", "1"), ("nginx", "1")])).unwrap();
        let names: Vec<_> = united
            .lock
            .as_ref()
            .unwrap()
            .0
            .images
            .iter()
            .map(|image| image.reference.repository().name())
            .collect();
        assert_eq!(names, ["library/app", "library/nginx", "library/redis"]);
        assert!(united.layer().unwrap().is_some());
        let error = united.lock("c", lock(&[("nginx", "2")])).unwrap_err().to_string();
        assert!(error.contains("a, b and c") && error.contains("docker.io/library/nginx:latest"), "{error}");
        let other = Lock { platforms: vec!["linux/amd64".parse().unwrap()], ..Lock::default() };
        assert!(matches!(united.lock("d", other), Err(Conflict::Platforms { .. })));
    }

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
