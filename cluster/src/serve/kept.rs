//! Documents of saved images on this node's disk:
//!
//! ```text
//! DIR/images.json                     which images these are, what their registries are called in names, and which blobs they have
//! DIR/docker/registry/v2/…            index, manifests and configs, in the storage layout of registries
//! DIR.new/                            the same, before it is complete; or those before it, until they are removed
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use image::document::Manifest;
use registry::client::Descriptor;
use registry::layout::{Layout, Paths};
use registry::{Digest, Reference};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::names;
use crate::lock::Locked;
use crate::saved::{SavedError, SavedImages, Table};

const FILE: &str = "images.json";
/// The version that is written, and the only one that is read: others are fetched again.
const VERSION: u32 = 2;
/// How many documents are fetched at once.
const AT_ONCE: usize = 16;
/// How deep an index may lie in indexes.
const DEPTH_LIMIT: usize = 4;

/// Why documents are not kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeepError {
    /// They cannot be read where they were saved.
    #[error("the documents of {image}: {error}")]
    Read {
        /// The image.
        image: String,
        /// Why.
        error: Box<SavedError>,
    },
    /// A document is none.
    #[error("{image}: {digest} is no index and no manifest: {reason}")]
    Document {
        /// The image.
        image: String,
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// Images can only be pulled whole.
    #[error(
        "the images were saved as they are alone: save them without --no-rafs for nodes to read them lazily"
    )]
    Plain,
    /// The system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The thread that writes is gone.
    #[error("writing ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// What is kept, as a file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
struct KeptFile {
    version: u32,
    /// The digest of the saved images ([`SavedImages::digest`]).
    images: Digest,
    /// What registries are called in names of repositories.
    hosts: BTreeMap<String, String>,
    /// Blobs of nydus images that were saved as they are, by these names.
    blobs: BTreeMap<String, Vec<KeptBlob>>,
}

/// A blob that is not here.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
struct KeptBlob {
    digest: Digest,
    /// Its size in bytes.
    size: u64,
}

/// The images that a node may answer for: those that can be run. Which of them can be read lazily their documents say.
fn runnable(saved: &SavedImages) -> impl Iterator<Item = &Locked> {
    saved.lock().images.iter().filter(|image| !(image.platforms.is_empty() && image.nydus.is_empty()))
}

/// The registries of the images that a node may answer for, and with which part names of their repositories begin there.
///
/// # Errors
///
/// When nothing was saved as RAFS.
pub fn hosts(saved: &SavedImages) -> Result<BTreeMap<String, String>, KeepError> {
    saved.table().ok_or(KeepError::Plain)?;
    Ok(names::of_hosts(runnable(saved).map(|image| image.reference.host())))
}

/// Documents of saved images on this node.
#[derive(Clone, Debug)]
pub struct Kept {
    dir: PathBuf,
    about: KeptFile,
}

