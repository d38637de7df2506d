//! Files of this machine on their way to their names: they are written to a folder next to the destination, and moved when
//! all are there. Whatever ends before that leaves nothing under the destination's name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::document::Stored;
use crate::source::{OCI_INDEX_FILE, REF_NAME};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use registry::digest::Digest;
use registry::reference::Reference;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

use super::archive::{self, LayoutStream};
use super::{BlobWriter, Destination, DiskShare, DiskSpace, StoreError, Storing, failed};

/// The document that makes a folder an OCI layout, and what is in it.
pub(super) const MARKER: &str = "oci-layout";
pub(super) const MARKER_CONTENT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Where blobs are in an OCI layout.
pub(super) const OCI_BLOBS: &str = "blobs/sha256";
/// Where blobs are, next to a bootstrap.
const FILES_BLOBS: &str = "blobs";

/// What the files are to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Shape {
    /// An OCI image layout in a directory; the image gets this name in it, and joins the others that are there.
    Oci {
        /// The name.
        name: Option<String>,
    },
    /// An OCI image layout in a tar.
    OciArchive {
        /// The name.
        name: Option<String>,
    },
    /// The parts of a nydus image: `image.boot`, and `blobs/HEX`.
    Files,
}

/// A destination on this machine.
#[derive(Debug)]
pub struct Staging {
    shape: Shape,
    target: PathBuf,
    // Removed before its room is given back.
    folder: TempDir,
    /// What its blobs take of a bounded room.
    room: Option<Arc<DiskShare>>,
    next: AtomicU64,
}

/// A blob being written.
struct StagedBlob {
    file: tokio::fs::File,
    path: PathBuf,
    blobs: PathBuf,
    room: Option<Arc<DiskShare>>,
    size: u64,
}

impl Staging {
    /// Begins to write to `target`.
    ///
    /// # Errors
    ///
    /// When something is there that is not to be overwritten, or its folder cannot be written to.
    pub fn new(target: &Path, shape: Shape) -> Result<Self, StoreError> {
        let target = std::path::absolute(target).map_err(failed("find", target))?;
        check_target(&target, &shape)?;
        let parent = target.parent().unwrap_or(Path::new("/"));
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folder = tempfile::Builder::new()
            .prefix(&format!(".{name}.partial-"))
            .tempdir_in(parent)
            .map_err(failed("write to", parent))?;
        let staging = Self { shape, target, folder, room: None, next: AtomicU64::new(0) };
        fs::create_dir_all(staging.blobs()).map_err(failed("make", &staging.blobs()))?;
        Ok(staging)
    }

    /// The same, whose blobs take room of `space`, which is in the folder of the target, until this is dropped.
    #[must_use]
    pub fn within(self, space: &Arc<DiskSpace>) -> Self {
        Self { room: Some(Arc::new(DiskShare::of(space))), ..self }
    }

