//! Questions to the database.

use std::collections::BTreeSet;

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata as _};

use super::{FailedAction, IMAGES, MountedImage, NEXT_ID, NUMBERS, Record, SNAPSHOTS, SnapshotId, State};
use crate::error::Error;

impl State {
    /// The record of a snapshot.
    pub(crate) fn get(&self, key: &str) -> Result<Record, Error> {
        find(&self.read()?, key)?.ok_or_else(|| Error::NotFound { key: key.to_owned() })
    }

    /// The record of a snapshot, if there is one.
    pub(crate) fn find(&self, key: &str) -> Result<Option<Record>, Error> {
        find(&self.read()?, key)
    }

    /// A snapshot with its parents, nearest first.
    pub(crate) fn get_with_parents(&self, key: &str) -> Result<(Record, Vec<(String, Record)>), Error> {
        let transaction = self.read()?;
        let record = find(&transaction, key)?.ok_or_else(|| Error::NotFound { key: key.to_owned() })?;
        let parents = parents(&transaction, key, record.parent.as_deref())?;
        Ok((record, parents))
    }

    /// The parents that a snapshot `key` on `parent` will have, nearest first. Fails as its creation would.
    pub(crate) fn parents_for(
        &self,
        key: &str,
        parent: Option<&str>,
    ) -> Result<Vec<(String, Record)>, Error> {
        let transaction = self.read()?;
        if find(&transaction, key)?.is_some() {
            return Err(Error::AlreadyExists { key: key.to_owned() });
        }
        let parents = parents(&transaction, key, parent)?;
        if let Some((parent, record)) = parents.first() {
            super::write::check_parent(key, parent, record)?;
        }
        Ok(parents)
    }

    /// What lies beneath a snapshot `key` on `parent`, nearest first.
    pub(crate) fn parents(&self, key: &str, parent: Option<&str>) -> Result<Vec<(String, Record)>, Error> {
        parents(&self.read()?, key, parent)
    }

    /// Calls `visit` with every snapshot, all as of one moment, until it returns false.
    pub(crate) fn walk(
        &self,
        mut visit: impl FnMut(String, Record) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let transaction = self.read()?;
        let table = transaction.open_table(SNAPSHOTS).during("read the snapshots")?;
        for entry in table.iter().during("read the snapshots")? {
            let (key, value) = entry.during("read the snapshots")?;
            let record = Record::decode(key.value(), value.value())?;
            if !visit(key.value().to_owned(), record)? {
                break;
            }
        }
        Ok(())
    }

    /// How many snapshots there are.
    pub(crate) fn count(&self) -> Result<u64, Error> {
        let table = self.read()?.open_table(SNAPSHOTS).during("count the snapshots")?;
        table.len().during("count the snapshots")
    }

    /// The ids of all snapshots and node images.
    pub(crate) fn ids(&self) -> Result<BTreeSet<SnapshotId>, Error> {
        let mut ids: BTreeSet<_> = self.node_images()?.into_iter().map(|stored| stored.id).collect();
        self.walk(|_, record| {
            ids.insert(record.id);
            Ok(true)
        })?;
        Ok(ids)
    }

    /// One above the largest id in use so far.
    pub(crate) fn next_id(&self) -> Result<SnapshotId, Error> {
        let transaction = self.read()?;
        let numbers = transaction.open_table(NUMBERS).during("read the next id")?;
        let next = numbers.get(NEXT_ID).during("read the next id")?.map_or(1, |next| next.value());
        Ok(SnapshotId(next))
    }

    /// The images that are or were mounted and not yet cleaned up.
    pub(crate) fn images(&self) -> Result<Vec<(SnapshotId, MountedImage)>, Error> {
        let transaction = self.read()?;
        let table = transaction.open_table(IMAGES).during("read the images")?;
        let mut images = Vec::new();
        for entry in table.iter().during("read the images")? {
            let (id, value) = entry.during("read the images")?;
            let image = serde_json::from_slice(value.value()).map_err(|error| Error::Record {
                what: format!("mounted image {}", id.value()),
                problem: error.to_string(),
            })?;
            images.push((SnapshotId(id.value()), image));
        }
        Ok(images)
    }
}

fn find(transaction: &ReadTransaction, key: &str) -> Result<Option<Record>, Error> {
    let table = transaction.open_table(SNAPSHOTS).during("read a snapshot")?;
    lookup(&table, key)
}

/// Looks a snapshot up in an open table.
pub(super) fn lookup(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Record>, Error> {
    let found = table.get(key).during("read a snapshot")?;
    found.map(|value| Record::decode(key, value.value())).transpose()
}

fn parents(
    transaction: &ReadTransaction,
    key: &str,
    parent: Option<&str>,
) -> Result<Vec<(String, Record)>, Error> {
    let table = transaction.open_table(SNAPSHOTS).during("read the parents of a snapshot")?;
    let mut chain = Vec::new();
    let mut next = parent.map(ToOwned::to_owned);
    // A parent exists before its child, so a chain cannot have a cycle.
    while let Some(parent) = next {
        let Some(record) = lookup(&table, &parent)? else {
            return Err(Error::ParentNotFound { key: key.to_owned(), parent });
        };
        next = record.parent.clone();
        chain.push((parent, record));
    }
    Ok(chain)
}