impl Kept {
    /// What is kept in `dir`; `None` if nothing is, or not all of it.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn open(dir: &Path) -> Result<Option<Self>, KeepError> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| KeepError::Io { path, error })?,
        };
        let about = serde_json::from_slice(&text).ok().filter(|about: &KeptFile| about.version == VERSION);
        Ok(about.map(|about| Self { dir: dir.to_owned(), about }))
    }

    /// Keeps the documents of `saved` in `dir`, in place of what is there, unless they are there already. Those are kept of
    /// which a platform's image can be read lazily: it was saved as RAFS, or is a nydus image alone that was saved to a repository. Others are
    /// pulled from where they come from.
    ///
    /// # Errors
    ///
    /// When a document cannot be read or written. What was kept before is there still.
    pub async fn keep(dir: &Path, saved: &SavedImages) -> Result<Self, KeepError> {
        if let Some(kept) = Self::open(dir)?.filter(|kept| kept.images() == saved.digest()) {
            return Ok(kept);
        }
        let table = saved.table().ok_or(KeepError::Plain)?;
        let documents = runnable(saved).map(|image| documents(saved, table, image));
        let documents = futures::stream::iter(documents).buffered(AT_ONCE);
        let mut documents: Vec<ImageDocuments> = documents.try_collect().await?;
        // An index alone leads nowhere.
        documents.retain(|image| !image.configs.is_empty());
        let (hosts, mut blobs) = (hosts(saved)?, BTreeMap::<String, Vec<KeptBlob>>::new());
        for image in documents.iter().filter(|image| !image.blobs.is_empty()) {
            let name = image.name(&hosts).map_err(|error| KeepError::Io { path: dir.to_owned(), error })?;
            blobs.entry(name).or_default().extend(image.blobs.iter().cloned());
        }
        let about = KeptFile { version: VERSION, images: saved.digest().clone(), hosts, blobs };
        let kept = Self { dir: dir.to_owned(), about };
        let written = kept.clone();
        tokio::task::spawn_blocking(move || written.write(&documents)).await??;
        Ok(kept)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which images these are: [`SavedImages::digest`].
    pub fn images(&self) -> &Digest {
        &self.about.images
    }

    /// The registries that images are of, and with which part names of their repositories begin here.
    pub fn hosts(&self) -> &BTreeMap<String, String> {
        &self.about.hosts
    }

    /// Blobs that images have and are not here, with their sizes in bytes, by the repositories here that they belong to: where the images were
    /// saved they are.
    pub fn blobs(&self) -> HashMap<String, HashMap<Digest, u64>> {
        let sizes =
            |blobs: &Vec<KeptBlob>| blobs.iter().map(|blob| (blob.digest.clone(), blob.size)).collect();
        self.about.blobs.iter().map(|(name, blobs)| (name.clone(), sizes(blobs))).collect()
    }

    /// The documents, to be served.
    pub fn layout(&self) -> Layout {
        Layout::directory(&self.dir)
    }

    fn write(&self, documents: &[ImageDocuments]) -> Result<(), KeepError> {
        let mut name = self.dir.clone().into_os_string();
        name.push(".new");
        let new = PathBuf::from(name);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| KeepError::Io { path, error }
        };
        remove(&new).map_err(failed(&new))?;
        let paths = Paths::new(&new);
        for image in documents {
            image.write(&paths, &self.about.hosts).map_err(failed(&new))?;
        }
        let about = serde_json::to_vec_pretty(&self.about).map_err(io::Error::other);
        about.and_then(|text| write(&new.join(FILE), &text)).map_err(failed(&new))?;
        // Hundreds of small files, of which none is there before all of them are.
        let synced = File::open(&new).and_then(|root| Ok(rustix::fs::syncfs(&root)?));
        synced.map_err(failed(&new))?;
        put(&new, &self.dir).map_err(failed(&self.dir))?;
        // That of a name alone is empty.
        let parent = self.dir.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed(parent))?;
        // What was there before, if the two were exchanged.
        remove(&new).map_err(failed(&new))
    }
}

/// An image's documents, word for word.
struct ImageDocuments {
    reference: Reference,
    root: Digest,
    /// Index and manifests.
    manifests: Vec<(Digest, Bytes)>,
    configs: Vec<(Digest, Bytes)>,
    /// Those of nydus images that were saved as they are.
    blobs: Vec<KeptBlob>,
}

/// Reads the documents of an image, as far as they were saved: those of the platforms of the lock.
async fn documents(saved: &SavedImages, table: &Table, image: &Locked) -> Result<ImageDocuments, KeepError> {
    let name = || image.reference.to_string();
    let read = async |digest: &Digest| {
        let read = saved.document(digest).await;
        read.map_err(|error| KeepError::Read { image: name(), error: Box::new(error) })
    };
    let mut found = ImageDocuments {
        reference: image.reference.clone(),
        root: image.digest.clone(),
        manifests: Vec::new(),
        configs: Vec::new(),
        blobs: Vec::new(),
    };
    let own = own_nydus(saved, table, image);
    let (mut left, mut seen) = (vec![(image.digest.clone(), 0)], HashSet::new());
    while let Some((digest, depth)) = left.pop() {
        // One of a platform that was not saved is not there.
        let Some(content) = read(&digest).await? else { continue };
        let wrong = |reason: String| KeepError::Document { image: name(), digest: digest.clone(), reason };
        let document: Value = serde_json::from_slice(&content).map_err(|error| wrong(error.to_string()))?;
        let digest_of = |entry: &Value| entry.get("digest")?.as_str()?.parse::<Digest>().ok();
        if let Some(named) = document.get("manifests").and_then(Value::as_array) {
            if depth == DEPTH_LIMIT {
                return Err(wrong(format!("indexes are nested more than {DEPTH_LIMIT} deep")));
            }
            let new = named.iter().filter_map(digest_of).filter(|entry| seen.insert(entry.clone()));
            left.extend(new.map(|entry| (entry, depth + 1)));
            found.manifests.push((digest, content));
            continue;
        }
        if !table.images.contains_key(&digest) {
            if !own.contains(&digest) {
                continue;
            }
            let manifest = Manifest::parse(&content).map_err(|error| wrong(error.to_string()))?;
            if manifest.nydus_layer().is_none() {
                continue;
            }
            let blob = |layer: &Descriptor| KeptBlob { digest: layer.digest().clone(), size: layer.size() };
            found.blobs.extend(manifest.layers.iter().map(blob));
        }
        let config = document.get("config").and_then(digest_of);
        let config = config.ok_or_else(|| wrong("it names no config".to_owned()))?;
        let missing = || wrong(format!("its config {config} is missing"));
        let config = (config.clone(), read(&config).await?.ok_or_else(missing)?);
        found.configs.push(config);
        found.manifests.push((digest, content));
    }
    Ok(found)
}

