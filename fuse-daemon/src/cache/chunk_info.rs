//! Chunk information that bootstraps lack, kept with the blob that it is of, so that an image which is complete in the cache is
//! mounted with no registry in reach.
//!
//! Only what is kept that the bootstrap vouches for by the digest of the blob's table of contents, and that is verified when it is
//! read as it was when it came. A file is found by that digest, so no image has another one use what it brought: who names the
//! same digest gets the same bytes from anybody. What is the registry's word alone is asked for at each mount.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `NYDCINFO` |
//! | 8 | 32 | table of contents | its digest, SHA-256 |
//! | 40 | 8 | header | size of the chunk-info header in bytes |
//! | 48 | 8 | array | size of the chunk-info array in bytes |
//! | 56 | 8 | tail | size of the blob's last bytes, with the table of contents |
//! | 64 | 8 | digests | size of the chunks' digests in bytes |
//! | 72 | 8 | stream size | of the blob, in bytes |
//! | 80 | – | header, array, tail, digests | one after the other, uncompressed |
//!
//! Numbers are little-endian. A file is replaced as a whole, never changed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use rafs::blob::Blob;
use rafs::blob::meta::BlobMeta;
use rafs::blob::source::{MetaParts, meta_of, parts_limit};
use rafs::digest::Digest;
use rafs::layout::flags;

use super::answers::Remembered;
use super::{BlobId, Cache, CacheError, disk, files};

const MAGIC: &[u8; 8] = b"NYDCINFO";
const HEADER_SIZE: u64 = 80;

/// Tables of contents of one blob whose chunk information is kept: a blob has one, and what images claim takes no more room than
/// this. Beyond, what was written longest ago gives way.
const TABLES_LIMIT: usize = 4;

/// The files of a blob: which is for what is in them.
pub(super) fn paths(dir: &Path, id: BlobId) -> [PathBuf; TABLES_LIMIT] {
    std::array::from_fn(|number| dir.join(format!("{}.chunk_info.{number}", id.0)))
}

/// Deletes a blob's files; whether there were any.
pub(super) fn delete(dir: &Path, id: BlobId) -> Result<bool, CacheError> {
    let mut had_any = false;
    for path in paths(dir, id) {
        for path in [disk::unfinished(&path), path] {
            had_any |= files::remove(&path)?;
        }
    }
    Ok(had_any)
}

impl Cache {
    /// What is kept of the blob's chunk information, if it is what the bootstrap vouches for. A file that is wrong is deleted.
    pub fn kept_chunk_info(&self, blob: &Blob) -> Option<BlobMeta> {
        let (id, table) = key(blob)?;
        let limit = parts_limit(blob);
        let parts = paths(&self.inner.dir, id).iter().find_map(|path| load(path, table, limit))?;
        match meta_of(blob, parts) {
            Ok(meta) => Some(meta),
            // The file is right, the bootstrap is not.
            Err(error) => {
                let error = crate::describe(&error);
                tracing::debug!(blob = %id, error, "kept chunk information is not as a bootstrap says");
                None
            }
        }
    }

    /// Keeps chunk information for as long as the cache has the blob, where the bootstrap vouches for it: see
    /// [`kept_chunk_info`](Self::kept_chunk_info). After a power cut it is there from [`Remembered::sync`] on.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: it cannot be written; it is fetched again then.
    pub fn keep_chunk_info(&self, blob: &Blob, parts: &MetaParts) -> Result<Remembered, CacheError> {
        let Some((id, table)) = key(blob).filter(|(_, table)| parts.are_named_by(*table)) else {
            return Ok(Remembered(None));
        };
        // Two do not write over each other. Reads and mounts do not wait: it may be hundreds of megabytes.
        let _turn = self.inner.chunk_info_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = place(&self.inner.dir, id, table) else { return Ok(Remembered(None)) };
        let written = disk::replace(&path, |file| write(file, table, parts));
        if written.is_err() {
            // What there is of it takes room for nothing.
            let _ = disk::remove(&disk::unfinished(&path));
        }
        // Others give way to it when the mount has a lease: before, this blob might.
        self.inner.count(&self.inner.lock());
        written.map(|file| Remembered(Some((file, path.clone())))).map_err(CacheError::io("write", &path))
    }
}

