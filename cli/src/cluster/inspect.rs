//! `cluster inspect`: what a cluster image says of itself, its container images, and what these have in common.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use cluster::describe::{Description, Kind};
use cluster::inspect::{Sharing, blobs};
use cluster::lock::{self, Lock, Locked, PlatformImage};
use cluster::package::{LOCK_FILE, Package};
use cluster::saved::{DIRECTORY_REPOSITORY, SavedImages};
use futures::StreamExt as _;
use image::location::{InFile, Location};
use image::source::Source;
use indicatif::HumanBytes;
use registry::Digest;
use registry::client::Client;
use serde::Serialize;

use super::args;
use super::opened::{Opened, located};
use crate::config::Config;
use crate::status::Found;
use crate::stdout::{self, note};

/// How many images are looked at at once.
const AT_ONCE: usize = 8;

/// Everything `cluster inspect --json` prints.
#[derive(Debug, Serialize)]
struct ClusterReport {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<OwnReport>,
    components: BTreeMap<&'static str, String>,
    images: Vec<ImageLine>,
    /// Of the container images of which all blobs are known.
    sharing: Sharing,
}

/// The cluster image itself.
#[derive(Debug, Serialize)]
struct OwnReport {
    digest: String,
    platforms: Vec<String>,
    blobs: usize,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct ImageLine {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    platforms: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_bytes: Option<u64>,
}

/// An image, and how it is known how large it is.
struct WantedImage {
    name: String,
    digest: Option<Digest>,
    platforms: Vec<String>,
    known_by: KnownBy,
}

enum KnownBy {
    /// The documents at a place: of those of its manifests that count, or of all where that is `None`.
    Documents(Location, Option<Vec<Digest>>),
    /// The lock, in bytes: its documents are in an archive in a layer, which is not fetched for them.
    Lock(u64),
}

pub(super) async fn run(config: &Config, flags: args::Inspect) -> anyhow::Result<ExitCode> {
    let client = Client::new(config.registry.clone())?;
    let location = located(&flags.source)?;
    let package = match &location {
        Some(Location::Package(place)) => {
            let (path, spool) = (place.path.clone(), config.registry.upload.spool_dir.clone());
            Some(tokio::task::spawn_blocking(move || Package::open(&path, &spool)).await??)
        }
        _ => None,
    };
    // What another system packed says nothing of the cluster image.
    let of_others =
        package.as_ref().is_some_and(|package| package.about().is_none_or(|about| about.image.is_none()));
    let opened = match of_others {
        true => None,
        false => Some(Opened::open(config, &flags.source, flags.platform.as_ref()).await?),
    };
    let wanted = match &package {
        Some(package) => of_package(package, &client).await?,
        None => match &opened {
            Some(opened) => of_lock(opened)?,
            None => Vec::new(),
        },
    };
    let image = match (&location, of_others) {
        (Some(location), false) => Some(own(location, &client).await?),
        _ => None,
    };
    let components = opened.as_ref().map(components).transpose()?.unwrap_or_default();
    let (images, sharing, complete) = images(wanted, &client).await;
    let report = ClusterReport { name: flags.source, image, components, images, sharing };
    if flags.json {
        stdout::print_json(&report)?
    } else {
        stdout::print(&report.text())?
    }
    Ok(Found::UnreadImages.status_if(!complete))
}

/// The container images of a package: those of its lock, or all that have a name.
async fn of_package(package: &Package, client: &Client) -> anyhow::Result<Vec<WantedImage>> {
    let place =
        |image: String| Location::Package(InFile { path: package.path().to_owned(), image: Some(image) });
    if let Some(lock) = package.lock() {
        let saved = match package.saved() {
            Some(saved) => Some(SavedImages::open(&saved, client).await?),
            None => None,
        };
        let of = |locked: &Locked| {
            let lazily = saved.as_ref().and_then(|saved| nydus_images(locked, saved));
            match lazily {
                Some((name, manifests)) if !package.has_as_it_is(locked)? => {
                    Ok(of_locked(locked, KnownBy::Documents(place(name), Some(manifests))))
                }
                _ => Ok(of_locked(locked, documents(locked, place(locked.reference.to_string())))),
            }
        };
        return lock.images.iter().map(of).collect();
    }
    let names = package.images().names()?;
    let of = |(repository, tag): (String, String)| {
        let digest = package.images().layout().tagged(&repository, &tag)?;
        let name = format!("{repository}:{tag}");
        let known_by = KnownBy::Documents(place(name.clone()), None);
        Ok(WantedImage { name, digest, platforms: Vec::new(), known_by })
    };
    names.into_iter().map(of).collect()
}

/// The nydus images that an image is in `saved`, and what names them; `None` if it is none there.
fn nydus_images(locked: &Locked, saved: &SavedImages) -> Option<(String, Vec<Digest>)> {
    let table = saved.table()?;
    let found = locked.platforms.iter().filter_map(|image| table.images.get(&image.digest));
    let manifests: Vec<Digest> = found.map(|image| image.manifest.clone()).collect();
    (!manifests.is_empty()).then(|| (format!("{DIRECTORY_REPOSITORY}@{}", saved.digest()), manifests))
}

/// The container images of the lock in a cluster image.
fn of_lock(opened: &Opened) -> anyhow::Result<Vec<WantedImage>> {
    let path = opened.dir.join(LOCK_FILE);
    if !path.is_file() {
        note(
            "warning: there is no images.lock in it: its container images are not known (see cluster images)",
        );
        return Ok(Vec::new());
    }
    let of = |locked: &Locked| match locked.archive {
        Some(_) if !opened.is_directory() => of_locked(locked, KnownBy::Lock(locked_bytes(locked))),
        _ => of_locked(locked, documents(locked, lock::locked_source(locked, &opened.dir))),
    };
    Ok(Lock::read(&path)?.images.iter().map(of).collect())
}

/// The images of `locked` for all of its platforms.
fn platform_images(locked: &Locked) -> impl Iterator<Item = &PlatformImage> {
    locked.platforms.iter().chain(&locked.nydus)
}

fn locked_bytes(locked: &Locked) -> u64 {
    platform_images(locked).fold(0, |sum, image| sum.saturating_add(image.bytes))
}

fn documents(locked: &Locked, location: Location) -> KnownBy {
    let manifests = platform_images(locked).map(|image| image.digest.clone()).collect();
    KnownBy::Documents(location, Some(manifests))
}

fn of_locked(locked: &Locked, known_by: KnownBy) -> WantedImage {
    let mut platforms: Vec<String> =
        platform_images(locked).map(|image| image.platform.to_string()).collect();
    platforms.sort();
    platforms.dedup();
    WantedImage {
        name: locked.reference.to_string(),
        digest: Some(locked.digest.clone()),
        platforms,
        known_by,
    }
}

async fn own(location: &Location, client: &Client) -> anyhow::Result<OwnReport> {
    let source = Source::open(location, client).await?;
    let digest = source.root().await?.descriptor.digest().to_string();
    let images = source.images(&[]).await.with_context(|| location.to_string())?;
    let blobs = blobs(&source, None).await?;
    let mut platforms: Vec<String> = images.iter().map(|image| image.platform.to_string()).collect();
    platforms.dedup();
    let bytes = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size()));
    Ok(OwnReport { digest, platforms, blobs: blobs.len(), bytes })
}

