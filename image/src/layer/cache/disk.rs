//! Converted layers in a directory, which several processes may use at once, and of which any may be killed at any time.
//!
//! ```text
//! lock            held by whoever writes or deletes
//! NAME            a layer, named after its key; a second name of the same file is that with its diff id
//! NAME.places     the repositories that its blob is in, as a JSON list
//! NAME.partial    what somebody writes, or was killed writing
//! ```
//!
//! Readers take no lock: a file is complete when it gets its name, and its checksum says so. What was used longest ago, by
//! the time of its last modification, makes room. The cache only saves work, so whatever fails here fails no build.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use registry::reference::Repository;

use super::{Known, entry, put_first};
use crate::layer::conversion::ConvertedLayer;
use crate::layer::key::Key;
use crate::options::Recipe;

const LOCK: &str = "lock";
const PLACES: &str = "places";
const PARTIAL: &str = "partial";

/// The list of a blob's repositories has no more bytes.
const PLACES_LIMIT_BYTES: u64 = 64 << 10;

/// What a file takes beyond its content, about.
const FILE_BYTES: u64 = 4096;

/// Another process holds the lock for one file, not for longer.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Layers in a directory.
#[derive(Debug)]
pub(super) struct DiskCache {
    dir: PathBuf,
    limit_bytes: u64,
    /// A disk that is full or not there is told of once.
    warned: AtomicBool,
}

/// A file of the directory, with all its names.
#[derive(Debug)]
struct CachedFile {
    used: SystemTime,
    bytes: u64,
    paths: Vec<PathBuf>,
}

