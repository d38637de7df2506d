//! The key `images`: which container images the built image asks for. They are found in what was built, once it is stored, and locked;
//! the lock becomes its topmost layer, `images.lock`. What it says of itself in the words of one system it says in those of the other too.
//!
//! The files are a builder's: what reads them is what `cluster images` is, and helm runs confined there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cluster::ClusterConfig;
use cluster::describe::{ContainerImage, DescribeError, Description, Kind, Platform, Words};
use cluster::discover::{self, DiscoverError, Discovery, Options};
use cluster::lock::{self, Lock, LockFileError, Locked, PlatformImage, ResolveError, ResolveOptions};
use cluster::package::{LOCK_FILE, METADATA_FILE, lock_layer};
use cluster::save::{self, Destination, NotSaved, SaveOptions};
use cluster::saved::images_name;
use image::destination::{DiskSpace, SpoolFolder};
use image::document::ImageConfig;
use image::files::{FilesError, LargeFiles, extract};
use image::location::Location;
use image::platform::PlatformName;
use registry::client::Client;
use registry::{Digest, Reference};

use super::together::TogetherImages;

/// How many problems an error lists.
const SHOWN: usize = 10;

/// What the history says of the lock's layer.
pub(crate) const CREATED_BY: &str = "nydus-cluster images.lock";

