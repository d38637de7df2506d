//! The files of a blob: their names, what they take, and how they go.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::{Whence, lseek};

use super::blob::Variant;
use super::{CacheError, answers, chunk_info, disk, places};
use crate::control::BlobId;

/// Unit of `st_blocks`, whatever the file system's own block size.
const STAT_BLOCK_BYTES: u64 = 512;

/// The data file of a blob, its chunk map, and what is known of its chunks.
pub(super) fn paths(dir: &Path, id: BlobId, variant: Variant) -> [PathBuf; 3] {
    let name = match variant {
        Variant(0) => id.0.to_string(),
        Variant(number) => format!("{}.{number}", id.0),
    };
    ["blob.data", "chunk_map", "places"].map(|what| dir.join(format!("{name}.{what}")))
}

/// The blob and variant that a file of the cache belongs to.
pub(super) fn owner(file_name: &str) -> Option<(BlobId, Variant)> {
    let (id, what) = file_name.split_once('.')?;
    let number = what.split('.').next().and_then(|number| number.parse().ok());
    Some((id.parse().ok()?, Variant(number.unwrap_or(0))))
}

/// Deletes a blob's files; whether there were any.
pub(super) fn delete(dir: &Path, id: BlobId, variant: Variant) -> Result<bool, CacheError> {
    let [data, map, places] = paths(dir, id, variant);
    // The map first: data without a map is garbage, a map without data would be a lie.
    let had_map = remove(&map)?;
    let had_places = places.exists();
    places::remove(&places).map_err(CacheError::io("delete", &places))?;
    let mut had_info = false;
    if variant == Variant(0) {
        answers::delete(dir, id)?;
        had_info = chunk_info::delete(dir, id)?;
    }
    let had_data = remove(&data)?;
    Ok(had_map || had_places || had_info || had_data)
}

/// Bytes on disk that a blob's files take.
pub(super) fn usage(dir: &Path, id: BlobId, variant: Variant) -> u64 {
    let bytes = |path: PathBuf| std::fs::metadata(path).map_or(0, |metadata| on_disk(&metadata));
    let of_all = || [answers::path(dir, id)].into_iter().chain(chunk_info::paths(dir, id));
    let of_all = (variant == Variant(0)).then(of_all);
    paths(dir, id, variant).into_iter().chain(of_all.into_iter().flatten()).map(bytes).sum()
}

/// When a file was written last, if it is there.
pub(super) fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|file| file.modified()).ok()
}

/// Bytes on disk that a file takes.
pub(super) fn on_disk(file: &Metadata) -> u64 {
    file.blocks().saturating_mul(STAT_BLOCK_BYTES)
}

pub(super) fn remove(path: &Path) -> Result<bool, CacheError> {
    disk::remove(path).map_err(CacheError::io("delete", path))
}

/// The parts of a file up to `length` that take no space, where the file system tells.
pub(super) fn holes(file: &File, length: u64) -> Vec<Range<u64>> {
    let mut holes = Vec::new();
    let mut at = 0;
    while at < length {
        let Ok(start) = i64::try_from(at) else { break };
        let data = match lseek(file, start, Whence::SeekData) {
            Ok(data) => data.unsigned_abs(),
            // No data behind.
            Err(nix::errno::Errno::ENXIO) => length,
            Err(_) => break,
        };
        if data > at {
            holes.push(at..data.min(length));
        }
        let Some(data) = i64::try_from(data).ok().filter(|_| data < length) else { break };
        match lseek(file, data, Whence::SeekHole) {
            Ok(hole) if hole > data => at = hole.unsigned_abs(),
            _ => break,
        }
    }
    holes
}