impl DiskCache {
    /// A cache of at most `limit_bytes` in `dir`, which is made when it is needed.
    pub(super) fn new(dir: &Path, limit_bytes: u64) -> Self {
        Self { dir: dir.to_owned(), limit_bytes, warned: AtomicBool::new(false) }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.file_name())
    }

    /// The layer of this key, if it is here and whole.
    pub(super) fn read(&self, key: &Key, recipe: &Recipe) -> Option<Known> {
        let path = self.path(key);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.warn("read", &error);
                }
                return None;
            }
        };
        let mut content = Vec::new();
        if let Err(error) = (&mut file).take(self.limit_bytes).read_to_end(&mut content) {
            self.warn("read", &error);
            return None;
        }
        match entry::decode(&content, key, recipe) {
            Ok(layer) => {
                let repositories = self.places(&key.of_layer(&layer));
                Some(Known { layer: layer.into(), repositories })
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a file of the layer cache is broken and is deleted");
                self.discard(&file, &path);
                None
            }
        }
    }

    /// Deletes a file that is not what it should be, unless it has been replaced meanwhile.
    fn discard(&self, file: &File, path: &Path) {
        let discarded = self.locked(|_| {
            let found = file.metadata()?;
            match fs::metadata(path) {
                Ok(now) if (now.dev(), now.ino()) == (found.dev(), found.ino()) => remove(path),
                _ => Ok(()),
            }
        });
        if let Err(error) = discarded {
            self.warn("delete a broken file of", &error);
        }
    }

    /// Keeps a layer, which replaces what has its key.
    pub(super) fn write(&self, key: &Key, layer: &ConvertedLayer, repository: Option<&Repository>) {
        let content = match entry::encode(layer, key) {
            Ok(content) => content,
            Err(error) => {
                tracing::debug!(%error, blob = %layer.digest, "layer not kept on disk");
                return;
            }
        };
        let bytes = content.len() as u64 + FILE_BYTES;
        if bytes > self.limit_bytes {
            return;
        }
        let path = self.path(key);
        let alias = layer.diff_id.as_ref().map(|diff_id| self.path(&key.with(diff_id)));
        let written = self.locked(|cache| {
            cache.make_room(bytes, &path)?;
            cache.put(&path, &content)?;
            if let Some(alias) = alias.filter(|alias| *alias != path) {
                // A link cannot replace a name that is there; a rename can, and without a moment in which there is none.
                let partial = alias.with_extension(PARTIAL);
                fs::hard_link(&path, &partial)?;
                fs::rename(partial, alias)?;
            }
            cache.put_places(&path, repository.into_iter().cloned().collect())?;
            File::open(&cache.dir)?.sync_all()
        });
        if let Err(error) = written {
            self.warn("write to", &error);
        }
    }

    /// Notes that a layer was used, and where its blob is now.
    pub(super) fn used(&self, key: &Key, repository: Option<&Repository>) {
        let path = self.path(key);
        let noted = || {
            let file = File::open(&path)?;
            file.set_modified(SystemTime::now())?;
            match repository {
                Some(repository) if !self.places(key).contains(repository) => self.locked(|cache| {
                    let mut places = cache.places(key);
                    put_first(&mut places, repository);
                    cache.put_places(&path, places)
                }),
                _ => Ok(()),
            }
        };
        match noted() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.warn("write to", &error),
            _ => {}
        }
    }

    /// The repositories that a layer's blob is in.
    fn places(&self, key: &Key) -> Vec<Repository> {
        let path = self.path(key).with_extension(PLACES);
        let mut content = Vec::new();
        let read = File::open(path).and_then(|file| file.take(PLACES_LIMIT_BYTES).read_to_end(&mut content));
        if read.is_err() {
            return Vec::new();
        }
        // Written in one piece; if it is broken all the same, nothing is known.
        let names: Vec<String> = serde_json::from_slice(&content).unwrap_or_default();
        names.iter().filter_map(|name| Repository::parse(name).ok()).collect()
    }

    fn put_places(&self, path: &Path, places: Vec<Repository>) -> io::Result<()> {
        let names: Vec<String> = places.iter().map(ToString::to_string).collect();
        self.put(&path.with_extension(PLACES), &serde_json::to_vec(&names)?)
    }

    /// Writes a file so that it has its name only once it is complete.
    fn put(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let partial = path.with_extension(PARTIAL);
        let mut file = File::create(&partial)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        match written.and_then(|()| fs::rename(&partial, path)) {
            Ok(()) => Ok(()),
            Err(error) => {
                // A full disk is not to stay full because of this.
                let _ = fs::remove_file(&partial);
                Err(error)
            }
        }
    }

    /// Deletes what was used longest ago until `bytes` more fit; what is at `replaced` will be gone.
    fn make_room(&self, bytes: u64, replaced: &Path) -> io::Result<()> {
        let mut stored = self.stored()?;
        stored.retain(|stored| !stored.paths.iter().any(|path| path == replaced));
        stored.sort_by_key(|stored| stored.used);
        let mut total: u64 = bytes + stored.iter().map(|stored| stored.bytes).sum::<u64>();
        for oldest in stored {
            if total <= self.limit_bytes {
                break;
            }
            for path in &oldest.paths {
                remove(path)?;
            }
            total -= oldest.bytes;
        }
        Ok(())
    }

    /// All files, while the lock is held: what is partial then is left over from somebody who was killed.
    fn stored(&self) -> io::Result<Vec<CachedFile>> {
        let mut files: HashMap<u64, CachedFile> = HashMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let (path, metadata) = match entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) {
                Ok(found) => found,
                // Somebody else's broken file was deleted.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(PARTIAL) => fs::remove_file(&path)?,
                // It is its layer's, and goes with it.
                Some(PLACES) if path.with_extension("").exists() => {}
                Some(PLACES) => fs::remove_file(&path)?,
                _ if path.file_name().is_some_and(|name| name == LOCK) || !metadata.is_file() => {}
                _ => {
                    let (used, bytes) = (metadata.modified()?, metadata.len() + FILE_BYTES);
                    let stored = files.entry(metadata.ino());
                    stored.or_insert_with(|| CachedFile { used, bytes, paths: Vec::new() }).paths.push(path);
                }
            }
        }
        Ok(files.into_values().collect())
    }

    /// Works while no other process writes or deletes.
    fn locked<T>(&self, work: impl FnOnce(&Self) -> io::Result<T>) -> io::Result<T> {
        if !self.dir.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        }
        let lock = File::options().create(true).truncate(false).write(true).open(self.dir.join(LOCK))?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            match lock.try_lock() {
                Ok(()) => return work(self),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds its lock"));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    fn warn(&self, doing: &str, error: &io::Error) {
        let dir = self.dir.display();
        if self.warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, %dir, "cannot {doing} the layer cache");
        } else {
            tracing::warn!(%error, %dir, "cannot {doing} the layer cache; layers are converted again after a restart");
        }
    }
}

/// Deletes a file and what belongs to it.
fn remove(path: &Path) -> io::Result<()> {
    for path in [path.to_owned(), path.with_extension(PLACES)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
