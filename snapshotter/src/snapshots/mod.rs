//! The operations on snapshots, as containerd defines them, for plain and nydus layers.

mod cleanup;
mod create;
mod node_images;
mod pending;
mod restore;
mod room;
mod sets;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fuse_daemon::control::BlobId;
use registry::nydus::LABEL_SNAPSHOT_REF;
use tracing::info;

use crate::broker::Broker;
use crate::config::SnapshotterConfig;
use crate::containerd::{self, Caller};
use crate::daemon::{Daemon, describe};
use crate::error::Error;
use crate::filter::Filters;
use crate::nydus::{self, Access, Beneath, BesidePlain, Image, Images, Layer};
use crate::overlay::{self, Directories, Mount};
use crate::state::{Commit, Kind, LabelUpdate, Labels, Record, SnapshotId, State, Usage};
use crate::tasks::blocking;
use pending::Pending;

/// How long the daemon may take to say what its cache holds.
const USAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Snapshots in one message of a list, as containerd sends them.
const LIST_BLOCK: usize = 100;

/// The snapshots under one root.
pub(crate) struct Snapshotter {
    state: Arc<State>,
    directories: Directories,
    overlay_options: Vec<String>,
    daemon: Arc<Daemon>,
    images: Arc<Images>,
    containerd: PathBuf,
    access: Access,
    /// Where nydus images beside plain ones are run.
    beside_plain: Option<BesidePlain>,
    restore_concurrency: usize,
    next_id: AtomicU64,
    pending: Pending,
    /// Held by the clean-up that runs, which another one waits for. Nothing else does.
    cleaning: tokio::sync::Mutex<()>,
}

impl Snapshotter {
    /// Where images are mounted.
    pub(crate) fn mount_directory(&self) -> &Path {
        self.directories.mounts()
    }

    /// The daemon that serves its images.
    pub(crate) fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Images that are mounted.
    pub(crate) fn images_mounted(&self) -> usize {
        self.images.mounted_count()
    }

    /// How many snapshots there are. Blocks on the disk.
    pub(crate) fn count(&self) -> Result<u64, Error> {
        self.state.count()
    }

    /// Opens what is under the configured root. Blocks on the disk, for a moment.
    pub(crate) fn open(
        config: &SnapshotterConfig,
        daemon: Arc<Daemon>,
        broker: Arc<Broker>,
    ) -> Result<Self, Error> {
        let directories = Directories::open(&config.root)?;
        let state = Arc::new(State::open(directories.state())?);
        // A directory without a record may be left from before a crash: its number is taken until it is cleaned up.
        let above = directories.list()?.last().map_or(0, |last| last.0.saturating_add(1));
        let next_id = AtomicU64::new(state.next_id()?.0.max(above));
        let images =
            Images::new(Arc::clone(&state), Arc::clone(&daemon), Arc::clone(&broker), config.mount_timeout());
        let beside_plain = || {
            BesidePlain::new(Arc::clone(&broker), config.containerd.path().to_owned(), &config.root)
                .map_err(Error::io("make a folder below", config.root.clone()))
        };
        let beside_plain = config.nydus_beside_plain.then(beside_plain).transpose()?;
        Ok(Self {
            access: Access::new(broker),
            beside_plain,
            images: Arc::new(images),
            overlay_options: overlay::overlay_options(&config.overlay_options),
            restore_concurrency: config.restore_concurrency.max(1),
            containerd: config.containerd.path().to_owned(),
            pending: Pending::default(),
            cleaning: tokio::sync::Mutex::default(),
            state,
            directories,
            daemon,
            next_id,
        })
    }

    /// The mounts of an active snapshot or view. Mounts the image beneath again if it is not.
    pub(crate) async fn mounts(&self, caller: &Caller, key: String) -> Result<Vec<Mount>, Error> {
        let (record, parents) = self
            .on_state(move |state| {
                let (record, parents) = state.get_with_parents(&key)?;
                match record.kind {
                    Kind::Committed => {
                        Err(Error::WrongKind { key, kind: record.kind, expected: "active or a view" })
                    }
                    _ => Ok(((key, record), parents)),
                }
            })
            .await?;
        let (key, record) = record;
        let beneath = beneath_of(&key, &record.labels, parents)?;
        self.ensure_image(caller, &beneath).await?;
        Ok(self.mounts_of(&record, &beneath))
    }

