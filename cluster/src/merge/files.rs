//! The files of cluster images that are united, or that must not contradict each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use image::files;
use image::location::Location;
use image::platform::PlatformName;
use registry::client::Client;

use super::NotMerged;
use super::directory::{self, FilledDirectory, OtherFile, set_link};
use super::locks::Locks;
use crate::lock::Lock;
use crate::package::{LOCK_FILE, files_layer};
use crate::saved::SavedImages;

/// What has been united so far.
#[derive(Debug, Default)]
pub(super) struct United {
    /// Their locks.
    pub(super) locks: Locks,
    /// Files in `registry/` with their contents, and whose they are.
    registry: BTreeMap<String, (Vec<u8>, String)>,
    /// The directories `registry/` that `cluster save DIR` filled.
    directories: Vec<FilledDirectory>,
    /// Files in `registry/` that are not the same in two images.
    others: Vec<OtherFile>,
    /// Files in `registry/` that lie on top of those of all images.
    on_top: BTreeMap<PathBuf, Vec<u8>>,
}

/// The lock, and what in `registry/` is not named by its content.
fn wanted(path: &[u8]) -> bool {
    let is_blob = || path.windows(7).any(|part| part == b"/blobs/");
    path == LOCK_FILE.as_bytes() || path == b"registry" || (path.starts_with(b"registry/") && !is_blob())
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
        self.registry_files(name, directory.path())?;
        self.directories.extend(FilledDirectory::of(name, location, directory)?);
        Ok(())
    }

    /// All images are there: unites what names those that were saved.
    ///
    /// # Errors
    ///
    /// When two images have different files of one path, or say different things of what was saved.
    pub(super) async fn finish(&mut self, client: &Client, platform: &PlatformName) -> Result<(), NotMerged> {
        self.on_top = directory::unite(&self.directories, &self.others, client, platform).await?;
        Ok(())
    }

    /// Adds the files in `registry/` of the tree `root`.
    fn registry_files(&mut self, name: &str, root: &Path) -> Result<(), NotMerged> {
        let mut todo = vec![PathBuf::from("registry")];
        while let Some(folder) = todo.pop() {
            let Ok(entries) = std::fs::read_dir(root.join(&folder)) else { continue };
            for entry in entries {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                match entry.file_type()? {
                    kind if kind.is_dir() => todo.push(path),
                    // What names all saved images is united, and everything else in their repository has the name of its content.
                    kind if kind.is_file() && path != set_link() => {
                        self.file(name, &path, std::fs::read(entry.path())?);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &str, path: &Path, content: Vec<u8>) {
        let path = path.display().to_string();
        match self.registry.get(&path) {
            Some((before, _)) if *before == content => {}
            Some((before, one)) => {
                let (content, one, other) = (before.clone(), one.clone(), name.to_owned());
                self.others.push(OtherFile { path, content, one, other });
            }
            None => drop(self.registry.insert(path, (content, name.to_owned()))),
        }
    }

    /// A tar with what lies on top of all images: the united lock, unless it is that of one image, and what names saved images.
    pub(super) fn layer(&self) -> std::io::Result<Option<Bytes>> {
        let lock = (self.locks.count() > 1).then(|| self.locks.lock().to_string());
        let lock = lock.iter().map(|lock| (Path::new(LOCK_FILE), lock.as_bytes()));
        let files = self.on_top.iter().map(|(path, content)| (path.as_path(), content.as_slice()));
        let files: Vec<_> = lock.chain(files).collect();
        if files.is_empty() { Ok(None) } else { files_layer(files).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_of_one_path_have_one_content() {
        let client = Client::new(registry::client::ClientConfig::default()).unwrap();
        let mut united = United::default();
        let path = Path::new("registry/x/link");
        for (name, content) in [("a", "1"), ("b", "1"), ("c", "2")] {
            united.file(name, path, content.into());
        }
        let error = united.finish(&client, &PlatformName::host()).await.unwrap_err().to_string();
        assert_eq!(error, "a and c have different files registry/x/link");
        assert!(wanted(b"registry/docker/registry/v2/repositories/a/_manifests/tags/v1/current/link"));
        assert!(!wanted(b"registry/docker/registry/v2/blobs/sha256/aa/data") && !wanted(b"etc/registry/x"));
    }
}
