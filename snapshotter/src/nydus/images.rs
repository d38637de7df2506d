//! Mounted images, one mount each, shared by all containers on it.
//!
//! Whoever needs an image joins the attempt to mount it or begins one. The attempt runs on its own, so a caller that goes
//! away disturbs no other; nothing but its own callers waits for it, and not beyond the deadline.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{BackendSpec, CacheTotals, Client, ClientError, MountRequest};
use tokio::sync::{oneshot, watch};
use tracing::{Instrument, info, info_span, warn};

use super::lazy;
use super::mountinfo;
use super::names::{self, Names};
use super::uses::{Going, InUse, Uses};
use crate::broker::{Broker, repositories};
use crate::daemon::{Condition, Daemon, describe};
use crate::error::{Error, MountFailure};
use crate::overlay::RootAttributes;
use crate::state::{LazyLayer, MountedImage, SnapshotId, State};
use crate::tasks::blocking;

/// How long after a broken connection the end of the daemon may take to be noticed.
const NOTICE: Duration = Duration::from_secs(1);
/// How long the daemon may take for what needs no network.
pub(super) const CONTROL_DEADLINE: Duration = Duration::from_secs(10);
/// What the ids of our mounts begin with in the daemon.
const MOUNT_PREFIX: &str = "snapshot-";

/// An image to mount.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Its bootstrap's snapshot.
    pub(crate) id: SnapshotId,
    /// Its reference.
    pub(crate) reference: String,
    /// Its bootstrap.
    pub(crate) bootstrap: PathBuf,
    /// Where to mount it.
    pub(crate) mountpoint: PathBuf,
    /// What its bootstrap is made of and its blobs are read from, if it is one of an image set.
    pub(crate) lazy: Option<Arc<LazyLayer>>,
}

/// How an attempt ended: the daemon that serves it, or why not. `None` while it runs.
type Outcome = Option<Result<u64, MountFailure>>;
/// An attempt to mount an image, for those that wait for it.
type Attempt = watch::Receiver<Outcome>;

/// All mounted images.
pub(crate) struct Images {
    pub(super) state: Arc<State>,
    pub(super) daemon: Arc<Daemon>,
    pub(super) broker: Arc<Broker>,
    timeout: Duration,
    attempts: Mutex<HashMap<SnapshotId, Attempt>>,
    pub(super) names: Names,
    /// From whom the daemon reads mounted images of sets, as far as it was told.
    pub(super) told: Mutex<HashMap<SnapshotId, Vec<BackendSpec>>>,
    uses: Arc<Uses>,
}

impl Images {
    pub(crate) fn new(
        state: Arc<State>,
        daemon: Arc<Daemon>,
        broker: Arc<Broker>,
        timeout: Duration,
    ) -> Self {
        let (attempts, names, told, uses) =
            (Mutex::default(), Names::default(), Mutex::default(), Arc::default());
        Self { state, daemon, broker, timeout, attempts, names, told, uses }
    }

    /// A snapshot is about to be made on an image, which stays mounted until the guard is dropped: that has to be after there is a
    /// record of the snapshot.
    pub(crate) fn about_to_use(&self, id: SnapshotId) -> InUse {
        self.uses.begin(id)
    }

    /// When a snapshot was last made on an image since it was mounted, as far as this process has made it.
    pub(crate) fn last_used(&self, id: SnapshotId) -> Option<Instant> {
        self.uses.last(id)
    }

    /// An image, if no snapshot is about to be made on it: until the guard is dropped, whoever wants to make one waits.
    pub(crate) fn let_go(&self, id: SnapshotId) -> Option<Going> {
        self.uses.let_go(id)
    }