/// Looks at all images; says whether all of them could be read.
async fn images(wanted: Vec<WantedImage>, client: &Client) -> (Vec<ImageLine>, Sharing, bool) {
    let look = |wanted: WantedImage| async move {
        let found = match &wanted.known_by {
            KnownBy::Lock(_) => Ok(None),
            KnownBy::Documents(location, manifests) => match lock::open(location, client).await {
                Ok(source) => blobs(&source, manifests.as_deref()).await.map(Some),
                Err(error) => Err(error),
            },
        };
        (wanted, found)
    };
    let looked: Vec<_> = futures::stream::iter(wanted).map(look).buffered(AT_ONCE).collect().await;
    let known: Vec<_> = looked.iter().filter_map(|(_, found)| found.as_ref().ok()?.clone()).collect();
    let sharing = Sharing::of(&known);
    let (mut shares, mut lines, mut complete) = (sharing.images.iter(), Vec::new(), true);
    for (wanted, found) in looked {
        let (bytes, shared_bytes) = match (found, wanted.known_by) {
            (Err(error), _) => {
                note(&format!("error: {}: {error}", wanted.name));
                complete = false;
                (None, None)
            }
            (Ok(_), KnownBy::Lock(bytes)) => (Some(bytes), None),
            (Ok(_), KnownBy::Documents(..)) => {
                let share = shares.next();
                (share.map(|share| share.bytes), share.map(|share| share.shared_bytes))
            }
        };
        let digest = wanted.digest.map(|digest| digest.to_string());
        lines.push(ImageLine {
            image: wanted.name,
            digest,
            platforms: wanted.platforms,
            bytes,
            shared_bytes,
        });
    }
    (lines, sharing, complete)
}

