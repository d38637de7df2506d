//! New snapshots.

use std::collections::BTreeSet;
use std::sync::Arc;

use registry::nydus::{
    ANNOTATION_BLOB, ANNOTATION_BOOTSTRAP, LABEL_CRI_IMAGE_LAYERS, LABEL_SNAPSHOT_REF, TRUE,
};
use tracing::{info, warn};

use super::{Snapshotter, beneath_of, check_labels};
use crate::containerd::Caller;
use crate::error::Error;
use crate::nydus::{self, Beneath, Fetched, InUse, Layer};
use crate::overlay::{self, Mount, RootAttributes};
use crate::state::{Creation, Kind, Labels, LazyLayer, Record, State};
use crate::tasks::blocking;

impl Snapshotter {
    /// Makes a snapshot to be written: a layer to unpack or a container's root. A nydus data layer, and a layer that an image set
    /// has, is not made but said to be there, by [`Error::LayerInPlace`].
    pub(crate) async fn prepare(
        &self,
        caller: &Caller,
        key: String,
        parent: Option<String>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        let target = labels.get(LABEL_SNAPSHOT_REF).cloned();
        if let Some(target) = &target
            && Layer::of(&labels) == Layer::Plain
        {
            let chain = target.clone();
            if let Some(layer) = self.on_state(move |state| state.lazy_chain(&chain)).await? {
                return Err(self.adopt_lazy(target, parent, labels, layer).await?);
            }
        }
        match target {
            Some(target) if Layer::of(&labels) == Layer::Blob => {
                check_labels(&labels)?;
                self.access.ask(&labels);
                self.adopt(&target, parent, labels, None).await?;
                Err(Error::LayerInPlace { target })
            }
            Some(_) if Layer::of(&labels) == Layer::Bootstrap => {
                self.access.check(&labels, self.blobs_beneath(&key, parent.clone()).await?).await?;
                self.create(caller, Kind::Active, key, parent, labels).await
            }
            Some(target) if Layer::of(&labels) == Layer::Plain && self.beside_plain.is_some() => {
                self.prepare_plain(caller, &target, key, parent, labels).await
            }
            _ => self.create(caller, Kind::Active, key, parent, labels).await,
        }
    }

    /// Records a layer that an image set has as committed: what containerd is told then.
    async fn adopt_lazy(
        &self,
        target: &str,
        parent: Option<String>,
        mut labels: Labels,
        layer: LazyLayer,
    ) -> Result<Error, Error> {
        check_labels(&labels)?;
        // A program from before image sets shows nothing for it, rather than an empty directory.
        labels.insert(ANNOTATION_BLOB.to_owned(), TRUE.to_owned());
        self.adopt(target, parent, labels, Some(layer)).await?;
        Ok(Error::LayerInPlace { target: target.to_owned() })
    }

    /// The blobs of the data layers that a bootstrap `key` on `parent` describes, as far as their labels name them.
    async fn blobs_beneath(&self, key: &str, parent: Option<String>) -> Result<BTreeSet<String>, Error> {
        let key = key.to_owned();
        let parents = self.on_state(move |state| state.parents(&key, parent.as_deref())).await?;
        let blobs = parents.iter().filter(|(_, record)| Layer::of_record(record) == Layer::Blob);
        Ok(blobs.filter_map(|(_, record)| nydus::blob_of(record)).map(ToOwned::to_owned).collect())
    }

    /// Makes a snapshot for a plain layer to be unpacked, unless a nydus image that stands beside its image has all that it
    /// holds.
    async fn prepare_plain(
        &self,
        caller: &Caller,
        target: &str,
        key: String,
        parent: Option<String>,
        mut labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        check_labels(&labels)?;
        let found = match &self.beside_plain {
            Some(beside) => beside.find(caller, &labels).await,
            None => None,
        };
        let Some(fetched) = found else {
            // Without a nydus image above, nothing could show what layers hold that are names alone.
            if let Some(below) = parent.clone() {
                let below = self.stat(below).await?;
                if Layer::of_record(&below) == Layer::Blob {
                    return Err(Error::NoBootstrap { key });
                }
            }
            return self.create(caller, Kind::Active, key, parent, labels).await;
        };
        // The list of this layer and those above; the uppermost one's has but itself.
        let uppermost = labels.get(LABEL_CRI_IMAGE_LAYERS).is_some_and(|layers| !layers.contains(','));
        let kind = if uppermost { ANNOTATION_BOOTSTRAP } else { ANNOTATION_BLOB };
        labels.insert(kind.to_owned(), TRUE.to_owned());
        if uppermost {
            self.adopt_bootstrap(target, parent, labels, fetched).await?;
        } else {
            self.adopt(target, parent, labels, None).await?;
        }
        Err(Error::LayerInPlace { target: target.to_owned() })
    }