    /// Mounts an image unless it is, and returns once it serves.
    pub(crate) async fn ensure(self: &Arc<Self>, image: Image) -> Result<(), Error> {
        self.uses.settled(image.id).await;
        self.forget_if_unmounted(&image).await?;
        let reference = image.reference.clone();
        let failed = |failure| Error::Mount { image: reference.clone(), failure };
        let mut attempt = self.join_or_begin(image.clone());
        let outcome = match tokio::time::timeout(self.timeout, attempt.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone(),
            Ok(Err(_)) => None,
            Err(_) => Some(Err(self.overdue())),
        };
        match outcome {
            Some(Ok(_)) => {
                self.tell_new_backends(&image).await;
                Ok(())
            }
            Some(Err(failure)) => Err(failed(failure)),
            None => Err(Error::Internal(format!("the attempt to mount image {reference} was aborted"))),
        }
    }

    /// Images that were mounted, and neither unmounted nor lost since, as far as anybody has looked.
    pub(crate) fn mounted_count(&self) -> usize {
        self.attempts().values().filter(|attempt| matches!(*attempt.borrow(), Some(Ok(_)))).count()
    }

    /// Whether an image is mounted, as far as anybody has looked.
    pub(crate) fn is_mounted(&self, id: SnapshotId) -> bool {
        self.attempts().get(&id).is_some_and(|attempt| self.holds(attempt) && attempt.borrow().is_some())
    }

    /// What is remembered of an image's mount counts as long as the mount is there: if somebody else unmounted it,
    /// containers would start with an empty root.
    async fn forget_if_unmounted(&self, image: &Image) -> Result<(), Error> {
        let settled = |attempt: &&Attempt| matches!(*attempt.borrow(), Some(Ok(_)));
        let Some(attempt) = self.attempts().get(&image.id).filter(settled).cloned() else { return Ok(()) };
        let mountpoint = image.mountpoint.clone();
        if blocking(move || mountinfo::is_mounted(&mountpoint)).await? {
            return Ok(());
        }
        warn!(
            image = image.reference, snapshot = %image.id, mount = mount_id(image.id),
            mountpoint = %image.mountpoint.display(), "somebody unmounted an image; mounting it again"
        );
        let mut attempts = self.attempts();
        if attempts.get(&image.id).is_some_and(|current| current.same_channel(&attempt)) {
            attempts.remove(&image.id);
        }
        Ok(())
    }

    /// Attributes of a mounted image's root. Asked on a thread of its own, which a file system that hangs may keep.
    pub(crate) async fn root_attributes(&self, image: &Image) -> Result<RootAttributes, Error> {
        let (sender, receiver) = oneshot::channel();
        let mountpoint = image.mountpoint.clone();
        std::thread::Builder::new()
            .name("root attributes".to_owned())
            .spawn(move || drop(sender.send(RootAttributes::all_of(&mountpoint))))
            .map_err(Error::io("start a thread for", &image.mountpoint))?;
        match tokio::time::timeout(self.timeout, receiver).await {
            Ok(Ok(attributes)) => attributes,
            Ok(Err(_)) => Err(Error::Internal("a thread ended without an answer".to_owned())),
            Err(_) => Err(Error::Mount {
                image: image.reference.clone(),
                failure: MountFailure::Deadline(self.timeout),
            }),
        }
    }

    /// Unmounts the image of a snapshot that is gone. Fine if it is not mounted.
    pub(crate) async fn unmount(&self, id: SnapshotId, mountpoint: PathBuf) -> Result<(), Error> {
        self.names.forget(id);
        self.uses.forget(id);
        self.told().remove(&id);
        let attempt = self.attempts().remove(&id);
        if let Some(mut attempt) = attempt {
            // Were the attempt to go on, the mount would come back. How it ends does not matter.
            let _ = tokio::time::timeout(self.timeout, attempt.wait_for(Option::is_some)).await;
        }
        // First, so that no daemon that comes up meanwhile is given what is to go.
        self.daemon.release(&mount_id(id));
        match self.daemon.client(self.timeout).umount(&mount_id(id)).await {
            Err(error) if !error.is_not_running() => {
                return Err(Error::Daemon { problem: describe(&error) });
            }
            // Without a daemon there may still be what a dead one left.
            _ => blocking(move || mountinfo::detach(&mountpoint)).await?,
        }
        // What asked for it in between does not keep what is gone.
        self.daemon.release(&mount_id(id));
        info!(snapshot = %id, mount = mount_id(id), "unmounted an image");
        Ok(())
    }

