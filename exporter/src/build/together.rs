//! The container images of all platforms of a build, together.
//!
//! The trees of two platforms may have archives of their own with an image of one name: `COPY own-$TARGETARCH.tar images/skopeo/own.tar`. An image
//! has one digest for all nodes, so that these become one: an index names the images of all of them. In each platform's own lock it stays what
//! its archive has.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cluster::lock::{self, Lock, Locked, PlatformImage};
use image::copy::copy_image;
use image::destination::{Destination, DiskSpace, DiskUse, Shape, SpoolFolder, Staging};
use image::document::{Index, Stored};
use image::files::LargeFiles;
use image::location::{InFile, Location};
use image::source::Document;
use registry::Reference;
use registry::client::{Client, PlacedBlobs};
use serde_json::{Value, json};

use super::images::{ImagesError, united};

/// How much of two archives is compared at once.
const PIECE_BYTES: usize = 1 << 20;

/// What the archives take that images come from, and the images that are put together of several of them, of all builds.
pub(crate) const TOGETHER: DiskUse = DiskUse {
    what: "archives of container images, with images that are put together of them,",
    setting: "cluster.save_spool_bytes",
    of: "all builds",
    instead: "have one archive for all platforms (docker save, or skopeo copy --all), or the images in a registry",
};

/// The container images that one platform's tree asks for.
#[derive(Debug)]
pub(crate) struct TreeImages {
    pub(crate) lock: Lock,
    /// Has the archives that images of the lock come from, if some do.
    pub(crate) archives: Option<LargeFiles>,
}

/// Those of all platforms.
#[derive(Debug)]
pub(crate) struct TogetherImages {
    pub(crate) lock: Lock,
    /// Where those are that come from archives.
    pub(crate) read_at: HashMap<Reference, Location>,
    _trees: Vec<TreeImages>,
    _layout: Option<LayoutFolder>,
}

/// A folder with a layout of those that were put together.
#[derive(Debug)]
struct LayoutFolder {
    // Removed before its room is given back.
    folder: SpoolFolder,
    stagings: Vec<Arc<Staging>>,
    space: Arc<DiskSpace>,
}

impl TogetherImages {
    /// All that `trees` ask for. What is put together of several archives is kept in `space`; what they name is read by `client`.
    pub(crate) async fn of(
        mut trees: Vec<TreeImages>,
        client: &Client,
        space: &Arc<DiskSpace>,
    ) -> Result<Self, ImagesError> {
        let (mut read_at, mut layout) = (HashMap::new(), None);
        for (image, holders) in in_archives(&trees) {
            let parts: Vec<Part> =
                holders.iter().filter_map(|&tree| Part::of(trees.get(tree)?, &image)).collect();
            let Some(first) = parts.first() else { continue };
            if are_same(&parts).await? {
                read_at.insert(image, first.location.clone());
                continue;
            }
            let layout = match &mut layout {
                Some(layout) => layout,
                none => none.insert(LayoutFolder::new(space).await?),
            };
            let failed = |reason: String| ImagesError::Together { image: Box::new(image.clone()), reason };
            let root = layout.put(&image, &parts, client).await.map_err(failed)?;
            for locked in trees.iter_mut().flat_map(|tree| &mut tree.lock.images) {
                if locked.reference == image {
                    locked.digest = root.digest.clone();
                    locked.media_type.clone_from(&root.media_type);
                    locked.size = root.content.len() as u64;
                }
            }
            read_at.insert(image.clone(), layout.location(&image));
        }
        let lock = united(trees.iter().map(|tree| tree.lock.clone()).collect());
        Ok(Self { lock, read_at, _trees: trees, _layout: layout })
    }
}

/// The images that a tree has in an archive, each with the trees that ask for it.
fn in_archives(trees: &[TreeImages]) -> Vec<(Reference, Vec<usize>)> {
    let mut found: BTreeMap<String, (Reference, Vec<usize>, bool)> = BTreeMap::new();
    for (number, tree) in trees.iter().enumerate() {
        for image in &tree.lock.images {
            let name = image.reference.to_string();
            let (_, holders, has_archive) =
                found.entry(name).or_insert_with(|| (image.reference.clone(), Vec::new(), false));
            holders.push(number);
            *has_archive |= image.archive.is_some();
        }
    }
    let found = found.into_values().filter(|(_, _, has_archive)| *has_archive);
    found.map(|(image, holders, _)| (image, holders)).collect()
}

/// An image as one tree has it.
struct Part {
    locked: Locked,
    location: Location,
}

impl Part {
    fn of(tree: &TreeImages, image: &Reference) -> Option<Self> {
        let locked = tree.lock.get(image)?.clone();
        let archives = tree.archives.as_ref().map_or(Path::new(""), LargeFiles::path);
        Some(Self { location: lock::locked_source(&locked, archives), locked })
    }
}