/// What the image says of itself, in the words of both systems.
fn components(opened: &Opened) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let metadata = std::fs::read_to_string(opened.dir.join("Metadata")).ok();
    let said = Description::read(&opened.labels, &opened.annotations, metadata.as_deref())?;
    let kind = said.kind.map(|kind| match kind {
        Kind::Rootfs => "rootfs",
        Kind::Application => "application",
        Kind::Patch => "patch",
    });
    let runtime = |runtime: &cluster::describe::Runtime| {
        let words: Vec<&str> =
            [&runtime.name, &runtime.version].into_iter().flatten().map(String::as_str).collect();
        (!words.is_empty()).then(|| words.join(" "))
    };
    let names = |names: &std::collections::BTreeSet<String>| {
        (!names.is_empty()).then(|| names.iter().cloned().collect::<Vec<_>>().join(", "))
    };
    let architecture = said.architecture.as_ref().map(|(name, variant)| format!("{name}{variant}"));
    let applications: Vec<&str> = said.applications.iter().map(|application| &*application.name).collect();
    let hooks: Vec<&str> = said.hooks.keys().map(String::as_str).collect();
    let list = |words: Vec<&str>| (!words.is_empty()).then(|| words.join(", "));
    let all = [
        ("layout", cluster::discover::layout(&opened.dir).map(|layout| layout.to_string())),
        ("kind", kind.map(str::to_owned)),
        ("version", said.version.clone()),
        ("architecture", architecture),
        ("kubernetes", said.kube_versions.clone()),
        ("cluster runtime", runtime(&said.cluster_runtime)),
        ("container runtime", runtime(&said.container_runtime)),
        ("network", names(&said.cni)),
        ("storage", names(&said.csi)),
        ("applications", list(applications)),
        ("hooks", list(hooks)),
    ];
    Ok(all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

impl ClusterReport {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.name);
        if let Some(OwnReport { digest, platforms, blobs, bytes }) = &self.image {
            let platforms = platforms.join(", ");
            let _ = writeln!(text, "  digest: {digest}\n  platforms: {platforms}");
            let _ = writeln!(text, "  {blobs} blobs, {}", HumanBytes(*bytes));
        }
        for (name, value) in &self.components {
            let _ = writeln!(text, "  {name}: {value}");
        }
        if self.images.is_empty() {
            return text;
        }
        let width = self.images.iter().map(|line| line.image.len()).chain(["IMAGE".len()]).max().unwrap_or(0);
        let _ = writeln!(text, "\n{:width$}  {:>12}  {:>12}  PLATFORMS", "IMAGE", "SIZE", "SHARED");
        for line in &self.images {
            let size =
                |bytes: Option<u64>| bytes.map_or("?".to_owned(), |bytes| HumanBytes(bytes).to_string());
            let (bytes, shared) = (size(line.bytes), size(line.shared_bytes));
            let platforms = line.platforms.join(", ");
            let _ = writeln!(text, "{:width$}  {bytes:>12}  {shared:>12}  {platforms}", line.image);
        }
        let Sharing { bytes, stored_bytes, shared_bytes, images: sharing_images } = &self.sharing;
        let _ = writeln!(
            text,
            "\n{} images, {} together; {} stored, of which two or more have {}",
            sharing_images.len(),
            HumanBytes(*bytes),
            HumanBytes(*stored_bytes),
            HumanBytes(*shared_bytes)
        );
        let in_archives =
            self.images.iter().filter(|line| line.bytes.is_some() && line.shared_bytes.is_none()).count();
        if in_archives > 0 {
            let all = self.images.len();
            let _ = writeln!(
                text,
                "{in_archives} of {all} images are in archives: what these share is not looked at"
            );
        }
        text
    }
}