/// Why the container images are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImagesError {
    #[error("what was built cannot be read: {0}")]
    Files(#[from] FilesError),
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    #[error(transparent)]
    Lock(#[from] LockFileError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    Describe(#[from] DescribeError),
    #[error("images may be missing: {0}")]
    Problems(String),
    #[error("container images: expected os and architecture in the image's config")]
    Platform,
    #[error("container images are found where the image is pushed to: expected a registry")]
    NoRegistry,
    #[error("{0} cannot have a tag for its container images")]
    Tag(String),
    #[error("the archives with {image} cannot be put together: {reason}")]
    Together { image: Box<Reference>, reason: String },
    #[error("container images are not saved: {0}")]
    NotSaved(String),
    #[error("a thread that read files ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    #[error("cannot use a temporary directory: {0}")]
    Temporary(#[from] io::Error),
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) lock: Lock,
    /// Has the archives that images of the lock come from, if some do.
    pub(crate) archives: Option<LargeFiles>,
    /// A tar with the lock, and with sealer's `Metadata` for a root file system that has none.
    pub(crate) layer: Bytes,
    /// Annotations of the manifest, in sealer's words.
    pub(crate) annotations: Vec<(&'static str, String)>,
    /// Labels for the config, in the words of both systems.
    pub(crate) labels: Words,
    /// What need not be an error.
    pub(crate) warnings: Vec<String>,
}

/// Finds and locks the container images of `image`, which is stored, for its platform. A lock that it has is obeyed.
/// Archives that images come from are kept in `space`.
pub(crate) async fn find(
    image: &Reference,
    platform: &PlatformName,
    client: &Client,
    config: &ClusterConfig,
    space: &Arc<DiskSpace>,
) -> Result<Found, ImagesError> {
    let directory = SpoolFolder::new(&client.config().upload.spool_dir).await?;
    let root = directory.path();
    let location = Location::Registry(image.clone());
    let configured = extract(&location, client, platform, discover::matters, root).await?;
    let pairs = configured.env.unwrap_or_default();
    let pairs = pairs.iter().filter_map(|pair| pair.split_once('='));
    let options = Options {
        environment: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        helm: config.helm.clone(),
        helm_deadline: Duration::from_secs(config.helm_seconds),
        ..Options::default()
    };
    let found = discover::discover(root, &options).await?;
    let archives = archives(&location, platform, client, &found, space).await?;
    let (obeyed, metadata) = before(root.to_owned()).await?;
    let platforms = obeyed.as_ref().map_or_else(|| vec![platform.clone()], |lock| lock.platforms.clone());
    let options = ResolveOptions { platforms, ..ResolveOptions::default() };
    let of_archives = archives.as_ref().map_or(root, LargeFiles::path);
    let resolved = lock::resolve(&found, of_archives, client, &options, obeyed.as_ref()).await?;
    let problems: Vec<String> =
        found.problems.iter().chain(&resolved.problems).map(ToString::to_string).collect();
    if !problems.is_empty() {
        let more = match problems.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        return Err(ImagesError::Problems(problems[..problems.len().min(SHOWN)].join("; ") + &more));
    }
    let warnings = found.warnings.iter().chain(&resolved.warnings).map(ToString::to_string).collect();
    let labels = configured.labels.unwrap_or_default();
    let mut said = Description::read(&labels, &configured.annotations, metadata.as_deref())?;
    said.images = container_images(&resolved.lock);
    said.architecture.get_or_insert_with(|| {
        (platform.architecture().to_owned(), platform.variant().unwrap_or_default().to_owned())
    });
    let metadata = (metadata.is_none() && said.kind == Some(Kind::Rootfs)).then(|| said.metadata());
    let layer = lock_layer(&resolved.lock, metadata.as_deref())?;
    let (annotations, labels) = (annotations(&said), said.labels());
    Ok(Found { lock: resolved.lock, archives, layer, annotations, labels, warnings })
}

/// The lock that is in a tree already, and sealer's `Metadata`.
async fn before(root: PathBuf) -> Result<(Option<Lock>, Option<String>), ImagesError> {
    let read = move || {
        let lock = root.join(LOCK_FILE);
        let lock = if lock.is_file() { Some(Lock::read(&lock)?) } else { None };
        Ok((lock, fs::read_to_string(root.join(METADATA_FILE)).ok()))
    };
    tokio::task::spawn_blocking(read).await?
}

/// Fetches the archives that images come from, apart from all other files: none of these leads there.
async fn archives(
    location: &Location,
    platform: &PlatformName,
    client: &Client,
    found: &Discovery,
    space: &Arc<DiskSpace>,
) -> Result<Option<LargeFiles>, ImagesError> {
    let wanted = found.images.iter().filter_map(|image| image.archive.as_ref());
    let wanted: BTreeSet<Vec<u8>> = wanted.map(|archive| archive.path.clone().into_bytes()).collect();
    if wanted.is_empty() {
        return Ok(None);
    }
    let archives = LargeFiles::new(space).await?;
    archives.fetch(location, client, platform, wanted).await?;
    Ok(Some(archives))
}

/// The images of the lock, as sealer lists them.
fn container_images(lock: &Lock) -> Vec<ContainerImage> {
    let of_platform = |(image, found): (&Locked, &PlatformImage)| ContainerImage {
        image: image.reference.to_string(),
        app_name: String::new(),
        platform: Some(Platform {
            os: found.platform.os().to_owned(),
            architecture: found.platform.architecture().to_owned(),
            variant: found.platform.variant().unwrap_or_default().to_owned(),
        }),
    };
    let all = lock.images.iter().flat_map(|image| image.platforms.iter().map(move |found| (image, found)));
    all.map(of_platform).collect()
}

/// sealer's words for the images, and for the rest where the image has some of them.
fn annotations(said: &Description) -> Vec<(&'static str, String)> {
    let mut words = said.annotations();
    let names = ["sealer.image.extension", "sealer.image.container.images"];
    names.into_iter().filter_map(|name| Some((name, words.remove(name)?))).collect()
}

/// What the config says that an image is for.
pub(crate) fn platform(config: &[u8]) -> Result<PlatformName, ImagesError> {
    ImageConfig::parse(config).and_then(|config| config.platform()).map_err(|_| ImagesError::Platform)
}

/// One lock for all platforms. An image that was moved between two look-ups is there as it was found first.
pub(crate) fn united(locks: Vec<Lock>) -> Lock {
    let mut all = Lock::default();
    for lock in locks {
        for platform in lock.platforms {
            if !all.platforms.contains(&platform) {
                all.platforms.push(platform);
            }
        }
        for image in lock.images {
            let same = all
                .images
                .iter_mut()
                .find(|before| before.reference == image.reference && before.digest == image.digest);
            let Some(before) = same else {
                if all.get(&image.reference).is_none() {
                    all.images.push(image);
                }
                continue;
            };
            for (before, found) in
                [(&mut before.platforms, image.platforms), (&mut before.nydus, image.nydus)]
            {
                for found in found {
                    if !before.contains(&found) {
                        before.push(found);
                    }
                }
            }
        }
    }
    // In the same order whichever platform was built first.
    all.platforms.sort_by_cached_key(ToString::to_string);
    for image in &mut all.images {
        for images in [&mut image.platforms, &mut image.nydus] {
            images.sort_by_cached_key(|image| (image.platform.to_string(), image.digest.to_string()));
        }
    }
    all.images.sort_by_cached_key(|image| image.reference.to_string());
    all
}

/// Saves `images` in the repository of `name`, under its tag with `-images` behind it; returns the digest of what names them.
pub(crate) async fn save(
    images: &TogetherImages,
    name: &Reference,
    client: &Client,
    options: SaveOptions,
) -> Result<Option<Digest>, ImagesError> {
    let destination = Destination::Repository(saved_name(name)?);
    let options = SaveOptions { read_at: images.read_at.clone(), ..options };
    // Whatever comes from an archive is read where it was put.
    let saved = save::save(&images.lock, Path::new(""), client, &destination, &options, &|_| {}).await;
    saved.map_err(|error| match error {
        NotSaved::Images(failed) => {
            let failed: Vec<String> = failed.iter().take(SHOWN).map(ToString::to_string).collect();
            ImagesError::NotSaved(failed.join("; "))
        }
        error => ImagesError::NotSaved(error.to_string()),
    })
}

/// Gives what was saved in the repository of `name`, and has the digest `saved` there, the name that goes with `name` too.
pub(crate) async fn name_saved(saved: &Digest, name: &Reference, client: &Client) -> Result<(), ImagesError> {
    let failed = |error: registry::client::Error| ImagesError::NotSaved(error.to_string());
    let (described, content) =
        client.manifest(&name.repository().with_digest(saved.clone())).await.map_err(failed)?;
    let named = client.put_manifest(&saved_name(name)?, described.media_type().as_ref(), content).await;
    named.map(drop).map_err(failed)
}

/// What names the saved images of the image `name`.
fn saved_name(name: &Reference) -> Result<Reference, ImagesError> {
    images_name(name).map_err(|error| ImagesError::Tag(error.to_string()))
}

#[cfg(test)]
mod tests {
    use image::destination::{Destination as _, Shape, Staging};
    use image::document::Stored;
    use image::location::InFile;
    use registry::client::ClientConfig;
    use registry::digest::sha256;
    use serde_json::json;
    use test_support::{noise, tar_of};

    use super::*;
    use crate::build::TOGETHER;

    const LIST: &str = "images/skopeo/tar.txt";

    /// A layout in `dir` of an image for linux/amd64 whose one layer is `layer`.
    async fn layout(dir: &Path, layer: Vec<u8>) -> Location {
        let path = dir.join("layout");
        let staging = Arc::new(Staging::new(&path, Shape::Oci { name: None }).unwrap());
        let config = json!({
            "os": "linux", "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [sha256(&layer).to_string()]},
        });
        let mut described = Vec::new();
        for (kind, content) in [("config.v1+json", config.to_string().into_bytes()), ("layer.v1.tar", layer)]
        {
            let media_type = format!("application/vnd.oci.image.{kind}");
            let size = content.len();
            let digest = staging.put_blob(content.into()).await.unwrap().to_string();
            described.push(json!({"mediaType": media_type, "digest": digest, "size": size}));
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "config": described[0], "layers": described[1..],
        });
        let content = Bytes::from(manifest.to_string());
        let digest = staging.put_manifest(&media_type, content.clone()).await.unwrap();
        staging.publish(&[], Some(&Stored { media_type, content, digest })).await.unwrap();
        Location::Oci(InFile { path, image: None })
    }

    #[tokio::test]
    async fn archives_of_builds_at_once_take_no_more_than_they_may_together() {
        let dir = tempfile::tempdir().unwrap();
        let list = "docker-archive:own.tar@team/own:v1\n";
        let archive = noise(1, 20_000);
        let layer = tar_of(&[(LIST, list.as_bytes().to_vec()), ("images/skopeo/own.tar", archive.clone())]);
        let location = layout(dir.path(), layer).await;
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("images/skopeo")).unwrap();
        fs::write(tree.join(LIST), list).unwrap();
        let found = discover::discover(&tree, &Options::default()).await.unwrap();
        let (client, platform) =
            (Client::new(ClientConfig::default()).unwrap(), "linux/amd64".parse().unwrap());
        let room = DiskSpace::new(dir.path(), 30_000, &TOGETHER);
        let fetch = async || archives(&location, &platform, &client, &found, &room).await;

        let (one, other) = tokio::join!(fetch(), fetch());
        let (there, refused) = match (one, other) {
            (Ok(there), Err(refused)) | (Err(refused), Ok(there)) => (there.unwrap(), refused.to_string()),
            both => panic!("expected room for one: {both:?}"),
        };
        assert!(refused.contains("all builds together: raise cluster.save_spool_bytes"), "{refused}");
        assert_eq!(fs::read(there.path().join("images/skopeo/own.tar")).unwrap(), archive);
        drop(there);
        assert_eq!(room.left(), 30_000);
        fetch().await.unwrap();
    }
}