    /// Records a layer as committed that has a nydus image's bootstrap in it.
    async fn adopt_bootstrap(
        &self,
        target: &str,
        parent: Option<String>,
        labels: Labels,
        fetched: Arc<Fetched>,
    ) -> Result<(), Error> {
        let name = target.to_owned();
        if let Some(record) = self.on_state(move |state| state.find(&name)).await? {
            let ours = record.kind == Kind::Committed && record.parent == parent;
            return if ours { Ok(()) } else { Err(Error::AlreadyExists { key: target.to_owned() }) };
        }
        let id = self.new_id();
        let key = format!("{target} of snapshot {id}");
        let creation = Creation { id, kind: Kind::Active, key: key.clone(), parent, labels: labels.clone() };
        self.create_on_disk(creation, RootAttributes::default(), None).await?;
        let upper = self.directories.upper(id);
        let placed = blocking(move || {
            fetched.place(&upper).map_err(Error::io("write a bootstrap below", upper.clone()))
        });
        let committed = match placed.await {
            Ok(()) => self.commit(target.to_owned(), key.clone(), None, labels).await,
            Err(error) => Err(error),
        };
        if committed.is_err() {
            self.remove(key).await?;
        } else {
            info!(layer = target, "bootstrap is in the place of a plain layer");
        }
        committed
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
    async fn adopt(
        &self,
        target: &str,
        parent: Option<String>,
        labels: Labels,
        layer: Option<LazyLayer>,
    ) -> Result<(), Error> {
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
            let layer = layer.clone();
            if self.on_state(move |state| create_or_find(state, creation, layer)).await? {
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
        if beneath.image.is_some() {
            overlay::check_kernel(&key, &labels)?;
        }
        let in_use = beneath.image.as_ref().map(|(_, image)| self.images.about_to_use(image.id));
        let attributes = self.attributes(caller, &beneath).await?.mapped(&labels)?;
        let creation = Creation { id: self.new_id(), kind, key, parent, labels };
        let record = self.create_on_disk(creation, attributes, in_use).await?;
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
    async fn create_on_disk(
        &self,
        creation: Creation,
        attributes: RootAttributes,
        in_use: Option<InUse>,
    ) -> Result<Record, Error> {
        let (state, directories) = (Arc::clone(&self.state), self.directories.clone());
        let guard = self.pending.protect(creation.id);
        // In one piece, so that a caller that goes away leaves nothing half-made.
        blocking(move || {
            let _guards = (guard, in_use);
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

/// Records a data layer as committed, unless it is there: whether it is, on that parent. One that is there becomes a layer of the
/// image set that has it now.
fn create_or_find(state: &State, creation: Creation, layer: Option<LazyLayer>) -> Result<bool, Error> {
    let parent = creation.parent.clone();
    let created = match &layer {
        Some(layer) => state.create_lazy(creation, layer),
        None => state.create(creation),
    };
    let key = match created {
        Ok(_) => return Ok(true),
        Err(Error::AlreadyExists { key }) => key,
        Err(error) => return Err(error),
    };
    let found = state.find(&key)?;
    let ours = |record: &Record| record.kind == Kind::Committed && record.parent == parent;
    let Some(record) = found.filter(ours) else { return Ok(false) };
    if let (Some(layer), Layer::Blob) = (&layer, Layer::of_record(&record)) {
        state.make_lazy(&key, layer)?;
    }
    Ok(true)
}

fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        let problem = "empty, expected a name".to_owned();
        return Err(Error::Invalid { what: "key of a snapshot".to_owned(), problem });
    }
    Ok(())
}
