//! The tar, whose every byte has its place before the first is written.
//!
//! It grows under another name, `.NAME.PLAN.partial`, where `PLAN` is a digest of what is to be where. A blob's header is written
//! when its content is on the disk: an interrupted package goes on with the blobs that have one.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use image::source::Source;
use registry::Digest;
use registry::client::Descriptor;
use registry::layout::Paths;

use super::contents::Gathered;
use super::{REGISTRY, failed, folder};
use crate::package::PackageError;
use crate::save::{LayoutError, SaveError};

/// The unit of a tar.
const BLOCK_BYTES: u64 = 512;
/// What is written of a blob at once.
const PIECE_BYTES: usize = 1 << 20;
/// How many digits of the plan's digest are in the name.
const PLAN_DIGITS: usize = 16;

/// A tar on its way.
pub(super) struct TarFile {
    target: PathBuf,
    partial: PathBuf,
    /// Locked, until it is closed.
    file: Arc<File>,
    /// Small files, which are written last.
    files: Vec<(MemberPlace, Bytes)>,
    blobs: HashMap<Digest, MemberPlace>,
    /// Where the tar ends.
    size: u64,
}

/// Where a member is.
#[derive(Clone, Debug)]
struct MemberPlace {
    header: Vec<u8>,
    /// Of the header.
    offset: u64,
}

impl MemberPlace {
    fn content(&self) -> u64 {
        self.offset + self.header.len() as u64
    }
}

impl TarFile {
    /// Begins the tar `target`, or goes on with it: `head`, then what was gathered.
    pub(super) fn open(
        target: &Path,
        head: &[(String, Bytes)],
        gathered: &Gathered,
    ) -> Result<Self, PackageError> {
        let mut layout = Places::default();
        let mut files = Vec::new();
        let small = head.iter().map(|(name, content)| (name, content)).chain(&gathered.files);
        for (name, content) in small {
            let place =
                layout.place(name, content.len() as u64, Some(content)).map_err(failed("name", target))?;
            files.push((place, content.clone()));
        }
        let paths = Paths::new(Path::new(REGISTRY));
        let mut blobs = HashMap::new();
        for blob in gathered.blobs.values() {
            let name = paths.data(blob.descriptor.digest()).display().to_string();
            // A document may be a blob as well.
            if gathered.files.contains_key(&name) {
                continue;
            }
            let place = layout.place(&name, blob.descriptor.size(), None).map_err(failed("name", target))?;
            blobs.insert(blob.descriptor.digest().clone(), place);
        }
        // Two blocks of zeros are the end.
        let size = layout.end + 2 * BLOCK_BYTES;
        let plan = layout.plan.finish();
        let (partial, file) = partial(target, &plan.digest()[..PLAN_DIGITS])?;
        Ok(Self { target: target.to_owned(), partial, file: Arc::new(file), files, blobs, size })
    }

