//! The daemon's mounts by id. Each has locks of its own, so a mount that is slow to come or go holds up no other, and nobody who
//! only looks.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use registry::Repository;

use super::arrivals::{Arrival, Arrivals};
use super::make::{self, MakeError};
use super::slot::{ServedMount, SharedSlot, Slot, SlotTable};
use super::turns::MakingTurns;
use super::{Engine, Image, MountError, Mounted, Prepared};
use crate::access::Accesses;
use crate::control::{
    BackendSpec, BootstrapRequest, HandedOut, Handover, MountRequest, MountStatus, MountSummary,
};
use crate::fuse::{HandedOver, Rights};
use crate::process::RemoteWorker;
use crate::upgrade::{Probe, UpgradeError};
use crate::worker::BackendError;

/// Characters that an id may have: it is shown in `/proc/mounts`, where others would be escaped.
const ID_LENGTH_LIMIT: usize = 128;

/// Why the table cannot do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The id is not one.
    #[error("mount id {0:?} is not valid: expected 1 to 128 letters, digits, '.', '_' or '-'")]
    Id(String),
    /// A path is not absolute.
    #[error("path {0:?} is not absolute")]
    Path(std::path::PathBuf),
    /// A mount names nobody who has its blobs.
    #[error("the request names no backend")]
    NoBackend,
    /// There is no such mount.
    #[error("there is no mount {0}")]
    Unknown(String),
    /// A backend is none.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The id is that of another mount.
    #[error("mount {id} exists with other content: bootstrap {}, mountpoint {}",
        existing.bootstrap.display(), existing.mountpoint.display())]
    Conflict {
        /// The id.
        id: String,
        /// What it stands for.
        existing: Box<MountRequest>,
    },
    /// What was read cannot be named.
    #[error("mount {id}")]
    Trace {
        /// The mount.
        id: String,
        /// Why.
        source: crate::fs::FsError,
    },
    /// A bootstrap cannot be made.
    #[error("cannot make the bootstrap {} of image {image}", target.display())]
    Make {
        /// The file.
        target: std::path::PathBuf,
        /// The image.
        image: String,
        /// Why not.
        source: Box<MakeError>,
    },
    /// The request ended in a bug of the daemon.
    #[error("the request ended in a bug of the daemon: {0}")]
    Bug(String),
    /// Mounting or unmounting failed.
    #[error("mount {id}")]
    Mount {
        /// The mount.
        id: String,
        /// Why.
        source: MountError,
    },
}

/// See the module. Its methods block for as long as the operating system takes.
pub struct Table {
    engine: Engine<RemoteWorker>,
    accesses: Arc<Accesses>,
    /// Arguments with which a program says whether it would work in this one's place.
    probe: Vec<String>,
    slots: SlotTable,
    arrivals: Arrivals,
    /// Of those who make bootstraps.
    turns: MakingTurns,
}

impl Table {
    /// A table of no mounts, whose registries are reached by `accesses`, which its worker has as well.
    pub(crate) fn new(engine: Engine<RemoteWorker>, accesses: Arc<Accesses>, probe: Vec<String>) -> Self {
        let (slots, arrivals, turns) = (SlotTable::default(), Arrivals::default(), MakingTurns::default());
        Self { engine, accesses, probe, slots, arrivals, turns }
    }

    /// Finds out whether another program can take the place of this one.
    ///
    /// # Errors
    ///
    /// [`UpgradeError`].
    pub async fn make_place(&self) -> Result<Probe, UpgradeError> {
        let not_held = self.not_held();
        if !not_held.is_empty() {
            return Err(UpgradeError::NotHeld(not_held));
        }
        crate::upgrade::probe(&self.probe).await
    }

    /// The mounts that would end with this process, or that are just coming or going.
    fn not_held(&self) -> Vec<String> {
        let is_held = |slot: &SharedSlot| {
            slot.is_settled() && slot.served().as_ref().is_none_or(|served| served.handed_over)
        };
        let not_held = self.slots.all().into_iter().filter(|(_, slot)| !is_held(slot)).map(|(id, _)| id);
        not_held.chain(self.arriving()).collect()
    }