/// Whether all of `parts` are one archive: each is read from any of them.
async fn are_same(parts: &[Part]) -> Result<bool, ImagesError> {
    let Some((first, others)) = parts.split_first() else { return Ok(true) };
    if others.iter().any(|other| other.locked.digest != first.locked.digest) {
        return Ok(false);
    }
    let path = |part: &Part| part.location.path().map(Path::to_owned);
    let Some(first) = path(first) else { return Ok(false) };
    let Some(others) = others.iter().map(path).collect::<Option<Vec<PathBuf>>>() else { return Ok(false) };
    let compare = move || {
        others.iter().try_fold(true, |same, other| Ok::<_, io::Error>(same && is_same(&first, other)?))
    };
    tokio::task::spawn_blocking(compare).await?.map_err(ImagesError::Temporary)
}

/// Whether two files have the same content.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let mut pieces = [vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]];
    loop {
        let [ours, theirs] = &mut pieces;
        let read = one.read(ours)?;
        if read == 0 {
            return Ok(true);
        }
        other.read_exact(&mut theirs[..read])?;
        if ours[..read] != theirs[..read] {
            return Ok(false);
        }
    }
}

impl LayoutFolder {
    async fn new(space: &Arc<DiskSpace>) -> Result<Self, ImagesError> {
        let folder = SpoolFolder::new(space.dir()).await?;
        Ok(Self { folder, stagings: Vec::new(), space: Arc::clone(space) })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    fn location(&self, image: &Reference) -> Location {
        Location::Oci(InFile { path: self.path(), image: Some(image.to_string()) })
    }

    /// Copies all of `parts`, and names them by one index, which it returns: their own, where all have the same.
    async fn put(&mut self, image: &Reference, parts: &[Part], client: &Client) -> Result<Stored, String> {
        let shape = Shape::Oci { name: Some(image.to_string()) };
        let path = self.path();
        let staging = tokio::task::spawn_blocking(move || Staging::new(&path, shape)).await;
        let staging = staging.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let staging = Arc::new(staging.within(&self.space));
        let (mut roots, mut entries) = (Vec::<Stored>::new(), Entries::new());
        for Part { locked, location } in parts {
            let source = lock::open(location, client).await.map_err(|error| error.to_string())?;
            let root = source.root().await.map_err(|error| error.to_string())?;
            if *root.descriptor.digest() != locked.digest {
                return Err(format!(
                    "{location} is {}: expected {}",
                    root.descriptor.digest(),
                    locked.digest
                ));
            }
            let copied = copy_image(&source, &staging, &PlacedBlobs::default()).await;
            copied.map_err(|error| image::describe(&error))?;
            entries.extend(entries_of(&root, locked)?);
            roots.push(stored(&root));
        }
        let is_one = roots.windows(2).all(|pair| pair[0].digest == pair[1].digest);
        let root = match roots.pop().filter(|_| is_one) {
            Some(root) => root,
            None => Index::of_all(entries.into_values().collect()).convert(&HashMap::new(), true),
        };
        let put = staging.put_manifest(&root.media_type, root.content.clone()).await;
        put.map_err(|error| error.to_string())?;
        staging.publish(&[], Some(&root)).await.map_err(|error| error.to_string())?;
        self.stagings.push(staging);
        Ok(root)
    }
}

fn stored(root: &Document) -> Stored {
    Stored {
        media_type: root.descriptor.media_type().to_string(),
        content: Bytes::clone(&root.content),
        digest: root.descriptor.digest().clone(),
    }
}

/// The entries of an index, by platform and digest, for one order.
type Entries = BTreeMap<(String, String), Value>;

/// How an index names the images of `locked`, whose name leads to `root`.
fn entries_of(root: &Document, locked: &Locked) -> Result<Entries, String> {
    let content: Value = serde_json::from_slice(&root.content).map_err(|error| error.to_string())?;
    let entry = |image: &PlatformImage| -> Result<_, String> {
        let digest = image.digest.to_string();
        let named = match content.get("manifests").and_then(Value::as_array) {
            None => Some(stored(root).descriptor()),
            Some(named) => named.iter().find(|entry| entry["digest"] == digest.as_str()).cloned(),
        };
        let mut entry = named.ok_or_else(|| format!("{} does not name {digest} itself", locked.digest))?;
        if entry["platform"].is_null() {
            entry["platform"] = platform(image);
        }
        Ok(((image.platform.to_string(), digest), entry))
    };
    locked.platforms.iter().chain(&locked.nydus).map(entry).collect()
}

fn platform(image: &PlatformImage) -> Value {
    let platform = &image.platform;
    let mut value = json!({"os": platform.os(), "architecture": platform.architecture()});
    if let Some(variant) = platform.variant() {
        value["variant"] = variant.into();
    }
    value
}

#[cfg(test)]
mod tests {
    use std::fs;