/// The blob, and the digest of its table of contents where the bootstrap has one.
fn key(blob: &Blob) -> Option<(BlobId, Digest)> {
    let (table, _) = blob.toc.filter(|_| blob.features & flags::blob::HAS_TOC != 0)?;
    Some((BlobId(blob.id?), table))
}

/// The file for this table of contents: the one that is there, a new one, or the one that was written longest ago.
fn place(dir: &Path, id: BlobId, table: Digest) -> Option<PathBuf> {
    let table_of = |path: &Path| File::open(path).and_then(|mut file| read_header(&mut file)).ok();
    let is_other = |path: &Path| table_of(path).is_none_or(|(found, _)| found != table);
    paths(dir, id).into_iter().min_by_key(|path| (is_other(path), files::modified(path)))
}

/// The parts in a file, if they are what this table of contents names.
fn load(path: &Path, table: Digest, limit: u64) -> Option<MetaParts> {
    let error = match read(path, table, limit) {
        Ok(None) => return None,
        Ok(Some(parts)) if parts.are_named_by(table) => return Some(parts),
        Ok(Some(_)) => wrong("it is not what the table of contents names"),
        Err(error) => error,
    };
    tracing::warn!(path = %path.display(), %error, "kept chunk information is not used: it is fetched again");
    // What cannot be read now, for lack of descriptors or by a disk that fails, may be right.
    let is_wrong = matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof);
    if is_wrong && let Err(error) = disk::remove(path) {
        tracing::warn!(path = %path.display(), %error, "cannot delete it");
    }
    None
}

/// The parts in a file, not verified; `None` if it is not there, for another table of contents, or larger than it can be.
fn read(path: &Path, table: Digest, limit: u64) -> io::Result<Option<MetaParts>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let (found, [header, array, tail, digests, stream_size]) = read_header(&mut file)?;
    if found != table {
        return Ok(None);
    }
    let sizes = [header, array, tail, digests];
    let sum = sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size));
    let there = file.metadata()?.len().saturating_sub(HEADER_SIZE);
    if sum != Some(there) {
        return Err(wrong("it is shorter or longer than it says"));
    }
    if there > limit {
        return Ok(None);
    }
    let mut take = |size: u64| {
        let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        file.read_exact(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    Ok(Some(MetaParts {
        header: take(header)?,
        array: take(array)?,
        tail: take(tail)?,
        digests: take(digests)?,
        stream_size,
    }))
}

/// The digest of the table of contents, and the numbers behind it.
fn read_header(file: &mut File) -> io::Result<(Digest, [u64; 5])> {
    let (mut magic, mut table) = ([0; 8], [0; 32]);
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(wrong("it is no chunk information"));
    }
    file.read_exact(&mut table)?;
    let mut numbers = [0; 5];
    for number in &mut numbers {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes)?;
        *number = u64::from_le_bytes(bytes);
    }
    Ok((Digest(table), numbers))
}

