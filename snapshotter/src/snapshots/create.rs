//! New snapshots.

use std::sync::Arc;

use registry::nydus::LABEL_SNAPSHOT_REF;
use tracing::{info, warn};

use super::{Snapshotter, beneath_of, check_labels};
use crate::containerd::Caller;
use crate::error::Error;
use crate::nydus::{Beneath, Layer};
use crate::overlay::{Mount, RootAttributes};
use crate::state::{Creation, Kind, Labels, Record};
use crate::tasks::blocking;

impl Snapshotter {
    /// Makes a snapshot to be written: a layer to unpack or a container's root. A nydus data layer is not made but said
    /// to be there, by [`Error::LayerInPlace`].
    pub(crate) async fn prepare(
        &self,
        caller: &Caller,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        match labels.get(LABEL_SNAPSHOT_REF).cloned() {
            Some(target) if Layer::of(&labels) == Layer::Blob => {
                check_labels(&labels)?;
                self.adopt(&target, parent, labels).await?;
                Err(Error::LayerInPlace { target })
            }
            _ => self.create(caller, Kind::Active, key, parent, labels).await,
        }
    }

    /// Makes a read-only look at a snapshot.
    pub(crate) async fn view(
        &self,
        caller: &Caller,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        self.create(caller, Kind::View, key, parent, labels).await
    }

    /// Records a data layer as committed, without files, under the name that containerd will look for: any with the label
    /// [`LABEL_SNAPSHOT_REF`] and that parent. Namespaces share it.
    async fn adopt(&self, target: &str, parent: Option<String>, labels: Labels) -> Result<(), Error> {
        // The same layer on another parent is another snapshot.
        let elsewhere = format!("{target}@{}", parent.as_deref().unwrap_or_default());
        for name in [target.to_owned(), elsewhere] {
            let creation = Creation {
                id: self.new_id(),
                kind: Kind::Committed,
                key: name.clone(),
                parent: parent.clone(),
                labels: labels.clone(),
            };
            let found = self.on_state(move |state| match state.create(creation) {
                Ok(record) => Ok(Some(record)),
                Err(Error::AlreadyExists { key }) => state.find(&key),
                Err(error) => Err(error),
            });
            let ours = |record: Record| record.kind == Kind::Committed && record.parent == parent;
            if found.await?.is_some_and(ours) {
                info!(layer = target, "layer is read on demand");
                return Ok(());
            }
        }
        Err(Error::AlreadyExists { key: target.to_owned() })
    }

    async fn create(
        &self,
        caller: &Caller,
        kind: Kind,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        check_key(&key)?;
        check_labels(&labels)?;
        let parents = {
            let (key, parent) = (key.clone(), parent.clone());
            self.on_state(move |state| state.parents_for(&key, parent.as_deref())).await?
        };
        let beneath = beneath_of(&key, &labels, parents)?;
        let attributes = self.attributes(caller, &beneath).await?.mapped(&labels)?;
        let record = self
            .create_on_disk(Creation { id: self.new_id(), kind, key, parent, labels }, attributes)
            .await?;
        Ok(self.mounts_of(&record, &beneath))
    }

    /// Mounts the image beneath, if any, and says what the new snapshot's root has to look like.
    async fn attributes(&self, caller: &Caller, beneath: &Beneath) -> Result<RootAttributes, Error> {
        let image = self.ensure_image(caller, beneath).await?;
        match (beneath.plain.first(), image) {
            (Some(&nearest), _) => {
                let nearest = self.directories.upper(nearest);
                blocking(move || RootAttributes::owner_of(&nearest)).await
            }
            (None, Some(image)) => self.images.root_attributes(&image).await,
            (None, None) => Ok(RootAttributes::default()),
        }
    }

    /// Directories first, then the record: a crash in between leaves directories without a record, which clean-up
    /// removes, and never a record without directories.
    async fn create_on_disk(&self, creation: Creation, attributes: RootAttributes) -> Result<Record, Error> {
        let (state, directories) = (Arc::clone(&self.state), self.directories.clone());
        let guard = self.pending.protect(creation.id);
        // In one piece, so that a caller that goes away leaves nothing half-made.
        blocking(move || {
            let _guard = guard;
            let id = creation.id;
            let made =
                directories.create(id, creation.kind, &attributes).and_then(|()| state.create(creation));
            if made.is_err()
                && let Err(error) = directories.remove(id)
            {
                warn!(snapshot = %id, %error, "cannot delete a snapshot that was not made");
            }
            made
        })
        .await
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        let problem = "empty, expected a name".to_owned();
        return Err(Error::Invalid { what: "key of a snapshot".to_owned(), problem });
    }
    Ok(())
}