    /// What the files are to be.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    fn blobs(&self) -> PathBuf {
        self.folder.path().join(if self.shape == Shape::Files { FILES_BLOBS } else { OCI_BLOBS })
    }

    /// The size of a blob that is there: written now, or in the layout that this is to join, whose files are what their names say.
    fn blob(&self, digest: &Digest) -> Option<u64> {
        let joined = matches!(self.shape, Shape::Oci { .. }).then(|| self.target.join(OCI_BLOBS));
        [Some(self.blobs()), joined].into_iter().flatten().find_map(|folder| {
            let metadata = fs::metadata(folder.join(digest.digest())).ok();
            metadata.filter(fs::Metadata::is_file).map(|metadata| metadata.len())
        })
    }

    /// Writes the file `name` next to the blobs' folder.
    pub async fn put_file(&self, name: &str, content: Vec<u8>) -> Result<(), StoreError> {
        let path = self.folder.path().join(name);
        tokio::task::spawn_blocking(move || write_durably(&path, &content)).await?
    }

    /// Gives what is there its name. For a layout, `root` is the descriptor of its image.
    fn commit(&self, root: Option<Value>) -> Result<(), StoreError> {
        let folder = self.folder.path();
        match &self.shape {
            Shape::Files => self.rename(folder),
            Shape::Oci { name } if self.target.join(MARKER).exists() => {
                self.join(root.map(|root| named(root, name.as_deref())))
            }
            Shape::Oci { name } => {
                write_layout(folder, root.map(|root| named(root, name.as_deref())).into_iter().collect())?;
                self.rename(folder)
            }
            Shape::OciArchive { name } => {
                write_layout(folder, root.map(|root| named(root, name.as_deref())).into_iter().collect())?;
                let tar = self.pack()?;
                fs::rename(&tar, &self.target).map_err(failed("rename the tar to", &self.target))?;
                self.sync_parent()
            }
        }
    }

    /// Gives the whole folder its name; an empty directory of that name gives way.
    fn rename(&self, folder: &Path) -> Result<(), StoreError> {
        use std::os::unix::fs::PermissionsExt as _;

        // What is in the folders first: after a power cut the name may lead to all of it or be missing, but not lead to
        // empty folders.
        for folder in [self.blobs(), folder.to_owned()] {
            sync_folder(&folder)?;
        }
        // Temporary folders are private.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(failed("open up", folder))?;
        fs::rename(folder, &self.target).map_err(failed("rename what was written to", &self.target))?;
        self.sync_parent()
    }

    fn sync_parent(&self) -> Result<(), StoreError> {
        sync_folder(self.target.parent().unwrap_or(Path::new("/")))
    }

    /// Moves the blobs to a layout that is there, and then names the image in its `index.json`.
    fn join(&self, root: Option<Value>) -> Result<(), StoreError> {
        let marker = self.target.join(MARKER);
        // Whoever joins at the same time waits, or one of both would not be in the index.
        let lock = File::open(&marker).map_err(failed("open", &marker))?;
        lock.lock().map_err(failed("lock", &marker))?;
        // Blobs first and the index last: whoever reads the layout meanwhile, or after a power cut, finds all that its index
        // names.
        let blobs = self.target.join(OCI_BLOBS);
        fs::create_dir_all(&blobs).map_err(failed("make", &blobs))?;
        let staged = self.blobs();
        for entry in fs::read_dir(&staged).map_err(failed("list", &staged))? {
            let entry = entry.map_err(failed("list", &staged))?;
            let target = blobs.join(entry.file_name());
            fs::rename(entry.path(), &target).map_err(failed("rename a blob to", &target))?;
        }
        sync_folder(&blobs)?;
        let path = self.target.join(OCI_INDEX_FILE);
        let content = fs::read(&path).map_err(failed("read", &path))?;
        let invalid = |reason| StoreError::Occupied { path: path.clone(), reason };
        let mut index: Value = serde_json::from_slice(&content)
            .map_err(|error| invalid(format!("is no index of an OCI image layout: {error}")))?;
        let manifests = index
            .get_mut("manifests")
            .and_then(Value::as_array_mut)
            .ok_or_else(|| invalid("is no index of an OCI image layout: it has no manifests".to_owned()))?;
        if let Some(root) = root {
            manifests.retain(|other| !is_replaced(other, &root));
            manifests.push(root);
        }
        let temporary = self.folder.path().join(OCI_INDEX_FILE);
        write_durably(&temporary, index.to_string().as_bytes())?;
        fs::rename(&temporary, &path).map_err(failed("replace", &path))?;
        sync_folder(&self.target)
    }

    /// Packs the layout into a file.
    fn pack(&self) -> Result<PathBuf, StoreError> {
        let path = self.folder.path().join("layout.tar");
        let write = || {
            let out = io::BufWriter::with_capacity(1 << 20, File::create_new(&path)?);
            archive::pack(self.folder.path(), out)?.into_inner()?.sync_all()
        };
        write().map_err(failed("write", &path))?;
        Ok(path)
    }

    /// The layout as a tar, in which the image `root` has these names and annotations, while it is packed. Nothing more may be
    /// added.
    pub fn stream(
        self: &Arc<Self>,
        names: &[Reference],
        root: &Stored,
        annotations: &BTreeMap<String, String>,
    ) -> LayoutStream {
        let (staging, entries) = (Arc::clone(self), archive::entries(names, root, annotations));
        LayoutStream::new(move |out| {
            let folder = staging.folder.path();
            write_layout(folder, entries)?;
            archive::pack(folder, out).map(drop).map_err(failed("pack", folder))
        })
    }
}