    /// Has repositories read so from now on, by mounts that there are as well.
    ///
    /// # Errors
    ///
    /// [`TableError::Backend`]: one is none; those before it count.
    pub fn hand_out(&self, accesses: Vec<HandedOut>) -> Result<(), TableError> {
        for HandedOut { repository, access } in accesses {
            self.accesses.hand_out(&Repository::parse(&repository).map_err(BackendError::from)?, access);
        }
        Ok(())
    }

    /// The repositories whose credentials were refused, as soon as there are some; none after `wait`.
    pub async fn renewals(&self, wait: Duration) -> Vec<String> {
        self.accesses.renewals(wait).await
    }

    /// Finds out how the registries among backends are reached, where nobody has said it.
    pub async fn look_up(&self, backends: &[BackendSpec]) {
        for spec in backends {
            // What is no repository is an error of who uses it.
            if let BackendSpec::Registry { repository } = spec
                && let Ok(repository) = Repository::parse(repository)
            {
                self.accesses.ensure(&repository).await;
            }
        }
    }

    /// What all mounts share.
    pub fn engine(&self) -> &Engine<RemoteWorker> {
        &self.engine
    }

    /// Whether the image is mounted already; then backends that are new are added.
    ///
    /// # Errors
    ///
    /// [`TableError`]: the request is not valid, or the id is that of another mount.
    pub fn mount_again(&self, request: &MountRequest) -> Result<bool, TableError> {
        check_id(&request.id)?;
        for path in [&request.bootstrap, &request.mountpoint] {
            check_path(path)?;
        }
        if request.backends.is_empty() {
            return Err(TableError::NoBackend);
        }
        let Some(slot) = self.slots.get(&request.id) else { return Ok(false) };
        let _turn = slot.turn();
        Self::add_to_existing(&slot, request)
    }

    fn add_to_existing(slot: &Slot, request: &MountRequest) -> Result<bool, TableError> {
        let mut served = slot.served();
        let Some(existing) = served.as_mut().filter(|served| served.mounted.is_mounted()) else {
            return Ok(false);
        };
        if existing.is_same(request) {
            existing.add(&request.backends)?;
            return Ok(true);
        }
        let existing = Box::new(existing.request.clone());
        Err(TableError::Conflict { id: request.id.clone(), existing })
    }

    /// Gets what an image needs before it can be mounted; no lock is held meanwhile.
    ///
    /// # Errors
    ///
    /// [`TableError`]: a backend is none, or the image is broken or lacks what nobody has.
    pub async fn prepare(&self, request: &MountRequest) -> Result<Prepared<RemoteWorker>, TableError> {
        let image = Self::image(request)?;
        let prepared = self.engine.prepare(&image).await;
        prepared.map_err(|source| TableError::Mount { id: request.id.clone(), source })
    }

    /// Makes the file of a bootstrap, in time. Of one host one at a time is.
    ///
    /// # Errors
    ///
    /// [`TableError`]: the request is not valid, or the bootstrap cannot be made; what was at its place still is.
    pub async fn make_bootstrap(&self, request: BootstrapRequest) -> Result<(), TableError> {
        check_path(&request.target)?;
        if request.backends.is_empty() {
            return Err(TableError::NoBackend);
        }
        request.backends.iter().try_for_each(BackendSpec::check)?;
        let (target, image) = (request.target.clone(), request.image.clone());
        let made = make::make(self.engine.worker(), &self.turns, request).await;
        made.map_err(|source| TableError::Make { target, image, source: Box::new(source) })
    }

