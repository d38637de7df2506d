//! Uploads on their way: a file that grows until its digest is known.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, fadvise};

use super::files::{parent_of, random_id};
use super::{Storage, failed};
use crate::digest::{Digest, Hasher};
use crate::layout::{folders, present};
use crate::server::error::Failure;

/// How much of a file is hashed at a time.
const HASH_BUFFER_BYTES: usize = 1 << 20;

/// The kernel is told to write an upload to the disk in steps of so many bytes: at the end there is little to wait for.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// An upload's file, open at its end.
pub(in crate::server) struct UploadFile {
    path: PathBuf,
    file: File,
    size: u64,
    /// Up to where it is being written to the disk, as far as this request knows.
    begun: u64,
}

impl UploadFile {
    pub(in crate::server) fn size(&self) -> u64 {
        self.size
    }

    /// Adds `data`, all of it or, on failure, nothing.
    pub(in crate::server) fn append(&mut self, data: &[u8]) -> Result<(), Failure> {
        match self.file.write_all(data) {
            Ok(()) => {
                self.size += data.len() as u64;
                self.begin_write_back();
                Ok(())
            }
            Err(e) => {
                // What is half written must not stay: the size says what has arrived.
                let cut = self.file.set_len(self.size).and_then(|()| self.file.seek(SeekFrom::End(0)));
                if let Err(error) = cut {
                    tracing::error!(path = %self.path.display(), %error, "cannot cut a failed write off an upload");
                }
                Err(failed("writing", &self.path)(e))
            }
        }
    }

    fn begin_write_back(&mut self) {
        if self.size < self.begun + WRITE_BACK_BYTES {
            return;
        }
        let length = NonZeroU64::new(self.size - self.begun);
        // What is dirty begins to be written by this, and only what is clean is forgotten. Advice: without it the end takes longer.
        let _ = fadvise(&self.file, self.begun, length, Advice::DontNeed);
        self.begun = self.size;
    }

    /// Feeds all of the file to `hasher`.
    pub(in crate::server) fn hash(&mut self, hasher: &mut Hasher) -> Result<(), Failure> {
        let mut read = || {
            let mut file = File::open(&self.path)?;
            let mut buffer = vec![0; HASH_BUFFER_BYTES];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(()),
                    size => hasher.update(&buffer[..size]),
                }
            }
        };
        read().map_err(failed("reading", &self.path))
    }
}

impl Storage {
    /// Begins an upload and returns its id.
    pub(in crate::server) fn create_upload(&self, name: &str) -> Result<String, Failure> {
        let id = random_id()?;
        let folder = self.paths().upload(name, &id);
        self.folders.create(&folder)?;
        let data = folder.join("data");
        File::create_new(&data).map_err(failed("creating", &data))?;
        // By this CNCF distribution knows which uploads are stale. An upload need not outlive a loss of power.
        let started = folder.join("startedat");
        fs::write(&started, rfc3339(SystemTime::now())).map_err(failed("writing", &started))?;
        Ok(id)
    }

    /// The upload's file, `None` if there is no such upload.
    pub(in crate::server) fn open_upload(&self, name: &str, id: &str) -> Result<Option<UploadFile>, Failure> {
        let path = self.paths().upload(name, id).join("data");
        let opened =
            present(OpenOptions::new().append(true).open(&path)).map_err(failed("opening", &path))?;
        let Some(file) = opened else { return Ok(None) };
        let size = file.metadata().map_err(failed("reading the size of", &path))?.len();
        Ok(Some(UploadFile { path, file, size, begun: size - size % WRITE_BACK_BYTES }))
    }

    /// Makes the upload's bytes, whose SHA-256 digest is `content`, the repository's blob `digest`.
    pub(in crate::server) fn commit_upload(
        &self,
        name: &str,
        id: &str,
        upload: UploadFile,
        content: &Digest,
        digest: &Digest,
    ) -> Result<(), Failure> {
        let path = self.paths().data(content);
        // Data, then its name, then the link: what a 201 has said is found after a loss of power.
        self.folders.create(parent_of(&path))?;
        if self.layout.has_data(content)? {
            self.mount_blob(name, digest, content)?;
        } else {
            upload.file.sync_all().map_err(failed("writing to disk", &upload.path))?;
            self.folders.rename(&upload.path, &path)?;
            self.link_blob(name, digest, content)?;
        }
        self.remove_upload(name, id).map(drop)
    }

    /// Forgets the upload. `false`: there is none.
    pub(in crate::server) fn remove_upload(&self, name: &str, id: &str) -> Result<bool, Failure> {
        let folder = self.paths().upload(name, id);
        Ok(present(fs::remove_dir_all(&folder)).map_err(failed("removing", &folder))?.is_some())
    }

    /// Removes uploads that nothing was written to for `age`; returns how many.
    pub(in crate::server) fn purge_uploads(&self, age: Duration) -> Result<usize, Failure> {
        let mut purged = 0;
        for name in self.repositories_with_uploads()? {
            for id in folders(&self.paths().repository(&name).join("_uploads"))? {
                let data = self.paths().upload(&name, &id).join("data");
                let written = fs::metadata(&data).and_then(|data| data.modified());
                let stale =
                    written.ok().and_then(|at| at.elapsed().ok()).is_some_and(|elapsed| elapsed > age);
                if stale && self.remove_upload(&name, &id)? {
                    purged += 1;
                }
            }
        }
        Ok(purged)
    }

    fn repositories_with_uploads(&self) -> Result<Vec<String>, Failure> {
        let mut found = Vec::new();
        let mut parents = vec![String::new()];
        while let Some(parent) = parents.pop() {
            for entry in folders(&self.paths().repositories().join(&parent))? {
                if entry == "_uploads" {
                    found.push(parent.clone());
                } else if !entry.starts_with('_') {
                    parents.push(if parent.is_empty() { entry } else { format!("{parent}/{entry}") });
                }
            }
        }
        Ok(found)
    }
}

/// `time` as CNCF distribution writes it, in whole seconds of UTC.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn only_uploads_without_recent_writes_are_purged() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::new(Layout::directory(dir.path()));
        let (old, new) = (storage.create_upload("a/b").unwrap(), storage.create_upload("a/b").unwrap());
        let data = storage.paths().upload("a/b", &old).join("data");
        let day = Duration::from_secs(86_400);
        File::options().write(true).open(data).unwrap().set_modified(SystemTime::now() - 8 * day).unwrap();
        assert_eq!(storage.purge_uploads(7 * day).unwrap(), 1);
        assert!(storage.open_upload("a/b", &old).unwrap().is_none());
        assert!(storage.open_upload("a/b", &new).unwrap().is_some());
    }
}