impl Destination for Arc<Staging> {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        async move {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.folder.path().join(format!("blob-{number}"));
            let file = tokio::fs::File::create_new(&path).await.map_err(failed("create", &path))?;
            let room = self.room.clone();
            Ok(Box::new(StagedBlob { file, path, blobs: self.blobs(), room, size: 0 }) as Box<dyn BlobWriter>)
        }
        .boxed()
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool> {
        ready(Ok(self.blob(digest).is_some())).boxed()
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> Storing<'a, Option<u64>> {
        ready(Ok(self.blob(digest))).boxed()
    }

    /// The name is the one that the shape says, of one kind of files or another.
    fn publish<'a>(&'a self, _names: &'a [Reference], root: Option<&'a Stored>) -> Storing<'a, ()> {
        let (staging, root) = (Self::clone(self), root.map(Stored::descriptor));
        async move { tokio::task::spawn_blocking(move || staging.commit(root)).await? }.boxed()
    }
}

impl BlobWriter for StagedBlob {
    fn write(&mut self, data: Bytes) -> Storing<'_, ()> {
        async move {
            if let Some(room) = &self.room {
                room.take(data.len() as u64)?;
            }
            self.size += data.len() as u64;
            self.file.write_all(&data).await.map_err(failed("write", &self.path))
        }
        .boxed()
    }

    fn finish<'a>(mut self: Box<Self>, digest: &'a Digest) -> Storing<'a, u64> {
        async move {
            self.file.flush().await.map_err(failed("write", &self.path))?;
            self.file.sync_all().await.map_err(failed("write", &self.path))?;
            let target = self.blobs.join(digest.digest());
            tokio::fs::rename(&self.path, &target).await.map_err(failed("rename a blob to", &target))?;
            Ok(self.size)
        }
        .boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        // It goes with its folder.
        ready(()).boxed()
    }
}

/// Refuses what would be overwritten.
fn check_target(target: &Path, shape: &Shape) -> Result<(), StoreError> {
    let occupied =
        |reason: &str| Err(StoreError::Occupied { path: target.to_owned(), reason: reason.to_owned() });
    let metadata = match fs::metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.map_err(failed("look at", target))?,
    };
    if matches!(shape, Shape::OciArchive { .. }) {
        return if metadata.is_file() { Ok(()) } else { occupied("is no file: expected a tar to write") };
    }
    if !metadata.is_dir() {
        return occupied("is no directory");
    }
    let is_empty = fs::read_dir(target).map_err(failed("list", target))?.next().is_none();
    match shape {
        _ if is_empty => Ok(()),
        Shape::Oci { .. } if target.join(MARKER).exists() => Ok(()),
        Shape::Oci { .. } => occupied("holds something other than an OCI image layout"),
        _ => occupied("is not empty"),
    }
}

fn write_layout(folder: &Path, manifests: Vec<Value>) -> Result<(), StoreError> {
    write_durably(&folder.join(MARKER), MARKER_CONTENT)?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": crate::document::OCI_INDEX,
        "manifests": manifests,
    });
    write_durably(&folder.join(OCI_INDEX_FILE), index.to_string().as_bytes())
}

/// The descriptor of an image with a name.
fn named(mut root: Value, name: Option<&str>) -> Value {
    if let (Some(name), Some(root)) = (name, root.as_object_mut()) {
        root.insert("annotations".to_owned(), json!({ REF_NAME: name }));
    }
    root
}

/// Whether a layout's entry has the name of the new one or, without a name, is the same image.
fn is_replaced(old: &Value, new: &Value) -> bool {
    let name = |entry: &Value| entry.get("annotations")?.get(REF_NAME)?.as_str().map(str::to_owned);
    match (name(old), name(new)) {
        (None, None) => old.get("digest") == new.get("digest"),
        (old, new) => old == new,
    }
}

