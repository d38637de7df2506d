//! What `cluster save DIR` left in the directories `registry/` of images that are merged, united: what names all saved images is made again, and
//! lies on top. Blobs stay where they are, in the layers below.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use image::destination::{DiskSpace, DiskUse, StoreError};
use image::files::{FilesError, LargeFiles};
use image::location::Location;
use image::platform::PlatformName;
use registry::client::Client;
use registry::layout::Paths;
use registry::{Digest, digest};
use serde_json::Value;
use tempfile::TempDir;

use super::saved::{FilledImage, UnitedImages};
use super::{Conflict, NotMerged};
use crate::save::layout::no_conflict;
use crate::saved::{ARTIFACT_TYPE, DIRECTORY_REPOSITORY, DIRECTORY_TAG, SavedAt, SavedImages, TABLE_TYPE};

/// Where cluster images have what they bring along for a registry.
const REGISTRY: &str = "registry";

/// The most that is kept of what names an image's saved images, in bytes: that of some 10,000 images.
const DOCUMENTS_BYTES: u64 = 256 << 20;

/// Room for that, which no setting gives more of.
const DOCUMENTS: DiskUse = DiskUse { what: DOCUMENTS_WORDS, setting: "", of: "one image", instead: "" };
const DOCUMENTS_WORDS: &str = "bytes of manifests and tables of saved images";

/// The directory `registry/` of an image that `cluster save DIR` filled, as far as its files are small.
#[derive(Debug)]
pub(super) struct FilledDirectory {
    name: String,
    location: Location,
    /// The directory that has it.
    dir: TempDir,
    /// The digest of what names all images in it.
    set: String,
}

/// A file of `registry/` that is not the same in two images.
#[derive(Debug)]
pub(super) struct OtherFile {
    pub(super) path: String,
    /// What the first of them has there.
    pub(super) content: Vec<u8>,
    pub(super) one: String,
    pub(super) other: String,
}

/// The link to what names all saved images of a directory.
pub(super) fn set_link() -> PathBuf {
    paths().tag_current(DIRECTORY_REPOSITORY, DIRECTORY_TAG)
}

impl FilledDirectory {
    /// That of an image, whose small files are in `dir`; `None` if it has none.
    pub(super) fn of(name: &str, location: &Location, dir: TempDir) -> io::Result<Option<Self>> {
        let set = match fs::read_to_string(dir.path().join(set_link())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            set => set?.trim().to_owned(),
        };
        Ok(Some(Self { name: name.to_owned(), location: location.clone(), dir, set }))
    }

    /// The saved images, as far as what names them goes.
    async fn open(&self, client: &Client, platform: &PlatformName) -> Result<FilledImage, NotMerged> {
        self.fetch(client, platform, self.revisions()?).await?;
        self.fetch(client, platform, self.texts()?).await?;
        let place = SavedAt::Directory(self.dir.path().join(REGISTRY));
        let broken = |error| NotMerged::Saved { image: self.name.clone(), error: Box::new(error) };
        let saved = SavedImages::open(&place, client).await.map_err(broken)?;
        FilledImage::of(&self.name, saved, client).await
    }

    /// The index and all manifests that it names.
    fn revisions(&self) -> io::Result<Vec<Digest>> {
        let folder = self.dir.path().join(paths().revisions(DIRECTORY_REPOSITORY)).join("sha256");
        let digest = |entry: io::Result<fs::DirEntry>| -> io::Result<Option<Digest>> {
            Ok(format!("sha256:{}", entry?.file_name().to_string_lossy()).parse().ok())
        };
        fs::read_dir(folder)?.filter_map(|entry| digest(entry).transpose()).collect()
    }

    /// The lock and the table. What is wrong with their manifest is said when all is opened.
    fn texts(&self) -> io::Result<Vec<Digest>> {
        let read = |digest: Option<Digest>| -> io::Result<Value> {
            let Some(digest) = digest else { return Ok(Value::Null) };
            let content = fs::read(self.dir.path().join(paths().data(&digest)))?;
            Ok(serde_json::from_slice(&content).unwrap_or_default())
        };
        let digest_of = |entry: &Value| entry["digest"].as_str()?.parse().ok();
        let all = |entries: &Value| entries.as_array().cloned().unwrap_or_default();
        let index = all(&read(self.set.parse().ok())?["manifests"]);
        let own = index.iter().find(|entry| entry["artifactType"] == ARTIFACT_TYPE);
        let manifest = read(own.and_then(digest_of))?;
        let tables = all(&manifest["layers"]).into_iter().filter(|layer| layer["mediaType"] == TABLE_TYPE);
        Ok(tables.chain([manifest["config"].clone()]).filter_map(|entry| digest_of(&entry)).collect())
    }