    use cluster::discover::{self, Options};
    use cluster::lock::ResolveOptions;
    use registry::client::ClientConfig;
    use test_support::{noise, tar_of};

    use super::*;

    const ROOM: u64 = 1 << 20;

    fn space(bytes: u64) -> Arc<DiskSpace> {
        DiskSpace::new(&std::env::temp_dir(), bytes, &TOGETHER)
    }

    fn client() -> Client {
        Client::new(ClientConfig::default()).unwrap()
    }

    /// What `docker save` writes of an image for `architecture`.
    fn archive(architecture: &str) -> Vec<u8> {
        let layer = tar_of(&[("word", architecture.as_bytes().to_vec()), ("library", noise(1, 10_000))]);
        let diff_id = registry::digest::sha256(&layer).to_string();
        let config = json!({
            "os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": ["team/own:v1"], "Layers": ["layer.tar"]}]);
        let [config, manifest] = [config, manifest].map(|document| document.to_string().into_bytes());
        tar_of(&[("manifest.json", manifest), ("config.json", config), ("layer.tar", layer)])
    }

    /// The tree for `architecture` with such an archive at `path`.
    async fn tree(architecture: &str, path: &str) -> TreeImages {
        let dir = LargeFiles::new(&space(0)).await.unwrap();
        let folder = dir.path().join("images/skopeo");
        let file = folder.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(folder.join("tar.txt"), format!("docker-archive:{path}@team/own:v1\n")).unwrap();
        fs::write(file, archive(architecture)).unwrap();
        let found = discover::discover(dir.path(), &Options::default()).await.unwrap();
        let platforms = vec![format!("linux/{architecture}").parse().unwrap()];
        let options = ResolveOptions { platforms, ..ResolveOptions::default() };
        let resolved = lock::resolve(&found, dir.path(), &client(), &options, None).await.unwrap();
        assert_eq!(resolved.problems, []);
        TreeImages { lock: resolved.lock, archives: Some(dir) }
    }

    #[tokio::test]
    async fn archives_of_one_name_become_one_image_whatever_their_paths() {
        for path in ["own.tar", "arm/own.tar"] {
            let trees = vec![tree("amd64", "own.tar").await, tree("arm64", path).await];
            let apart: Vec<_> = trees.iter().map(|tree| tree.lock.images[0].platforms[0].clone()).collect();
            let together = TogetherImages::of(trees, &client(), &space(ROOM)).await.unwrap();
            let [image] = &together.lock.images[..] else { panic!("{:?}", together.lock) };
            assert_eq!(image.platforms, apart);
            let source = lock::open(&together.read_at[&image.reference], &client()).await.unwrap();
            let root = source.root().await.unwrap();
            assert_eq!(*root.descriptor.digest(), image.digest);
            let index = Index::parse(&root.content).unwrap();
            for (entry, image) in index.manifests.iter().zip(&apart) {
                assert_eq!(*entry.digest(), image.digest);
                source.manifest(entry).await.unwrap();
            }
            // The same in whichever order the platforms were built.
            let turned = vec![tree("arm64", path).await, tree("amd64", "own.tar").await];
            let turned = TogetherImages::of(turned, &client(), &space(ROOM)).await.unwrap();
            assert_eq!(turned.lock.images[0].digest, image.digest);
        }
    }

    #[tokio::test]
    async fn an_archive_that_all_have_stays_where_it_is() {
        let trees = vec![tree("amd64", "own.tar").await, tree("amd64", "own.tar").await];
        let (digest, place) =
            (trees[0].lock.images[0].digest.clone(), trees[0].archives.as_ref().unwrap().path().to_owned());
        let together = TogetherImages::of(trees, &client(), &space(0)).await.unwrap();
        let image = &together.lock.images[0];
        assert_eq!(image.digest, digest);
        assert!(together.read_at[&image.reference].path().unwrap().starts_with(place));
    }

    #[tokio::test]
    async fn what_all_builds_put_together_takes_no_more_than_it_may() {
        let (room, client) = (space(30_000), client());
        let put = async || {
            let trees = vec![tree("amd64", "own.tar").await, tree("arm64", "own.tar").await];
            TogetherImages::of(trees, &client, &room).await
        };
        let first = put().await.unwrap();
        let error = put().await.unwrap_err().to_string();
        assert!(error.contains("team/own:v1") && error.contains("cluster.save_spool_bytes"), "{error}");
        drop(first);
        assert_eq!(room.left(), 30_000);
        put().await.unwrap();
    }
}
