//! What snapshots there are, in one transactional file.
//!
//! A record is a snapshot; children are indexed by their parent's id, so that a parent with children is refused without
//! a walk. Every change is one durable transaction. Directories are made before their record and deleted after it, so a
//! crash leaves at worst a directory that nobody names, which clean-up removes; see [`crate::overlay::Directories`].
//!
//! Keys are used as they come. containerd has the namespace inside them (`default/12/name`) and calls its garbage
//! collection without a namespace, so they must not be kept apart by the header of a call.

mod read;
mod record;
mod sets;
mod write;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, TableDefinition};

pub use record::Kind;
pub(crate) use record::{Labels, MountedImage, Record, SnapshotId, Timestamp, Usage};
pub(crate) use sets::{ChainSource, LayerTree, LazyLayer};
pub(crate) use write::{Commit, Creation, LabelUpdate};

use crate::error::Error;

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
/// Single numbers: [`VERSION`], [`NEXT_ID`] and that of the next image set.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");

/// Layout of the tables; a file of another one is refused.
const VERSION: (&str, u64) = ("version", 1);
/// One above the largest id ever given out.
const NEXT_ID: &str = "next id";

/// Bytes that a database begins with.
const MAGIC_BYTES: usize = 9;

/// How long another process may still hold the file …
const PATIENCE: Duration = Duration::from_secs(3);
/// … and how often that is looked at.
const RETRY: Duration = Duration::from_millis(20);

/// What is cached of the file, which has some kilobytes for each image; the library's own limit is a gigabyte.
const CACHE_BYTES: usize = 4 << 20;

/// The snapshots' database. Its methods block on the disk.
pub(crate) struct State {
    database: Database,
}

impl State {
    /// Opens the file, or makes it. Only one process at a time can; one that is ending gets a moment.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        clear_unfinished(path).map_err(Error::io("examine", path))?;
        let late = Instant::now() + PATIENCE;
        let database = loop {
            match Builder::new().set_cache_size(CACHE_BYTES).create(path) {
                Err(DatabaseError::DatabaseAlreadyOpen) if Instant::now() < late => {
                    std::thread::sleep(RETRY);
                }
                database => break database.during("open the file")?,
            }
        };
        Self::of(database)
    }

    fn of(database: Database) -> Result<Self, Error> {
        let state = Self { database };
        state.prepare_tables()?;
        Ok(state)
    }

    /// Makes missing tables, so that readers need not care, and checks the version.
    fn prepare_tables(&self) -> Result<(), Error> {
        let transaction = self.database.begin_write().during("prepare the tables")?;
        transaction.open_table(SNAPSHOTS).during("prepare the tables")?;
        transaction.open_table(CHILDREN).during("prepare the tables")?;
        transaction.open_table(IMAGES).during("prepare the tables")?;
        transaction.open_table(SETS).during("prepare the tables")?;
        transaction.open_table(SET_CHAINS).during("prepare the tables")?;
        transaction.open_table(LAZY_LAYERS).during("prepare the tables")?;
        {
            let mut numbers = transaction.open_table(NUMBERS).during("prepare the tables")?;
            let (name, expected) = VERSION;
            let found = {
                use redb::ReadableTable as _;
                numbers.get(name).during("read the version")?.map(|version| version.value())
            };
            match found {
                None => drop(numbers.insert(name, expected).during("write the version")?),
                Some(version) if version == expected => {}
                Some(version) => {
                    return Err(Error::Record {
                        what: "the database's version".to_owned(),
                        problem: format!("it is {version}, expected {expected}"),
                    });
                }
            }
        }
        transaction.commit().during("prepare the tables")
    }

    fn read(&self) -> Result<redb::ReadTransaction, Error> {
        self.database.begin_read().during("begin to read")
    }
}

/// Empties a file whose first making a power cut ended: the bytes that say what it is are written last, so nothing was ever
/// answered out of it, and the database would be refused for ever.
fn clear_unfinished(path: &Path) -> io::Result<()> {
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    // Locked by whoever has it open, who may be making it.
    let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(()) };
    let mut first = [0; MAGIC_BYTES];
    match file.read_exact_at(&mut first, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => file.set_len(0),
        Ok(()) if first == [0; MAGIC_BYTES] => file.set_len(0),
        result => result,
    }
}

/// Says what was being done when the database failed.
trait During<T> {
    fn during(self, doing: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<redb::Error>> During<T> for Result<T, E> {
    fn during(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::State { doing, source: Box::new(error.into()) })
    }
}