    /// The snapshots whose images the daemon serves under `mounts`: it may serve others for somebody else.
    pub(crate) async fn mounted(&self, mounts: &Path) -> Result<Vec<SnapshotId>, Error> {
        let summary = self.daemon.client(CONTROL_DEADLINE).summary().await;
        let summary = summary.map_err(|error| Error::Daemon { problem: describe(&error) })?;
        let id = |mount: &str| mount.strip_prefix(MOUNT_PREFIX)?.parse().ok().map(SnapshotId);
        let ours = summary.mounts.iter().filter(|mount| mount.mountpoint.starts_with(mounts));
        Ok(ours.filter_map(|mount| id(&mount.id)).collect())
    }

    /// What the daemon's cache takes, if it says so.
    pub(crate) async fn cache(&self) -> Result<Option<CacheTotals>, Error> {
        let totals = self.daemon.client(CONTROL_DEADLINE).cache_totals().await;
        totals.map_err(|error| Error::Daemon { problem: describe(&error) })
    }

    fn attempts(&self) -> MutexGuard<'_, HashMap<SnapshotId, Attempt>> {
        // No code that holds it can panic half-way through a change.
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join_or_begin(self: &Arc<Self>, image: Image) -> Attempt {
        let mut attempts = self.attempts();
        if let Some(attempt) = attempts.get(&image.id)
            && self.holds(attempt)
        {
            return attempt.clone();
        }
        let (sender, receiver) = watch::channel(None);
        attempts.insert(image.id, receiver.clone());
        drop(attempts);
        let images = Arc::clone(self);
        let span = info_span!(
            parent: None, "mount", image = image.reference, snapshot = %image.id, mount = mount_id(image.id)
        );
        let attempt = async move {
            let result = tokio::time::timeout(images.timeout, images.mount(&image)).await;
            let result = result.unwrap_or_else(|_| Err(images.overdue()));
            match &result {
                Ok(_) => info!("image is mounted"),
                Err(error) => warn!(%error, "cannot mount image"),
            }
            // Nobody may be waiting any more.
            let _ = sender.send(Some(result));
        };
        tokio::spawn(attempt.instrument(span));
        receiver
    }

    /// Whether an attempt still runs, or succeeded with the daemon that runs now.
    fn holds(&self, attempt: &Attempt) -> bool {
        match &*attempt.borrow() {
            Some(Ok(generation)) => self.daemon.condition() == Condition::Ready(*generation),
            Some(Err(_)) => false,
            None => attempt.has_changed().is_ok(),
        }
    }