    /// Whether the blob is at its place.
    pub(super) fn has(&self, digest: &Digest) -> Result<bool, SaveError> {
        let Some(place) = self.blobs.get(digest) else { return Ok(true) };
        let mut found = vec![0; place.header.len()];
        match self.file.read_exact_at(&mut found, place.offset) {
            Ok(()) => Ok(found == place.header),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Writes the blob to its place; returns its bytes.
    pub(super) async fn bring(&self, source: &Source, blob: &Descriptor) -> Result<u64, SaveError> {
        let Some(place) = self.blobs.get(blob.digest()).cloned() else { return Ok(0) };
        // Ends with an error if the content does not have the digest, or is longer than it should be.
        let mut stream = source.blob(blob).await?;
        let (mut buffer, mut bytes) = (BytesMut::with_capacity(PIECE_BYTES), 0);
        while let Some(piece) = stream.next().await? {
            buffer.extend_from_slice(&piece);
            if buffer.len() >= PIECE_BYTES {
                bytes += self.put(place.content() + bytes, buffer.split().freeze()).await?;
            }
        }
        bytes += self.put(place.content() + bytes, buffer.freeze()).await?;
        let (file, MemberPlace { header, offset }) = (Arc::clone(&self.file), place);
        let named = move || {
            // The header says that all of it is there: also after a loss of power.
            file.sync_data()?;
            file.write_all_at(&header, offset)
        };
        blocking(named).await.map_err(|error| self.failed(error))?;
        Ok(bytes)
    }

    async fn put(&self, offset: u64, piece: Bytes) -> Result<u64, SaveError> {
        let file = Arc::clone(&self.file);
        let written = blocking(move || {
            file.write_all_at(&piece, offset)?;
            Ok(piece.len() as u64)
        });
        written.await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> SaveError {
        LayoutError::Io { path: self.partial.clone(), error }.into()
    }

    /// Writes the small files and gives the tar its name.
    pub(super) async fn finish(self) -> Result<(), PackageError> {
        let (partial, target) = (self.partial.clone(), self.target.clone());
        let finished = blocking(move || {
            for (place, content) in &self.files {
                self.file.write_all_at(&place.header, place.offset)?;
                self.file.write_all_at(content, place.content())?;
            }
            self.file.set_len(self.size)?;
            self.file.sync_all()?;
            fs::rename(&self.partial, &self.target)?;
            File::open(folder(&self.target))?.sync_all()
        });
        finished.await.map_err(|error| {
            let path = if partial.exists() { partial } else { target };
            PackageError::Io { doing: "write", path, error }
        })
    }
}

/// Gives members their places, one after the other.
struct Places {
    end: u64,
    plan: registry::digest::Hasher,
}

impl Default for Places {
    fn default() -> Self {
        Self { end: 0, plan: registry::digest::Hasher::sha256() }
    }
}

impl Places {
    /// The place of the next member. The plan is of headers and small contents: those of blobs are in their names.
    fn place(&mut self, name: &str, size: u64, content: Option<&Bytes>) -> io::Result<MemberPlace> {
        let header = header(name, size)?;
        self.plan.update(&header);
        self.plan.update(content.map_or(&[][..], |content| content));
        let place = MemberPlace { offset: self.end, header };
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the package would be too large");
        let padded = size.checked_next_multiple_of(BLOCK_BYTES).ok_or_else(too_large)?;
        self.end =
            place.content().checked_add(padded).filter(|end| *end < i64::MAX as u64).ok_or_else(too_large)?;
        Ok(place)
    }
}

/// The blocks before the content of a member. Times, owners and modes are the same for all.
fn header(name: &str, size: u64) -> io::Result<Vec<u8>> {
    let block = |name: &str, kind: tar::EntryType, size: u64| -> io::Result<Vec<u8>> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        Ok(header.as_bytes().to_vec())
    };
    if let Ok(header) = block(name, tar::EntryType::Regular, size) {
        return Ok(header);
    }
    // Too long for its field: a member before says it, as GNU tar has it.
    let mut long = name.as_bytes().to_vec();
    long.push(0);
    let mut blocks = block("././@LongLink", tar::EntryType::GNULongName, long.len() as u64)?;
    long.resize(long.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    blocks.extend(long);
    blocks.extend(block("long-name", tar::EntryType::Regular, size)?);
    Ok(blocks)
}

/// The file that a tar grows in, locked. Others of the same tar, for other plans, are removed.
fn partial(target: &Path, plan: &str) -> Result<(PathBuf, File), PackageError> {
    let folder = folder(target);
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let named = |plan: &str| format!(".{name}.{plan}.partial");
    let own = named(plan);
    let path = folder.join(&own);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(failed("write", &path))?;
    lock(&file, target)?;
    for entry in fs::read_dir(&folder).map_err(failed("list", &folder))? {
        let entry = entry.map_err(failed("list", &folder))?.file_name().to_string_lossy().into_owned();
        let other = entry.strip_prefix(&format!(".{name}.")).and_then(|rest| rest.strip_suffix(".partial"));
        let is_plan =
            |plan: &str| plan.len() == PLAN_DIGITS && plan.bytes().all(|byte| byte.is_ascii_hexdigit());
        if other.is_some_and(is_plan) && entry != own {
            let other = folder.join(&entry);
            let Ok(file) = File::open(&other) else { continue };
            lock(&file, target)?;
            fs::remove_file(&other).map_err(failed("remove", &other))?;
        }
    }
    Ok((path, file))
}

fn lock(file: &File, target: &Path) -> Result<(), PackageError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => Err(PackageError::Busy(target.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(failed("lock", target)(error)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_length_and_sizes_are_read_back() {
        for (name, size) in [
            ("package.json".to_owned(), 0),
            (format!("registry/{}/link", "a".repeat(90)), 1 << 40),
            (format!("registry/{}/{}/link", "a".repeat(150), "b".repeat(150)), 7),
        ] {
            let bytes = header(&name, size).unwrap();
            let mut archive = tar::Archive::new(&bytes[..]);
            let entry = archive.entries().unwrap().next().unwrap().unwrap();
            assert_eq!((entry.path().unwrap().display().to_string(), entry.size()), (name, size));
        }
    }
}
