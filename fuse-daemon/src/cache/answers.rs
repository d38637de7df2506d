//! Who has said that it has a blob: kept with the blob, so that images which may read it start without asking again, as
//! after a restart with no registry in reach.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{BlobId, Cache, CacheError, disk};

/// Sources of one blob that are remembered. Beyond, a mount asks again.
const SOURCES_LIMIT: usize = 1024;

/// The file of a blob, with one source a line, by its name.
pub(super) fn path(dir: &Path, id: BlobId) -> PathBuf {
    dir.join(format!("{}.sources", id.0))
}

pub(super) fn delete(dir: &Path, id: BlobId) -> Result<(), CacheError> {
    let path = path(dir, id);
    let deleted = disk::remove(&path).and_then(|_| disk::remove(&disk::unfinished(&path)));
    deleted.map(drop).map_err(CacheError::io("delete", &path))
}

impl Cache {
    /// Whether one of these sources has said before that it has the blob.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the file that says it cannot be read.
    pub fn was_answered(&self, id: BlobId, sources: &[String]) -> Result<bool, CacheError> {
        let path = path(&self.inner.dir, id);
        let known = read(&path)?;
        Ok(sources.iter().any(|source| known.contains(source)))
    }

    /// Remembers that a source has the blob, for as long as the cache has it: from now on for whoever comes after a crash of
    /// this process, and from [`Remembered::sync`] on for those after a power cut. Nothing is remembered of a blob that no
    /// mount uses any longer: it may be gone.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the file cannot be written; the next mount asks again then.
    pub fn remember_answer(&self, id: BlobId, source: &str) -> Result<Remembered, CacheError> {
        // Held, so that two answers do not write over each other, and nobody deletes the blob meanwhile.
        let mut blobs = self.inner.lock();
        let path = path(&self.inner.dir, id);
        let mut known = read(&path)?;
        let is_new = !source.contains('\n') && known.len() < SOURCES_LIMIT && !known.contains(source);
        if !is_new || !blobs.is_leased(id) {
            return Ok(Remembered(None));
        }
        known.insert(source.to_owned());
        let text: String = known.iter().map(|source| format!("{source}\n")).collect();
        let file = disk::replace(&path, |file| file.write_all(text.as_bytes()))
            .map_err(CacheError::io("write", &path))?;
        self.inner.settle(&mut blobs);
        Ok(Remembered(Some((file, path))))
    }
}

/// What was written, not yet durably.
#[must_use]
pub struct Remembered(pub(super) Option<(File, PathBuf)>);

impl Remembered {
    /// Waits for the disk. Without it a power cut may leave a part of the file: of answers whole lines count, of chunk
    /// information nothing.
    ///
    /// # Errors
    ///
    /// [`CacheError`]: the disk says no.
    pub fn sync(self) -> Result<(), CacheError> {
        self.0.map_or(Ok(()), |(file, path)| disk::sync(&file).map_err(CacheError::io("write", &path)))
    }
}

fn read(path: &Path) -> Result<BTreeSet<String>, CacheError> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            Ok(lines.map(str::to_owned).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        // Not text: what is there is nobody's word.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(BTreeSet::new()),
        Err(error) => Err(CacheError::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{FIRST_BOOT, blob_id, coding};
    use super::*;

    #[test]
    fn answers_are_kept_with_the_blob_and_torn_lines_are_nobodys_word() {
        let dir = tempfile::tempdir().unwrap();
        let (id, has) = (blob_id("a"), |cache: &Cache, source: &str| {
            cache.was_answered(blob_id("a"), &["other".to_owned(), source.to_owned()]).unwrap()
        });
        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        // Of a blob that nobody uses, nothing is written.
        cache.remember_answer(id, "early").unwrap().sync().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "its lock alone");
        let lease = cache.blob(id, &coding(), 4096, &[]).unwrap();
        for source in ["registry:a", "registry:b/c", "not\none"] {
            cache.remember_answer(id, source).unwrap().sync().unwrap();
        }
        assert!(has(&cache, "registry:a") && has(&cache, "registry:b/c"));
        assert!(!has(&cache, "registry:b") && !has(&cache, "not") && !has(&cache, "early"));
        drop((lease, cache));

        let cache = Cache::open(dir.path(), FIRST_BOOT).unwrap();
        assert!(has(&cache, "registry:a"));
        let path = path(dir.path(), id);
        let new = disk::unfinished(&path);
        std::fs::write(&path, "registry:a\nregistry:b").unwrap();
        assert!(has(&cache, "registry:a") && !has(&cache, "registry:b"));
        std::fs::write(&path, [0xff, b'\n']).unwrap();
        assert!(!has(&cache, "registry:a"));
        // What a crash left behind goes with the blob.
        std::fs::write(&new, "registry:a\n").unwrap();
        assert_eq!(cache.remove(&[id]).unwrap().removed, [id]);
        assert!(!path.exists() && !new.exists());
    }
}
