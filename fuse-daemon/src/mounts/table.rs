//! The daemon's mounts by id. Each has a lock of its own, so a mount that is slow to come or go holds up no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use registry::Reference;
use registry::client::Client;
use registry::reference::InvalidReference;

use super::{Engine, Image, MountError, Mounted};
use crate::control::{MountRequest, MountStatus};
use crate::worker::RegistryBackend;

/// Characters that an id may have: it is shown in `/proc/mounts`, where others would be escaped.
const ID_LENGTH_MAX: usize = 128;

/// Why the table cannot do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The id is not one.
    #[error("mount id {0:?} is not valid: expected 1 to 128 letters, digits, '.', '_' or '-'")]
    Id(String),
    /// A path is not absolute.
    #[error("path {0:?} is not absolute")]
    Path(std::path::PathBuf),
    /// The image's reference is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The id is that of another mount.
    #[error("mount {id} exists with other content: bootstrap {}, mountpoint {}, image {}",
        existing.bootstrap.display(), existing.mountpoint.display(), existing.image)]
    Conflict {
        /// The id.
        id: String,
        /// What it stands for.
        existing: Box<MountRequest>,
    },
    /// Mounting or unmounting failed.
    #[error("mount {id}")]
    Mount {
        /// The mount.
        id: String,
        /// Why.
        source: MountError,
    },
}

struct Slot {
    request: MountRequest,
    mounted: Mounted,
}

type SharedSlot = Arc<Mutex<Option<Slot>>>;

/// See the module. Its methods block for as long as the operating system takes.
pub struct Table {
    engine: Engine,
    client: Client,
    slots: Mutex<BTreeMap<String, SharedSlot>>,
}

impl Table {
    /// A table of no mounts, whose images come through `client`.
    pub fn new(engine: Engine, client: Client) -> Self {
        Self { engine, client, slots: Mutex::default() }
    }

    /// What all mounts share.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Mounts an image unless it is mounted already.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn mount(&self, request: &MountRequest) -> Result<(), TableError> {
        check_id(&request.id)?;
        for path in [&request.bootstrap, &request.mountpoint] {
            if !path.is_absolute() {
                return Err(TableError::Path(path.clone()));
            }
        }
        let reference = Reference::parse(&request.image)?;
        let shared = self.slot(&request.id);
        let mut slot = lock(&shared);
        if let Some(existing) = slot.as_ref().filter(|slot| slot.mounted.is_mounted()) {
            if existing.request == *request {
                return Ok(());
            }
            let existing = Box::new(existing.request.clone());
            return Err(TableError::Conflict { id: request.id.clone(), existing });
        }
        let backend = RegistryBackend::new(self.client.clone(), reference.repository().clone());
        let image = Image {
            id: &request.id,
            bootstrap: &request.bootstrap,
            mountpoint: &request.mountpoint,
            backend: Arc::new(backend),
        };
        let result = self.engine.mount(&image);
        let mounted = result.map_err(|source| TableError::Mount { id: request.id.clone(), source });
        let result = mounted.map(|mounted| *slot = Some(Slot { request: request.clone(), mounted }));
        drop(slot);
        self.forget_if_empty(&request.id, &shared);
        result
    }

    /// Unmounts; what is in use for longer than `patience` is detached. An unknown id is no error.
    ///
    /// # Errors
    ///
    /// [`TableError::Mount`]; the mount stays in the table.
    pub fn unmount(&self, id: &str, patience: Duration) -> Result<(), TableError> {
        let Some(shared) = self.lock_slots().get(id).cloned() else { return Ok(()) };
        let mut slot = lock(&shared);
        if let Some(Slot { mounted, .. }) = slot.as_ref() {
            let ended = mounted
                .unmount(patience)
                .map_err(|source| TableError::Mount { id: id.to_owned(), source })?;
            if ended {
                tracing::info!(image = id, "unmounted");
            } else {
                tracing::warn!(image = id, "detached: in use, it ends with its last user");
            }
        }
        *slot = None;
        drop(slot);
        self.forget_if_empty(id, &shared);
        Ok(())
    }

    /// Unmounts all that are not in use; the ids of the others.
    pub fn unmount_unused(&self, patience: Duration) -> Vec<String> {
        let mut in_use = Vec::new();
        for id in self.ids() {
            let Some(shared) = self.lock_slots().get(&id).cloned() else { continue };
            let unused = match lock(&shared).as_ref() {
                Some(slot) => slot.mounted.try_unmount(),
                None => continue,
            };
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

    /// Unmounts everything, at once where it is in use.
    pub fn detach_all(&self) {
        for id in self.ids() {
            if let Err(error) = self.unmount(&id, Duration::ZERO) {
                tracing::warn!(image = id, %error, "cannot unmount");
            }
        }
    }

    /// What is mounted. Mounts that are just coming or going are left out.
    pub fn status(&self) -> Vec<MountStatus> {
        let slots: Vec<SharedSlot> = self.lock_slots().values().cloned().collect();
        let known = slots.iter().filter_map(|shared| {
            let slot = shared.try_lock().ok()?;
            let Slot { request, mounted } = slot.as_ref()?;
            Some(MountStatus {
                id: request.id.clone(),
                bootstrap: request.bootstrap.clone(),
                mountpoint: request.mountpoint.clone(),
                image: request.image.clone(),
                blobs: mounted.blobs().to_vec(),
            })
        });
        known.collect()
    }

    fn ids(&self) -> Vec<String> {
        self.lock_slots().keys().cloned().collect()
    }

    fn slot(&self, id: &str) -> SharedSlot {
        self.lock_slots().entry(id.to_owned()).or_default().clone()
    }

    /// Removes an empty slot unless somebody is about to fill it.
    fn forget_if_empty(&self, id: &str, shared: &SharedSlot) {
        let mut slots = self.lock_slots();
        // One is in the table, one is the caller's.
        if Arc::strong_count(shared) == 2 && shared.try_lock().is_ok_and(|slot| slot.is_none()) {
            slots.remove(id);
        }
    }

    fn lock_slots(&self) -> MutexGuard<'_, BTreeMap<String, SharedSlot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(slot: &SharedSlot) -> MutexGuard<'_, Option<Slot>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_id(id: &str) -> Result<(), TableError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=ID_LENGTH_MAX).contains(&id.len()) && id.bytes().all(good) {
        return Ok(());
    }
    Err(TableError::Id(id.to_owned()))
}
