//! Changes of the database, each one durable transaction.

use redb::{ReadableTable, Table};

use super::read::lookup;
use super::sets::insert_lazy_layer;
use super::{
    CHILDREN, FailedAction, IMAGES, Kind, LAZY_LAYERS, Labels, LazyLayer, MountedImage, NEXT_ID, NUMBERS,
    Record, SNAPSHOTS, SnapshotId, State, Timestamp, Usage,
};
use crate::error::Error;

/// A snapshot to be made.
#[derive(Clone, Debug)]
pub(crate) struct Creation {
    pub(crate) id: SnapshotId,
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
}

/// What a snapshot becomes when it is committed.
#[derive(Clone, Debug)]
pub(crate) struct Commit<'c> {
    /// Its name from now on.
    pub(crate) name: &'c str,
    /// Its parent, if it was made without one.
    pub(crate) parent: Option<&'c str>,
    pub(crate) labels: Labels,
    pub(crate) usage: Usage,
}

/// What an update changes: all labels, or some.
#[derive(Clone, Debug)]
pub(crate) enum LabelUpdate {
    /// These are the labels from now on.
    All(Labels),
    /// Set, or remove where there is no value.
    Some(Vec<(String, Option<String>)>),
}

impl State {
    /// Adds a snapshot.
    pub(crate) fn create(&self, creation: Creation) -> Result<Record, Error> {
        self.create_from(creation, None)
    }

    /// Adds a snapshot that was taken from an image set.
    pub(crate) fn create_lazy(&self, creation: Creation, layer: &LazyLayer) -> Result<Record, Error> {
        self.create_from(creation, Some(layer))
    }

    fn create_from(&self, creation: Creation, layer: Option<&LazyLayer>) -> Result<Record, Error> {
        let Creation { id, kind, key, parent, labels } = creation;
        let transaction = self.write("create a snapshot")?;
        let record = {
            let mut snapshots = transaction.open_table(SNAPSHOTS).during("create a snapshot")?;
            let mut children = transaction.open_table(CHILDREN).during("create a snapshot")?;
            let mut numbers = transaction.open_table(NUMBERS).during("create a snapshot")?;
            if lookup(&snapshots, &key)?.is_some() {
                return Err(Error::AlreadyExists { key });
            }
            if let Some(parent) = &parent {
                let record = committed_parent(&snapshots, &key, parent)?;
                children.insert((record.id.0, id.0), key.as_str()).during("create a snapshot")?;
            }
            let now = Timestamp::now();
            let labels = without_empty(labels);
            let (usage, lazy) = (Usage::default(), layer.is_some());
            let record = Record { id, kind, parent, labels, created: now, updated: now, usage, lazy };
            store(&mut snapshots, &key, &record)?;
            if let Some(layer) = layer {
                let mut layers = transaction.open_table(LAZY_LAYERS).during("create a snapshot")?;
                insert_lazy_layer(&mut layers, id, layer)?;
            }
            number_is_taken(&mut numbers, id)?;
            record
        };
        transaction.commit().during("create a snapshot")?;
        Ok(record)
    }

