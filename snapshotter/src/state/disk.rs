//! The file under the database, watched for the moment at which the disk says no.
//!
//! After a single error the library refuses everything that comes, for what it holds in memory need not be what is on the disk
//! any longer. Opened again, it finds what was committed: so that a disk that was full for a while costs no more than the
//! calls of that while, [`State`](super::State) opens the file again when it has failed.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};

/// What is cached of the file, which has some kilobytes for each image; the library's own limit is a gigabyte.
const CACHE_BYTES: usize = 4 << 20;

/// Opens the database, or makes it; with what is told when its file fails.
pub(super) type Opener = Box<dyn Fn(Failed) -> Result<Database, DatabaseError> + Send + Sync>;

/// Opens a file of the node. A new one is made under another name first: what a disk that says no leaves of it is no
/// database, and would be in the way for ever.
pub(super) fn opener(path: &Path) -> Opener {
    let (path, new) = (path.to_owned(), path.with_extension("new"));
    Box::new(move |failed| {
        let mut options = File::options();
        options.read(true).write(true);
        if !path.exists() {
            let file = options.clone().create(true).truncate(true).open(&new)?;
            drop(database(FileBackend::new(file)?, Failed::default())?);
            std::fs::rename(&new, &path)?;
            File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        }
        database(FileBackend::new(options.open(&path)?)?, failed)
    })
}

/// The database on a file of any kind.
pub(super) fn database(file: impl StorageBackend, failed: Failed) -> Result<Database, DatabaseError> {
    Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(Watched { file, failed })
}

/// Whether a file has failed since it was opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Failed(Arc<AtomicBool>);

impl Failed {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Passes everything on, and notes what fails.
#[derive(Debug)]
struct Watched<B> {
    file: B,
    failed: Failed,
}

impl<B> Watched<B> {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|_| self.failed.0.store(true, Ordering::Release))
    }
}

impl<B: StorageBackend> StorageBackend for Watched<B> {
    fn len(&self) -> io::Result<u64> {
        self.note(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.note(self.file.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