    fn image<'a>(request: &'a MountRequest) -> Result<Image<'a, BackendSpec>, TableError> {
        request.backends.iter().try_for_each(BackendSpec::check)?;
        Ok(Image {
            id: &request.id,
            name: &request.image,
            bootstrap: &request.bootstrap,
            mountpoint: &request.mountpoint,
            rights: Rights::CONTAINER,
            backends: request.backends.clone(),
        })
    }

    /// Mounts a prepared image, unless it was mounted meanwhile.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn mount(&self, request: &MountRequest, prepared: Prepared<RemoteWorker>) -> Result<(), TableError> {
        self.fill(request, false, |image| self.engine.mount_prepared(image, prepared))
    }

    /// What another daemon needs to go on serving a mount, with its descriptor. It stays when this daemon ends.
    ///
    /// # Errors
    ///
    /// [`TableError::Unknown`], or the descriptor cannot be duplicated.
    pub fn handover(&self, id: &str) -> Result<(Handover, OwnedFd), TableError> {
        let unknown = || TableError::Unknown(id.to_owned());
        let slot = self.slots.get(id).ok_or_else(unknown)?;
        let mut served = slot.served();
        let served = served.as_mut().ok_or_else(unknown)?;
        let handed = served.mounted.hand_over();
        let HandedOver { descriptor, device, negotiated } =
            handed.map_err(|source| TableError::Mount { id: id.to_owned(), source })?;
        served.handed_over = true;
        self.engine.cache().hand_over(served.mounted.blobs());
        Ok((Handover { mount: served.request.clone(), device, negotiated }, descriptor))
    }

    /// Says that a mount of a daemon that has ended is about to be served on, until the answer is dropped: nobody is to mount
    /// anything in its place. Waits for others who said so of the same one.
    pub async fn comes(&self, id: &str) -> Arrival<'_> {
        // Whoever has it taken over is the broker, or was sent by one.
        self.accesses.expect_broker();
        self.arrivals.begin(id).await
    }

    /// Waits until a mount is served or not: a daemon that has ended may have left it.
    pub async fn settled(&self, id: &str) {
        self.arrivals.over(id).await;
    }

    /// The mounts that are just being taken over.
    pub fn arriving(&self) -> Vec<String> {
        self.arrivals.ids()
    }

    /// Goes on serving a prepared image that a daemon has mounted which has ended, unless it is served already.
    ///
    /// # Errors
    ///
    /// [`TableError`]; the mount is as it was then.
    pub fn adopt(
        &self,
        handover: Handover,
        descriptor: OwnedFd,
        prepared: Prepared<RemoteWorker>,
    ) -> Result<(), TableError> {
        let Handover { mount, device, negotiated } = handover;
        let handed = HandedOver { descriptor, device, negotiated };
        self.fill(&mount, true, |image| self.engine.adopt(image, prepared, handed))
    }

    fn fill(
        &self,
        request: &MountRequest,
        handed_over: bool,
        mount: impl FnOnce(&Image<'_, BackendSpec>) -> Result<Mounted<RemoteWorker>, MountError>,
    ) -> Result<(), TableError> {
        let image = Self::image(request)?;
        let slot = self.slots.get_or_make(&request.id);
        let _turn = slot.turn();
        if Self::add_to_existing(&slot, request)? {
            return Ok(());
        }
        let mounted = mount(&image).map_err(|source| TableError::Mount { id: request.id.clone(), source });
        mounted.map(|mounted| {
            let served = ServedMount { request: request.clone(), mounted: Arc::new(mounted), handed_over };
            slot.served().replace(served);
        })
    }

    /// The paths of the files that were read, in the order in which each was first.
    ///
    /// # Errors
    ///
    /// [`TableError::Unknown`] and [`TableError::Trace`].
    pub fn trace(&self, id: &str) -> Result<Vec<Box<[u8]>>, TableError> {
        let unknown = || TableError::Unknown(id.to_owned());
        let slot = self.slots.get(id).ok_or_else(unknown)?;
        let mounted = slot.mounted().ok_or_else(unknown)?;
        mounted.trace().map_err(|source| TableError::Trace { id: id.to_owned(), source })
    }

    /// Adds backends to a mount, behind those that it has.
    ///
    /// # Errors
    ///
    /// [`TableError::Unknown`] and those of backends that are none.
    pub fn add_backends(&self, id: &str, backends: &[BackendSpec]) -> Result<(), TableError> {
        let unknown = || TableError::Unknown(id.to_owned());
        let slot = self.slots.get(id).ok_or_else(unknown)?;
        let mut served = slot.served();
        served.as_mut().ok_or_else(unknown)?.add(backends)
    }

    /// Unmounts; what is in use for longer than `patience` is detached. An unknown id is no error.
    ///
    /// # Errors
    ///
    /// [`TableError::Mount`]; the mount stays in the table.
    pub fn unmount(&self, id: &str, patience: Duration) -> Result<(), TableError> {
        let Some(slot) = self.slots.get(id) else { return Ok(()) };
        let turn = slot.turn();
        if let Some(mounted) = slot.mounted() {
            let ended = mounted
                .unmount(patience)
                .map_err(|source| TableError::Mount { id: id.to_owned(), source })?;
            if ended {
                tracing::info!(image = id, "unmounted");
            } else {
                tracing::warn!(image = id, "detached: in use, it ends with its last user");
            }
        }
        let gone = slot.served().take();
        drop((gone, turn));
        Ok(())
    }

    /// Unmounts all that are not in use; the ids of the others.
    pub fn unmount_unused(&self, patience: Duration) -> Vec<String> {
        let mut in_use = Vec::new();
        for id in self.ids() {
            let Some(slot) = self.slots.get(&id) else { continue };
            let turn = slot.turn();
            let Some(mounted) = slot.mounted() else { continue };
            let unused = mounted.try_unmount();
            drop((mounted, turn));
            match unused {
                Ok(true) => {
                    if let Err(error) = self.unmount(&id, patience) {
                        tracing::warn!(image = id, %error, "cannot unmount");
                    }
                }
                Ok(false) => in_use.push(id),
                Err(error) => {
                    tracing::warn!(image = id, %error, "cannot unmount");
                    in_use.push(id);
                }
            }
        }
        in_use
    }

    /// Before the process ends: leaves what somebody else can have served on, and unmounts the rest, at once where it is
    /// in use.
    pub fn leave(&self) {
        for id in self.ids() {
            let slot = self.slots.get(&id);
            let is_held = |slot: &SharedSlot| slot.served().as_ref().is_some_and(|served| served.handed_over);
            if slot.as_ref().is_some_and(is_held) {
                tracing::info!(image = id, "left in place for the next daemon");
                continue;
            }
            if let Err(error) = self.unmount(&id, Duration::ZERO) {
                tracing::warn!(image = id, %error, "cannot unmount");
            }
        }
    }

    /// What is mounted: all of it, whoever else looks at it or changes something. What is not served yet is left out.
    pub fn status(&self) -> Vec<MountStatus> {
        let slots = self.slots.all();
        let known = slots.iter().filter_map(|(_, slot)| {
            // Counting chunks takes a while, for which nobody is to wait.
            let ServedMount { request, mounted, .. } = slot.served().clone()?;
            Some(MountStatus {
                blobs: mounted.blobs().to_vec(),
                chunks: mounted.completeness(),
                id: request.id,
                bootstrap: request.bootstrap,
                mountpoint: request.mountpoint,
                image: request.image,
                backends: request.backends,
            })
        });
        known.collect()
    }

    /// The same without what has to be counted. Nothing that takes a while is waited for.
    pub fn summary(&self) -> Vec<MountSummary> {
        let slots = self.slots.all();
        let known = slots.iter().filter_map(|(_, slot)| {
            let served = slot.served();
            let ServedMount { request, mounted, .. } = served.as_ref()?;
            Some(MountSummary {
                id: request.id.clone(),
                mountpoint: request.mountpoint.clone(),
                blobs: mounted.blobs().to_vec(),
            })
        });
        known.collect()
    }

    /// How many mounts there are, with those that are just coming or going.
    pub(crate) fn count(&self) -> usize {
        self.slots.count()
    }

    fn ids(&self) -> Vec<String> {
        self.slots.all().into_iter().map(|(id, _)| id).collect()
    }
}

fn check_path(path: &std::path::Path) -> Result<(), TableError> {
    if path.is_absolute() { Ok(()) } else { Err(TableError::Path(path.to_owned())) }
}

fn check_id(id: &str) -> Result<(), TableError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=ID_LENGTH_LIMIT).contains(&id.len()) && id.bytes().all(good) {
        return Ok(());
    }
    Err(TableError::Id(id.to_owned()))
}
