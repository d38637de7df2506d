//! Every change of the cache's files, and every read of chunks. What is written here reaches the disk whenever the kernel likes,
//! so of each change somebody says what holds if it fails; in tests, any can be made to.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Opens a file, which is made if it is missing.
pub(super) fn open_or_create(path: &Path) -> io::Result<File> {
    permit()?;
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes a file longer or shorter.
pub(super) fn set_len(file: &File, length: u64) -> io::Result<()> {
    permit()?;
    file.set_len(length)
}

/// Writes all bytes at an offset; if it fails, any part of them may be there.
pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let permit = permit();
    let part = if permit.is_ok() { bytes.len() } else { part_done(bytes) };
    file.write_all_at(&bytes[..part], offset)?;
    permit
}

/// Reads all bytes at an offset; if it fails, any part of them may be there.
pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    permit_read()?;
    file.read_exact_at(bytes, offset)
}

/// Deletes a file; whether it was there.
pub(super) fn remove(path: &Path) -> io::Result<bool> {
    permit()?;
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until all of a file is on the disk.
pub(super) fn sync(file: &File) -> io::Result<()> {
    permit()?;
    file.sync_all()
}

/// What a file is called until it is whole and takes the place of the one before.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Writes a file and puts it, whole, in the place of the one before. It is returned for who wants it synchronised.
pub(super) fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<File> {
    let new = unfinished(path);
    permit()?;
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let mut file = BufWriter::new(file);
    write(&mut file)?;
    permit()?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    permit()?;
    std::fs::rename(new, path)?;
    Ok(file)
}

#[cfg(not(test))]
const fn permit() -> io::Result<()> {
    Ok(())
}

#[cfg(not(test))]
const fn permit_read() -> io::Result<()> {
    Ok(())
}

#[cfg(not(test))]
const fn part_done(_bytes: &[u8]) -> usize {
    0
}

#[cfg(test)]
use faults::{part_done, permit, permit_read};

/// Changes and reads that fail, of the thread that asks for it.
#[cfg(test)]
pub(crate) mod faults {
    use std::cell::Cell;
    use std::io;
    use std::thread::LocalKey;

    /// Which change or read fails, and how.
    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct Fault {
        /// How many work before it.
        pub(crate) after: u64,
        /// All behind it fail too.
        pub(crate) for_good: bool,
        /// A write that fails has written half of its bytes.
        pub(crate) torn: bool,
        /// The number of the error.
        pub(crate) errno: i32,
    }

    thread_local! {
        static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
        static READ_FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
        static TORN: Cell<bool> = const { Cell::new(false) };
        static FAILED: Cell<bool> = const { Cell::new(false) };
    }

    /// From now on changes fail as is said, or no longer; whether one has failed before.
    pub(crate) fn plan(fault: Option<Fault>) -> bool {
        FAULT.set(fault);
        FAILED.take()
    }

    /// From now on reads of chunks fail as is said, or no longer.
    pub(crate) fn plan_reads(fault: Option<Fault>) {
        READ_FAULT.set(fault);
    }

    pub(super) fn permit() -> io::Result<()> {
        let Some(fault) = due(&FAULT) else { return Ok(()) };
        TORN.set(fault.torn);
        FAILED.set(true);
        Err(io::Error::from_raw_os_error(fault.errno))
    }

    pub(super) fn permit_read() -> io::Result<()> {
        due(&READ_FAULT).map_or(Ok(()), |fault| Err(io::Error::from_raw_os_error(fault.errno)))
    }

    /// What was planned, if this is what it is for.
    fn due(planned: &'static LocalKey<Cell<Option<Fault>>>) -> Option<Fault> {
        let fault = planned.get()?;
        if fault.after > 0 {
            planned.set(Some(Fault { after: fault.after - 1, ..fault }));
            return None;
        }
        if !fault.for_good {
            planned.set(None);
        }
        Some(fault)
    }

    pub(super) fn part_done(bytes: &[u8]) -> usize {
        if TORN.get() { bytes.len() / 2 } else { 0 }
    }
}