    /// Mounts, again with the next daemon if this one ends meanwhile.
    async fn mount(&self, image: &Image) -> Result<u64, MountFailure> {
        loop {
            let generation = self.daemon.ready().await;
            match self.mount_now(image).await {
                Ok(()) => return Ok(generation),
                Err(failure @ MountFailure::Unavailable(_)) => {
                    let gone = tokio::time::timeout(NOTICE, self.daemon.gone(generation)).await;
                    gone.map_err(|_| failure)?;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn mount_now(&self, image: &Image) -> Result<(), MountFailure> {
        let client = self.daemon.client(self.timeout);
        let known = self.known_of(image).await?;
        let (backends, blob) = match &image.lazy {
            Some(layer) => (layer.backends.clone(), Some(layer.blob.clone())),
            None => {
                let of_image = BackendSpec::of_image(&image.reference);
                let mut backends = vec![of_image.map_err(|error| MountFailure::Image(describe(&error)))?];
                backends.extend(names::backends(&known.names, &backends));
                // Its blobs are known if it was mounted before. Else its pull has tried what there is.
                (backends, known.blobs.first().and_then(|blob| blob.parse().ok()))
            }
        };
        self.broker.find_out_new(&repositories(&backends), blob.as_ref()).await;
        self.broker.hand_out(&client, &backends).await;
        if let Some(layer) = &image.lazy {
            lazy::ensure_bootstrap(&client, image, layer).await?;
        }
        let request = MountRequest {
            id: mount_id(image.id),
            bootstrap: image.bootstrap.clone(),
            mountpoint: image.mountpoint.clone(),
            image: image.reference.clone(),
            backends,
        };
        let summary = client.summary().await.map_err(failure)?;
        // What is at the mountpoint may be held for it.
        if !self.daemon.is_ready(summary.pid) {
            return Err(MountFailure::Unavailable("the nydus daemon has just been replaced".to_owned()));
        }
        if self.daemon.is_refused(&request.id) {
            let problem = "the nydus daemon cannot take over its mount yet".to_owned();
            return Err(MountFailure::Unavailable(problem));
        }
        let is_served = summary.mounts.iter().any(|mount| mount.id == request.id);
        if !is_served && !summary.coming.contains(&request.id) {
            detach_remains(&image.mountpoint).await?;
        }
        match client.mount(&request).await {
            Err(ClientError::Reported { kind: ErrorKind::Conflict, message, .. }) => {
                warn!(message, "replacing a mount of other content");
                client.umount(&request.id).await.map_err(failure)?;
                client.mount(&request).await.map_err(failure)?;
            }
            result => result.map_err(failure)?,
        }
        if image.lazy.is_some() {
            self.note_told(image.id, &request.backends);
        }
        self.daemon.hold(&client, &request.id).await.map_err(failure)?;
        self.remember(image, known, &client).await
    }

    /// Remembers what the image reads from, for the day that it is removed. Nothing is written of what is `known`: a disk that is full
    /// keeps no image from being mounted again.
    async fn remember(
        &self,
        image: &Image,
        known: MountedImage,
        client: &Client,
    ) -> Result<(), MountFailure> {
        let summary = client.summary().await.map_err(failure)?;
        let mount = summary.mounts.into_iter().find(|mount| mount.id == mount_id(image.id));
        let blobs = mount.map(|mount| mount.blobs).unwrap_or_default();
        let mounted = MountedImage {
            reference: image.reference.clone(),
            names: known.names.clone(),
            blobs: blobs.iter().map(ToString::to_string).collect(),
        };
        if mounted == known {
            return Ok(());
        }
        let (state, id) = (Arc::clone(&self.state), image.id);
        let stored = blocking(move || state.remember_image(id, &mounted)).await;
        stored.map_err(|error| MountFailure::Unavailable(describe(&error)))
    }

    /// What a caller is told whose time is over.
    fn overdue(&self) -> MountFailure {
        match self.daemon.condition() {
            Condition::Ready(_) => MountFailure::Deadline(self.timeout),
            Condition::Starting => {
                MountFailure::Unavailable("the nydus daemon is not running yet".to_owned())
            }
            Condition::Failed(problem) => MountFailure::Unavailable(format!("no nydus daemon: {problem}")),
        }
    }
}

/// A daemon that died leaves mounts on which every access fails.
async fn detach_remains(mountpoint: &Path) -> Result<(), MountFailure> {
    let mountpoint = mountpoint.to_owned();
    blocking(move || mountinfo::detach(&mountpoint))
        .await
        .map_err(|error| MountFailure::Unavailable(describe(&error)))
}

pub(super) fn mount_id(id: SnapshotId) -> String {
    format!("{MOUNT_PREFIX}{id}")
}

pub(super) fn failure(error: ClientError) -> MountFailure {
    match &error {
        ClientError::Reported { kind: ErrorKind::Bootstrap | ErrorKind::Invalid, message, .. } => {
            MountFailure::Image(message.clone())
        }
        ClientError::Deadline { deadline, .. } => MountFailure::Deadline(*deadline),
        _ => MountFailure::Unavailable(describe(&error)),
    }
}