fn write_durably(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let write = || {
        let mut file = File::create(path)?;
        io::Write::write_all(&mut file, content)?;
        file.sync_all()
    };
    write().map_err(failed("write", path))
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::DiskUse;

    async fn staged(target: &Path, shape: Shape, content: &'static [u8]) -> Arc<Staging> {
        let staging = Arc::new(Staging::new(target, shape).unwrap());
        staging.put_blob(content.into()).await.unwrap();
        staging
    }

    fn oci(name: &str) -> Shape {
        Shape::Oci { name: Some(name.to_owned()) }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn nothing_is_at_the_target_until_all_is_and_nothing_is_left_without_a_commit() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("layout");
        let staging = staged(&target, oci("a"), b"one").await;
        assert!(!target.exists());
        drop(staging);
        assert_eq!(names(folder.path()), [""; 0]);

        staged(&target, oci("a"), b"one").await.commit(Some(json!({"digest": "d:1"}))).unwrap();
        assert_eq!(names(folder.path()), ["layout"]);
        assert_eq!(names(&target), ["blobs", "index.json", "oci-layout"]);
    }

    #[tokio::test]
    async fn an_image_joins_a_layout_and_replaces_the_one_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("layout");
        for (name, content, digest) in
            [("a", &b"one"[..], "d:1"), ("b", b"two", "d:2"), ("a", b"three", "d:3")]
        {
            staged(&target, oci(name), content).await.commit(Some(json!({ "digest": digest }))).unwrap();
        }
        let index: Value = serde_json::from_slice(&fs::read(target.join("index.json")).unwrap()).unwrap();
        let digests: Vec<_> =
            index["manifests"].as_array().unwrap().iter().map(|entry| &entry["digest"]).collect();
        assert_eq!(digests, ["d:2", "d:3"]);
        assert_eq!(names(&target.join(OCI_BLOBS)).len(), 3);
        assert_eq!(names(folder.path()), ["layout"]);
    }

    #[tokio::test]
    async fn a_tar_holds_the_layout_and_replaces_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image.tar");
        fs::write(&target, "old").unwrap();
        let staging = staged(&target, Shape::OciArchive { name: None }, b"one").await;
        staging.commit(Some(json!({"digest": "d:1"}))).unwrap();
        drop(staging);
        let mut tar = tar::Archive::new(File::open(&target).unwrap());
        let found: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(found[..2], ["oci-layout", "index.json"]);
        assert!(found[4].starts_with("blobs/sha256/"), "{found:?}");
        assert_eq!(names(folder.path()), ["image.tar"]);
    }

    #[tokio::test]
    async fn what_has_bounded_room_gives_it_back_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let purpose = &DiskUse { what: "tars", setting: "tar_bytes", of: "all", instead: "make none" };
        let space = DiskSpace::new(folder.path(), 10, purpose);
        let [one, other] = [(); 2].map(|()| {
            let staging = Staging::new(&folder.path().join("image.tar"), Shape::OciArchive { name: None });
            Arc::new(staging.unwrap().within(&space))
        });
        one.put_blob(Bytes::from_static(b"123456")).await.unwrap();
        let error = other.put_blob(Bytes::from_static(b"12345")).await.unwrap_err().to_string();
        assert!(error.starts_with("tars take more than 10 bytes in "), "{error}");
        assert!(error.ends_with(": raise tar_bytes, or make none"), "{error}");
        // What was refused takes no room.
        other.put_blob(Bytes::from_static(b"1234")).await.unwrap();
        drop(one);
        assert_eq!(space.left(), 6);
        drop(other);
        assert_eq!(space.left(), 10);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn what_is_there_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        for (target, shape) in [
            (folder.path().to_owned(), oci("a")),
            (folder.path().to_owned(), Shape::Files),
            (folder.path().join("file"), oci("a")),
            (folder.path().to_owned(), Shape::OciArchive { name: None }),
        ] {
            assert!(matches!(Staging::new(&target, shape), Err(StoreError::Occupied { .. })));
        }
        assert_eq!(names(folder.path()), ["file"]);
    }
}
