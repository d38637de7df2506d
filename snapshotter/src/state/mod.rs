//! What snapshots there are, in one transactional file.
//!
//! A record is a snapshot; children are indexed by their parent's id, so that a parent with children is refused without
//! a walk. Every change is one durable transaction. Directories are made before their record and deleted after it, so a
//! crash leaves at worst a directory that nobody names, which clean-up removes; see [`crate::overlay::Directories`].
//!
//! Keys are used as they come. containerd has the namespace inside them (`default/12/name`) and calls its garbage
//! collection without a namespace, so they must not be kept apart by the header of a call.

mod disk;
mod node_images;
mod read;
mod record;
mod sets;
mod write;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable as _, TableDefinition,
    TableError, WriteTransaction,
};

pub(crate) use node_images::StoredNodeImage;
pub use record::Kind;
pub(crate) use record::{Labels, MountedImage, Record, SnapshotId, Timestamp, Usage};
pub(crate) use sets::{ChainSource, LayerTree, LazyLayer};
pub(crate) use write::{Commit, Creation, LabelUpdate};

use crate::error::Error;
use disk::{Failed, Opener};

/// Key of a snapshot → its [`Record`] as JSON.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// (id of the parent, id of the child) → key of the child.
const CHILDREN: TableDefinition<'_, (u64, u64), &str> = TableDefinition::new("children");
/// Id of a bootstrap snapshot whose image is or was mounted → [`MountedImage`] as JSON.
const IMAGES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("images");
/// Name of an image set → what it is, without its chains, as JSON.
const SETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("image sets");
/// (chain id, number of a set) → the chain in that set, as JSON.
const SET_CHAINS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("chains of image sets");
/// Id of a snapshot that was taken from an image set → [`LazyLayer`] as JSON.
const LAZY_LAYERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("lazy layers");
/// Name of a node image → [`StoredNodeImage`] as JSON.
const NODE_IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("node images");
/// Single numbers: [`VERSION`], [`NEXT_ID`] and that of the next image set.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// Layout of the tables; a file of another one is refused.
const VERSION: (&str, u64) = ("version", 1);
/// One above the largest id ever given out.
const NEXT_ID: &str = "next id";

/// How long another process may still hold the file …
const PATIENCE: Duration = Duration::from_secs(3);
/// … and how often that is looked at.
const RETRY: Duration = Duration::from_millis(20);

/// The snapshots' database. Its methods block on the disk.
pub(crate) struct State {
    opener: Opener,
    /// `None` since it could not be opened again.
    open: RwLock<Option<OpenDatabase>>,
}

struct OpenDatabase {
    database: Database,
    failed: Failed,
}

impl State {
    /// Opens the file, or makes it. Only one process at a time can; one that is ending gets a moment.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(disk::opener(path))
    }

    fn open_with(opener: Opener) -> Result<Self, Error> {
        let open = RwLock::new(Some(OpenDatabase::new(&opener)?));
        Ok(Self { opener, open })
    }

    fn read(&self) -> Result<ReadTransaction, Error> {
        self.begin(|database| database.begin_read().during("begin to read"))
    }

    fn write(&self, doing: &'static str) -> Result<WriteTransaction, Error> {
        self.begin(|database| database.begin_write().during(doing))
    }

    /// Begins something with the database, which is opened again if the disk has failed it.
    fn begin<T>(&self, begin: impl Fn(&Database) -> Result<T, Error>) -> Result<T, Error> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = open.as_ref().filter(|open| !open.failed.is_set()) {
            return begin(&open.database);
        }
        drop(open);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let open = match open.take() {
            // Somebody else has opened it meanwhile.
            Some(again) if !again.failed.is_set() => open.insert(again),
            failed => {
                // Closed first, for it has the file locked.
                drop(failed);
                let again = OpenDatabase::new(&self.opener)?;
                tracing::warn!("opened the snapshots' database again, after an error of its disk");
                open.insert(again)
            }
        };
        begin(&open.database)
    }
}

impl OpenDatabase {
    fn new(opener: &Opener) -> Result<Self, Error> {
        let late = Instant::now() + PATIENCE;
        loop {
            let failed = Failed::default();
            match opener(failed.clone()) {
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < late => {
                    std::thread::sleep(RETRY);
                }
                database => {
                    let open = Self { database: database.during("open the file")?, failed };
                    open.prepare_tables()?;
                    return Ok(open);
                }
            }
        }
    }

    /// Makes missing tables, so that readers need not care, and checks the version. Where nothing is missing nothing is
    /// written: on a disk that is full, what there is can still be read.
    fn prepare_tables(&self) -> Result<(), Error> {
        let (name, expected) = VERSION;
        if !self.has_tables()? {
            let transaction = self.database.begin_write().during("prepare the tables")?;
            transaction.open_table(SNAPSHOTS).during("prepare the tables")?;
            transaction.open_table(CHILDREN).during("prepare the tables")?;
            transaction.open_table(IMAGES).during("prepare the tables")?;
            transaction.open_table(SETS).during("prepare the tables")?;
            transaction.open_table(SET_CHAINS).during("prepare the tables")?;
            transaction.open_table(LAZY_LAYERS).during("prepare the tables")?;
            transaction.open_table(NODE_IMAGES).during("prepare the tables")?;
            {
                let mut numbers = transaction.open_table(NUMBERS).during("prepare the tables")?;
                if numbers.get(name).during("read the version")?.is_none() {
                    numbers.insert(name, expected).during("write the version")?;
                }
            }
            transaction.commit().during("prepare the tables")?;
        }
        let transaction = self.database.begin_read().during("begin to read")?;
        let numbers = transaction.open_table(NUMBERS).during("read the version")?;
        let found = numbers.get(name).during("read the version")?.map_or(0, |version| version.value());
        if found == expected {
            return Ok(());
        }
        Err(Error::Record {
            what: "the database's version".to_owned(),
            problem: format!("it is {found}, expected {expected}"),
        })
    }

    fn has_tables(&self) -> Result<bool, Error> {
        let transaction = self.database.begin_read().during("begin to read")?;
        let tables = [
            transaction.open_table(SNAPSHOTS).map(drop),
            transaction.open_table(CHILDREN).map(drop),
            transaction.open_table(IMAGES).map(drop),
            transaction.open_table(SETS).map(drop),
            transaction.open_table(SET_CHAINS).map(drop),
            transaction.open_table(LAZY_LAYERS).map(drop),
            transaction.open_table(NODE_IMAGES).map(drop),
            transaction.open_table(NUMBERS).map(drop),
        ];
        for table in tables {
            match table {
                Err(TableError::TableDoesNotExist(_)) => return Ok(false),
                table => table.during("look for the tables")?,
            }
        }
        Ok(true)
    }
}

/// Says what was being done when the database failed.
trait FailedAction<T> {
    fn during(self, doing: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<redb::Error>> FailedAction<T> for Result<T, E> {
    fn during(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::State { doing, source: Box::new(error.into()) })
    }
}