fn write(file: &mut dyn Write, table: Digest, parts: &MetaParts) -> io::Result<()> {
    let MetaParts { header, array, tail, digests, stream_size } = parts;
    let contents = [header, array, tail, digests];
    file.write_all(MAGIC)?;
    file.write_all(&table.0)?;
    for number in contents.map(|content| content.len() as u64).into_iter().chain([*stream_size]) {
        file.write_all(&number.to_le_bytes())?;
    }
    contents.into_iter().try_for_each(|content| file.write_all(content))
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use rafs::blob::source::{BlobDirectory, read_meta_parts};
    use rafs::build::{BuildOptions, build_layer};
    use test_support::{noise, tar_of};

    use super::super::disk::faults::{Fault, plan};
    use super::super::tests::FIRST_BOOT;
    use super::*;

    /// A blob of one file, as a bootstrap describes it, and its chunk information.
    fn blob(seed: u64) -> (Blob, MetaParts) {
        let (dir, mut stored) = (tempfile::tempdir().unwrap(), Vec::new());
        let tar = tar_of(&[("file", &noise(seed, 300_000))]);
        let layer = build_layer(tar.as_slice(), &mut stored, &BuildOptions::default()).unwrap();
        let blob = Blob { chunks: Vec::new(), ..layer.blobs[0].clone() };
        std::fs::write(dir.path().join(blob.id.unwrap().to_string()), stored).unwrap();
        let parts = read_meta_parts(&BlobDirectory::new(dir.path()), &blob).unwrap();
        (blob, parts)
    }

    fn id(blob: &Blob) -> BlobId {
        BlobId(blob.id.unwrap())
    }

    fn keep(cache: &Cache, blob: &Blob, parts: &MetaParts) {
        cache.keep_chunk_info(blob, parts).unwrap().sync().unwrap();
    }

    #[test]
    fn it_is_kept_with_its_blob_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let (blob, parts) = blob(1);
        assert!(cache.kept_chunk_info(&blob).is_none());
        keep(&cache, &blob, &parts);
        assert_eq!(cache.kept_chunk_info(&blob).unwrap().len(), 1);
        let listed = cache.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert!(listed[0].bytes > 0 && listed[0].last_used > 0, "{:?}", listed[0]);
        assert_eq!(cache.verify(&[]).unwrap().bad, []);
        assert_eq!(cache.prune().unwrap().freed, [id(&blob)]);
        assert!(cache.kept_chunk_info(&blob).is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "its lock alone");
    }

    #[test]
    fn an_image_has_no_other_one_use_what_it_brought() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let ((blob, parts), (other, other_parts)) = (blob(1), self::blob(2));
        // Of the same blob, by its own word: another table of contents.
        let forged = Blob { id: blob.id, ..other.clone() };
        keep(&cache, &forged, &other_parts);
        assert!(cache.kept_chunk_info(&blob).is_none() && cache.kept_chunk_info(&forged).is_some());
        keep(&cache, &blob, &parts);
        assert!(cache.kept_chunk_info(&blob).is_some() && cache.kept_chunk_info(&forged).is_some());

        // What the table of contents does not name, or what nothing vouches for, is not kept.
        cache.remove(&[id(&blob)]).unwrap();
        let mut changed = parts.clone();
        changed.array[0] ^= 1;
        keep(&cache, &blob, &changed);
        keep(&cache, &Blob { toc: None, ..blob.clone() }, &parts);
        keep(&cache, &blob, &other_parts);
        assert_eq!(cache.held().unwrap(), [].into());

        // Who says otherwise of where it lies neither gets it nor has it deleted.
        keep(&cache, &blob, &parts);
        let small = rafs::blob::MetaLocation { uncompressed_size: 0, ..blob.meta.unwrap() };
        let elsewhere = rafs::blob::MetaLocation { offset: 1, ..blob.meta.unwrap() };
        for meta in [small, elsewhere] {
            assert!(cache.kept_chunk_info(&Blob { meta: Some(meta), ..blob.clone() }).is_none());
        }
        assert!(cache.kept_chunk_info(&blob).is_some());
    }

    #[test]
    fn of_many_that_images_claim_the_oldest_give_way() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        let all: Vec<_> = (0..=TABLES_LIMIT as u64).map(blob).collect();
        let named = |blob: &Blob| Blob { id: all[0].0.id, ..blob.clone() };
        for (number, (blob, parts)) in all.iter().enumerate() {
            // Twice: it takes its own place.
            keep(&cache, &named(blob), parts);
            keep(&cache, &named(blob), parts);
            let path = &paths(dir.path(), id(&all[0].0))[number % TABLES_LIMIT];
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        }
        let kept: Vec<_> =
            all.iter().map(|(blob, _)| cache.kept_chunk_info(&named(blob)).is_some()).collect();
        assert_eq!(kept, [false, true, true, true, true]);
    }

    #[test]
    fn whichever_change_of_the_disk_fails_nothing_wrong_is_kept() {
        let (blob, parts) = blob(1);
        let mut failed = 0;
        for after in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
            plan(Some(Fault { after, errno: nix::libc::ENOSPC, ..Fault::default() }));
            let kept = cache.keep_chunk_info(&blob, &parts).and_then(Remembered::sync);
            failed += u64::from(plan(None));
            assert!(kept.is_err() || cache.kept_chunk_info(&blob).is_some());
            keep(&cache, &blob, &parts);
            assert!(cache.kept_chunk_info(&blob).is_some());
        }
        assert_eq!(failed, 4, "opened, written, renamed and synchronised");
    }
}