    /// Makes an active snapshot final; one that was made without a parent may be put on one.
    pub(crate) async fn commit(
        &self,
        name: String,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<(), Error> {
        check_labels(&labels)?;
        let directories = self.directories.clone();
        self.on_state(move |state| {
            let record = state.get(&key)?;
            if record.kind != Kind::Active {
                return Err(Error::WrongKind { key, kind: record.kind, expected: "active" });
            }
            let upper = directories.upper(record.id);
            if is_unpacked_bootstrap(&labels) {
                make_durable(&key, &upper)?;
            } else if record.parent.is_none() && parent.is_some() {
                // What its creation would have refused.
                Beneath::of(&key, state.parents(&key, parent.as_deref())?)?;
            }
            let usage = overlay::disk_usage(&upper)?;
            state.commit(&key, Commit { name: &name, parent: parent.as_deref(), labels, usage })
        })
        .await
    }

    /// Forgets a snapshot. Its files, mount and cache stay until [`Self::cleanup`].
    pub(crate) async fn remove(&self, key: String) -> Result<(), Error> {
        self.on_state(move |state| state.remove(&key).map(drop)).await
    }

    /// What is known of a snapshot.
    pub(crate) async fn stat(&self, key: String) -> Result<Record, Error> {
        self.on_state(move |state| state.get(&key)).await
    }

    /// Changes labels.
    pub(crate) async fn update(&self, key: String, update: LabelUpdate) -> Result<Record, Error> {
        match &update {
            LabelUpdate::All(labels) => check_labels(labels)?,
            LabelUpdate::Some(changes) => {
                for (label, value) in changes {
                    check_label(label, value.as_deref().unwrap_or_default())?;
                }
            }
        }
        self.on_state(move |state| state.update(&key, update)).await
    }

    /// Hands out the snapshots that match, in blocks, all as of one moment, until `send`, which may block, returns false.
    pub(crate) async fn list(
        &self,
        filters: Filters,
        send: impl Fn(Vec<(String, Record)>) -> bool + Send + 'static,
    ) -> Result<(), Error> {
        self.on_state(move |state| {
            let mut block = Vec::new();
            state.walk(|key, record| {
                if filters.matches(&key, &record) {
                    block.push((key, record));
                }
                let full = block.len() >= LIST_BLOCK;
                Ok(!full || send(std::mem::take(&mut block)))
            })?;
            if !block.is_empty() {
                send(block);
            }
            Ok(())
        })
        .await
    }

    /// What a snapshot takes beside its parents: of a data layer, what the cache holds of its blob.
    pub(crate) async fn usage(&self, key: String) -> Result<Usage, Error> {
        let record = self.stat(key).await?;
        match record.kind {
            Kind::Active => {
                let upper = self.directories.upper(record.id);
                blocking(move || overlay::disk_usage(&upper)).await
            }
            Kind::Committed if matches!(Layer::of_record(&record), Layer::Blob | Layer::Lazy) => {
                Ok(self.cached(record).await)
            }
            _ => Ok(record.usage),
        }
    }

    /// What the cache holds of a data layer. Statistics are no reason to fail: a daemon that is away has nothing to say.
    async fn cached(&self, record: Record) -> Usage {
        let known = record.usage;
        let blob = self.on_state(move |state| blob_digest(state, &record)).await;
        let Some(blob) = blob.ok().flatten().and_then(|blob| blob.parse::<BlobId>().ok()) else {
            return known;
        };
        match self.daemon.client(USAGE_DEADLINE).usage(&[blob]).await.as_deref() {
            Ok([bytes]) => Usage { inodes: 0, size: i64::try_from(*bytes).unwrap_or(i64::MAX) },
            _ => known,
        }
    }

    /// Mounts the image beneath, if there is one.
    async fn ensure_image(&self, caller: &Caller, beneath: &Beneath) -> Result<Option<Image>, Error> {
        let Some((key, record)) = &beneath.image else { return Ok(None) };
        if record.lazy {
            let image = self.lazy_image(record.clone()).await?;
            self.images.ensure(image.clone()).await?;
            return Ok(Some(image));
        }
        let image = match self.image_of(key, record) {
            Err(Error::NoImageReference { .. }) => {
                self.find_reference(caller, key, &beneath.chain_ids).await?;
                let key = key.clone();
                let (key, record) = self.on_state(move |state| Ok((key.clone(), state.get(&key)?))).await?;
                self.image_of(&key, &record)?
            }
            image => image?,
        };
        self.images.ensure(image.clone()).await?;
        let (containerd, caller) = (self.containerd.clone(), caller.clone());
        self.images.learn_names(containerd, caller, image.clone(), beneath.chain_ids.clone());
        Ok(Some(image))
    }

    /// Asks containerd which image a bootstrap belongs to, and labels the bootstrap's snapshot with it.
    async fn find_reference(&self, caller: &Caller, key: &str, chain_ids: &[String]) -> Result<(), Error> {
        let missing = |lookup: String| Error::NoImageReference {
            key: key.to_owned(),
            labels: nydus::IMAGE_REFERENCES.join(", "),
            lookup,
        };
        let found = containerd::images_unpacked_to(&self.containerd, caller, chain_ids).await;
        let reference = found
            .map_err(|error| missing(describe(&error)))?
            .into_iter()
            .next()
            .ok_or_else(|| missing("containerd knows no image unpacked to it".to_owned()))?;
        info!(image = reference, key, "containerd knows the image");
        let label = (nydus::FOUND_REFERENCE.to_owned(), Some(reference));
        let key = key.to_owned();
        self.on_state(move |state| state.update(&key, LabelUpdate::Some(vec![label])).map(drop)).await
    }

    fn image_of(&self, key: &str, record: &Record) -> Result<Image, Error> {
        let reference = nydus::reference_of(&record.labels).ok_or_else(|| Error::NoImageReference {
            key: key.to_owned(),
            labels: nydus::IMAGE_REFERENCES.join(", "),
            lookup: "containerd was not asked".to_owned(),
        })?;
        Ok(Image {
            id: record.id,
            reference: reference.to_owned(),
            bootstrap: nydus::bootstrap_in(&self.directories.upper(record.id)),
            mountpoint: self.directories.mountpoint(record.id),
            lazy: None,
        })
    }

    fn mounts_of(&self, record: &Record, beneath: &Beneath) -> Vec<Mount> {
        let image = beneath.image.as_ref().map(|(_, image)| self.directories.mountpoint(image.id));
        let mut lowers: Vec<_> =
            beneath.plain.iter().map(|&id| self.directories.upper(id)).chain(image).collect();
        if nydus::is_unpacked_apart(record) {
            lowers.push(self.directories.empty().to_owned());
        }
        let layers = overlay::Layers {
            kind: record.kind,
            upper: &self.directories.upper(record.id),
            work: &self.directories.work(record.id),
            lowers: &lowers,
            labels: &record.labels,
        };
        overlay::mounts(&layers, &self.overlay_options)
    }

    fn new_id(&self) -> SnapshotId {
        SnapshotId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    async fn on_state<T: Send + 'static>(
        &self,
        work: impl FnOnce(&State) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let state = Arc::clone(&self.state);
        blocking(move || work(&state)).await
    }
}

/// What lies beneath a snapshot with these labels. A bootstrap layer is unpacked by itself: what its parents hold is
/// data that only it can make visible.
fn beneath_of(key: &str, labels: &Labels, parents: Vec<(String, Record)>) -> Result<Beneath, Error> {
    if is_unpacked_bootstrap(labels) { Ok(Beneath::default()) } else { Beneath::of(key, parents) }
}

/// The digest of a blob layer's blob, if it can be told.
fn blob_digest(state: &State, record: &Record) -> Result<Option<String>, Error> {
    if record.lazy {
        return Ok(Some(state.lazy_layer(record.id)?.blob.to_string()));
    }
    if let Some(blob) = nydus::blob_of(record) {
        return Ok(Some(blob.to_owned()));
    }
    let Some(parent) = &record.parent else { return Ok(None) };
    let parent = state.get(parent)?;
    let images = state.images()?;
    let found = images.iter().find_map(|(_, image)| nydus::blob_among(record, &parent, &image.blobs));
    Ok(found.map(ToOwned::to_owned))
}

/// Whether containerd unpacks a bootstrap layer into a snapshot with these labels.
fn is_unpacked_bootstrap(labels: &Labels) -> bool {
    labels.contains_key(LABEL_SNAPSHOT_REF) && Layer::of(labels) == Layer::Bootstrap
}

/// Sees to it that a bootstrap is there and stays: an image of which containerd believes that it is complete must not
/// lose it in a power cut.
fn make_durable(key: &str, upper: &std::path::Path) -> Result<(), Error> {
    let path = nydus::bootstrap_in(upper);
    // A layer may have anything in their places: a link to somewhere else on the node, a named pipe that nobody writes to,
    // a device that acts when it is opened.
    let is_directory = path.parent().map_or(Ok(false), |parent| is(parent, std::fs::FileType::is_dir))?;
    if !is_directory || !is(&path, std::fs::FileType::is_file)? {
        return Err(Error::BootstrapMissing { key: key.to_owned(), path });
    }
    let file = std::fs::File::open(&path).map_err(Error::io("open the bootstrap", &path))?;
    file.sync_all().map_err(Error::io("write the bootstrap", path))
}

/// Whether there is something of this type at `path` itself, links not being followed.
fn is(path: &std::path::Path, kind: impl Fn(&std::fs::FileType) -> bool) -> Result<bool, Error> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(kind(&metadata.file_type())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(Error::io("examine the bootstrap", path)(error)),
    }
}

fn check_labels(labels: &Labels) -> Result<(), Error> {
    labels.iter().try_for_each(|(label, value)| check_label(label, value))
}

/// Labels are as long as containerd's own database takes them.
fn check_label(label: &str, value: &str) -> Result<(), Error> {
    const LONGEST_BYTES: usize = 4096;
    if label.len() + value.len() <= LONGEST_BYTES {
        return Ok(());
    }
    Err(Error::Invalid {
        what: format!("label {:?}…", label.chars().take(64).collect::<String>()),
        problem: format!(
            "{} bytes with its value, expected at most {LONGEST_BYTES}",
            label.len() + value.len()
        ),
    })
}