    /// Has a data layer that is there already be one of an image set.
    pub(crate) fn make_lazy(&self, key: &str, layer: &LazyLayer) -> Result<(), Error> {
        let transaction = self.write("store a layer of an image set")?;
        {
            let mut snapshots = transaction.open_table(SNAPSHOTS).during("store a layer of an image set")?;
            let mut layers = transaction.open_table(LAZY_LAYERS).during("store a layer of an image set")?;
            let found = lookup(&snapshots, key)?;
            let record = found.ok_or_else(|| Error::NotFound { key: key.to_owned() })?;
            insert_lazy_layer(&mut layers, record.id, layer)?;
            store(&mut snapshots, key, &Record { lazy: true, ..record })?;
        }
        transaction.commit().during("store a layer of an image set")
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`. Labels are replaced, not inherited. A snapshot
    /// that was made without a parent may get one now.
    pub(crate) fn commit(&self, key: &str, commit: Commit<'_>) -> Result<(), Error> {
        let Commit { name, parent, labels, usage } = commit;
        let transaction = self.write("commit a snapshot")?;
        {
            let mut snapshots = transaction.open_table(SNAPSHOTS).during("commit a snapshot")?;
            let mut children = transaction.open_table(CHILDREN).during("commit a snapshot")?;
            if lookup(&snapshots, name)?.is_some() {
                return Err(Error::AlreadyExists { key: name.to_owned() });
            }
            let active = lookup(&snapshots, key)?.ok_or_else(|| Error::NotFound { key: key.to_owned() })?;
            if active.kind != Kind::Active {
                return Err(Error::WrongKind { key: key.to_owned(), kind: active.kind, expected: "active" });
            }
            let parent = parent_at_commit(key, active.parent.clone(), parent)?;
            let now = Timestamp::now();
            let labels = without_empty(labels);
            let record =
                Record { kind: Kind::Committed, parent, labels, created: now, updated: now, usage, ..active };
            if let Some(parent) = &record.parent {
                let parent = committed_parent(&snapshots, key, parent)?;
                children.insert((parent.id.0, record.id.0), name).during("commit a snapshot")?;
            }
            store(&mut snapshots, name, &record)?;
            snapshots.remove(key).during("commit a snapshot")?;
        }
        transaction.commit().during("commit a snapshot")
    }

    /// Removes a snapshot without children.
    pub(crate) fn remove(&self, key: &str) -> Result<Record, Error> {
        let transaction = self.write("remove a snapshot")?;
        let record = {
            let mut snapshots = transaction.open_table(SNAPSHOTS).during("remove a snapshot")?;
            let mut children = transaction.open_table(CHILDREN).during("remove a snapshot")?;
            let record = lookup(&snapshots, key)?.ok_or_else(|| Error::NotFound { key: key.to_owned() })?;
            if let Some(child) = first_child(&children, record.id)? {
                return Err(Error::HasChildren { key: key.to_owned(), child });
            }
            if let Some(parent) = &record.parent
                && let Some(parent) = lookup(&snapshots, parent)?
            {
                children.remove((parent.id.0, record.id.0)).during("remove a snapshot")?;
            }
            if record.lazy {
                let mut layers = transaction.open_table(LAZY_LAYERS).during("remove a snapshot")?;
                layers.remove(record.id.0).during("remove a snapshot")?;
            }
            snapshots.remove(key).during("remove a snapshot")?;
            record
        };
        transaction.commit().during("remove a snapshot")?;
        Ok(record)
    }

    /// Changes labels.
    pub(crate) fn update(&self, key: &str, update: LabelUpdate) -> Result<Record, Error> {
        let transaction = self.write("update a snapshot")?;
        let record = {
            let mut snapshots = transaction.open_table(SNAPSHOTS).during("update a snapshot")?;
            let mut record =
                lookup(&snapshots, key)?.ok_or_else(|| Error::NotFound { key: key.to_owned() })?;
            match update {
                LabelUpdate::All(labels) => record.labels = labels,
                LabelUpdate::Some(changes) => {
                    for (label, value) in changes {
                        match value {
                            Some(value) => record.labels.insert(label, value),
                            None => record.labels.remove(&label),
                        };
                    }
                }
            }
            record.labels = without_empty(record.labels);
            record.updated = Timestamp::now();
            store(&mut snapshots, key, &record)?;
            record
        };
        transaction.commit().during("update a snapshot")?;
        Ok(record)
    }

    /// Remembers that an image is mounted and what it reads from, until [`Self::forget_image`].
    pub(crate) fn remember_image(&self, id: SnapshotId, image: &MountedImage) -> Result<(), Error> {
        let value = serde_json::to_vec(image).map_err(|error| Error::Record {
            what: format!("mounted image {id}"),
            problem: error.to_string(),
        })?;
        let transaction = self.write("remember an image")?;
        {
            let mut images = transaction.open_table(IMAGES).during("remember an image")?;
            images.insert(id.0, value.as_slice()).during("remember an image")?;
        }
        transaction.commit().during("remember an image")
    }

    /// Forgets images.
    pub(crate) fn forget_images(&self, ids: &[SnapshotId]) -> Result<(), Error> {
        let transaction = self.write("forget images")?;
        {
            let mut images = transaction.open_table(IMAGES).during("forget images")?;
            for id in ids {
                images.remove(id.0).during("forget images")?;
            }
        }
        transaction.commit().during("forget images")
    }
}

/// Has a number never be given out again.
pub(super) fn number_is_taken(
    numbers: &mut Table<'_, &'static str, u64>,
    id: SnapshotId,
) -> Result<(), Error> {
    let next = numbers.get(NEXT_ID).during("read the next id")?.map_or(0, |next| next.value());
    numbers.insert(NEXT_ID, next.max(id.0.saturating_add(1))).during("write the next id")?;
    Ok(())
}

/// Fails unless `record` may be a parent.
pub(super) fn check_parent(key: &str, parent: &str, record: &Record) -> Result<(), Error> {
    match record.kind {
        Kind::Committed => Ok(()),
        kind => Err(Error::ParentNotCommitted { key: key.to_owned(), parent: parent.to_owned(), kind }),
    }
}

/// The parent that a snapshot has from its commit on. One that it was made on stays: its files were made to lie on that.
fn parent_at_commit(
    key: &str,
    made_on: Option<String>,
    given: Option<&str>,
) -> Result<Option<String>, Error> {
    match (made_on, given) {
        (Some(made_on), Some(given)) if made_on != given => {
            Err(Error::ParentChanged { key: key.to_owned(), made_on, given: given.to_owned() })
        }
        (None, Some(given)) => Ok(Some(given.to_owned())),
        (made_on, _) => Ok(made_on),
    }
}

fn committed_parent(
    snapshots: &Table<'_, &'static str, &'static [u8]>,
    key: &str,
    parent: &str,
) -> Result<Record, Error> {
    let record = lookup(snapshots, parent)?
        .ok_or_else(|| Error::ParentNotFound { key: key.to_owned(), parent: parent.to_owned() })?;
    check_parent(key, parent, &record)?;
    Ok(record)
}

fn first_child(
    children: &Table<'_, (u64, u64), &'static str>,
    parent: SnapshotId,
) -> Result<Option<String>, Error> {
    let mut range =
        children.range((parent.0, 0)..=(parent.0, u64::MAX)).during("read the children of a snapshot")?;
    match range.next() {
        None => Ok(None),
        Some(entry) => {
            let (_, key) = entry.during("read the children of a snapshot")?;
            Ok(Some(key.value().to_owned()))
        }
    }
}

fn store(
    snapshots: &mut Table<'_, &'static str, &'static [u8]>,
    key: &str,
    record: &Record,
) -> Result<(), Error> {
    snapshots.insert(key, record.encode(key)?.as_slice()).during("write a snapshot")?;
    Ok(())
}

/// To containerd a label without a value is one to remove.
fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}