/// What may be nydus images of `image` that nodes read lazily as they are: where none was made, and the repository that they were saved to has
/// their blobs. In their own repository containerd finds them by itself.
fn own_nydus(saved: &SavedImages, table: &Table, image: &Locked) -> HashSet<Digest> {
    if saved.repository().is_none_or(|repository| repository == image.reference.repository()) {
        return HashSet::new();
    }
    let own = image.platforms.iter().chain(image.own_nydus(|digest| table.images.contains_key(digest)));
    own.map(|image| image.digest.clone()).collect()
}

impl ImageDocuments {
    /// What its repository is called here.
    fn name(&self, hosts: &BTreeMap<String, String>) -> io::Result<String> {
        let repository = self.reference.repository();
        let host = hosts.get(repository.host()).ok_or(ErrorKind::InvalidInput)?;
        Ok(format!("{host}/{}", repository.name()))
    }

    /// Writes them, as registries store them, below `paths`.
    fn write(&self, paths: &Paths, hosts: &BTreeMap<String, String>) -> io::Result<()> {
        let name = self.name(hosts)?;
        for (digest, content) in &self.manifests {
            write(&paths.data(digest), content)?;
            write(&paths.revision(&name, digest), digest.as_ref().as_bytes())?;
        }
        for (digest, content) in &self.configs {
            write(&paths.data(digest), content)?;
            write(&paths.layer(&name, digest), digest.as_ref().as_bytes())?;
        }
        // A name with a digest says nothing of what its tag is.
        if let (Some(tag), None) = (self.reference.tag(), self.reference.digest()) {
            write(&paths.tag_current(&name, tag), self.root.as_ref().as_bytes())?;
        }
        Ok(())
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, content)
}

/// Puts `new` in the place of `directory`, so that one of them is there at any time. What was there before is at `new` afterwards, or gone.
fn put(new: &Path, directory: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, directory, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => fs::rename(new, directory),
        // This file system cannot exchange them.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            remove(directory)?;
            fs::rename(new, directory)
        }
        Err(error) => Err(error.into()),
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;

    use registry::digest::sha256;

    use super::*;

    #[test]
    fn documents_are_there_at_any_time_while_others_take_their_place() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("documents");
        let content = |number: usize| Bytes::from(number.to_string());
        let image = ImageDocuments {
            reference: "r.example/a:v1".parse().unwrap(),
            root: sha256(b"0"),
            // Enough for their removal to take a while.
            manifests: (0..200).map(|number| (sha256(&content(number)), content(number))).collect(),
            configs: Vec::new(),
            blobs: Vec::new(),
        };
        let hosts = BTreeMap::from([("r.example".to_owned(), "r.example".to_owned())]);
        let write = |number: usize| {
            let images = sha256(&content(number));
            let about = KeptFile { version: VERSION, images, hosts: hosts.clone(), blobs: BTreeMap::new() };
            Kept { dir: dir.clone(), about }.write(std::slice::from_ref(&image)).unwrap();
        };
        write(0);
        let (is_over, missed) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    if Kept::open(&dir).unwrap().is_none() {
                        missed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            (1..=20).for_each(write);
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(missed.into_inner(), 0);
        assert_eq!(Kept::open(&dir).unwrap().unwrap().images(), &sha256(b"20"));
        assert!(!parent.path().join("documents.new").exists());
    }
}