    /// Has this content in the directory too.
    async fn fetch(
        &self,
        client: &Client,
        platform: &PlatformName,
        contents: Vec<Digest>,
    ) -> Result<(), NotMerged> {
        let wanted = contents.iter().map(|digest| paths().data(digest));
        let wanted: BTreeSet<PathBuf> = wanted.filter(|path| !self.dir.path().join(path).exists()).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let files = LargeFiles::new(&DiskSpace::new(self.dir.path(), DOCUMENTS_BYTES, &DOCUMENTS)).await?;
        let names = wanted.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
        let fetched = files.fetch(&self.location, client, platform, names).await;
        fetched.map_err(|error| {
            let error = match error {
                FilesError::Room(StoreError::DiskFull { limit, .. }) => {
                    FilesError::TooMuch { what: DOCUMENTS_WORDS, limit }
                }
                error => error,
            };
            NotMerged::Files { image: self.name.clone(), error: Box::new(error) }
        })?;
        for path in wanted {
            let (from, to) = (files.path().join(&path), self.dir.path().join(&path));
            fs::create_dir_all(to.parent().unwrap_or(&to))?;
            match fs::rename(from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The files that have to lie on top of these directories for the merged one to name the images of all, by their paths. `others` are the files
/// that are not the same in two of all images.
pub(super) async fn unite(
    directories: &[FilledDirectory],
    others: &[OtherFile],
    client: &Client,
    platform: &PlatformName,
) -> Result<BTreeMap<PathBuf, Vec<u8>>, NotMerged> {
    let mut on_top = BTreeMap::new();
    let mut names = BTreeSet::new();
    if directories.iter().any(|directory| Some(&directory.set) != directories.first().map(|first| &first.set))
    {
        let mut filled = Vec::new();
        for directory in directories {
            filled.push(directory.open(client, platform).await?);
        }
        if let Some(united) = UnitedImages::of(&filled.iter().collect::<Vec<_>>())? {
            let lock = united.locks.lock();
            no_conflict(lock).map_err(Box::new)?;
            names.extend(lock.images.iter().filter_map(|image| {
                Some(paths().tag_current(image.reference.repository().name(), image.reference.tag()?))
            }));
            on_top.extend(naming(&united));
        }
    }
    let is_filled = |image: &str| directories.iter().any(|directory| directory.name == image);
    for OtherFile { path, content, one, other } in others {
        // What two saves made of one image is that of the first, as in what names all of them.
        if !(is_filled(one) && is_filled(other) && names.contains(Path::new(path))) {
            let (path, one, other) = (path.clone(), one.clone(), other.clone());
            return Err(Conflict::File { path, one, other }.into());
        }
        on_top.insert(PathBuf::from(path), content.clone());
    }
    Ok(on_top)
}

/// The documents that name `images`, and the links to these.
fn naming(images: &UnitedImages) -> BTreeMap<PathBuf, Vec<u8>> {
    let (paths, mut files) = (paths(), BTreeMap::new());
    let link = |digest: &Digest| digest.to_string().into_bytes();
    for content in &images.made {
        let digest = digest::sha256(content);
        files.insert(paths.data(&digest), content.to_vec());
        files.insert(paths.layer(DIRECTORY_REPOSITORY, &digest), link(&digest));
    }
    for document in images.manifests.iter().chain([&images.index]) {
        files.insert(paths.data(&document.digest), document.content.to_vec());
        files.insert(paths.revision(DIRECTORY_REPOSITORY, &document.digest), link(&document.digest));
    }
    let index = &images.index.digest;
    files.insert(paths.tag_index(DIRECTORY_REPOSITORY, DIRECTORY_TAG, index), link(index));
    files.insert(set_link(), link(index));
    files
}

fn paths() -> Paths {
    Paths::new(Path::new(REGISTRY))
}
