//! What was put on a node, in a file, so that all of it goes again and what was there before comes back.
//!
//! A change is in the ledger before it is made: whatever interrupts us, `remove` knows at least all that was done.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::launch::error::LaunchError;

const FILE: &str = "ledger.json";
/// `/`, `/etc` and the like are every system's own, even if nothing is in them.
const KEPT_DEPTH: usize = 2;

/// What was put on this node.
#[derive(Debug)]
pub(super) struct Ledger {
    file: PathBuf,
    put: BTreeMap<PathBuf, Before>,
    changed: usize,
}

/// What was at a path before.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Before {
    /// Nothing.
    Nothing,
    /// A file with this content.
    Text(String),
}

impl Ledger {
    /// Opens the ledger in `dir`, or begins one.
    pub(super) fn open(dir: &Path) -> Result<Self, LaunchError> {
        let file = dir.join(FILE);
        let put = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| LaunchError::wrong(file.display().to_string(), error.to_string()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(LaunchError::io(file)(error)),
        };
        Ok(Self { file, put, changed: 0 })
    }

    /// How much this process has changed.
    pub(super) fn changed(&self) -> usize {
        self.changed
    }

    /// Whether a path is of our making.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.put.contains_key(path)
    }

    /// What was in the file at `path` before us; its content now, if we have not put it there.
    pub(super) fn before(&self, path: &Path) -> Result<Option<String>, LaunchError> {
        match self.put.get(path) {
            Some(Before::Nothing) => Ok(None),
            Some(Before::Text(text)) => Ok(Some(text.clone())),
            None => match fs::read_to_string(path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(LaunchError::io(path)(error)),
            },
        }
    }

    /// Puts a file at `path`, with the directories above it. Who may read one that is there may read the new one.
    pub(super) fn file(&mut self, path: &Path, content: &str) -> Result<(), LaunchError> {
        if fs::read(path).is_ok_and(|found| found == content.as_bytes()) {
            return Ok(());
        }
        self.note(path)?;
        write(path, content.as_bytes(), mode(path))
    }

    /// Puts a symbolic link at `path`.
    pub(super) fn link(&mut self, path: &Path, target: &Path) -> Result<(), LaunchError> {
        if fs::read_link(path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        self.note(path)?;
        make_parent(path)?;
        let temporary = path.with_extension("nydus-cluster-new");
        remove(&temporary)?;
        symlink(target, &temporary).map_err(LaunchError::io(&temporary))?;
        fs::rename(&temporary, path).map_err(LaunchError::io(path))
    }

    fn note(&mut self, path: &Path) -> Result<(), LaunchError> {
        self.changed += 1;
        if !self.put.contains_key(path) {
            let before = self.before(path)?.map_or(Before::Nothing, Before::Text);
            self.put.insert(path.to_owned(), before);
            self.save()?;
        }
        Ok(())
    }

    /// Brings back what was there before.
    pub(super) fn undo(&mut self) -> Result<(), LaunchError> {
        for (path, before) in &self.put {
            match before {
                Before::Nothing => remove(path)?,
                Before::Text(text) => write(path, text.as_bytes(), mode(path))?,
            }
        }
        for path in self.put.keys() {
            let parents =
                path.ancestors().skip(1).take_while(|parent| parent.components().count() > KEPT_DEPTH);
            // Those that are empty now were ours, or nobody misses them.
            let mut parents = parents.map(fs::remove_dir);
            while parents.next().is_some_and(|removed| removed.is_ok()) {}
        }
        self.put.clear();
        remove(&self.file)
    }

    fn save(&self) -> Result<(), LaunchError> {
        let text = serde_json::to_vec_pretty(&self.put).map_err(io::Error::other);
        write(&self.file, &text.map_err(LaunchError::io(&self.file))?, 0o600)
    }
}

/// The mode of a file that is there, or else of one that all may read.
fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777)
}

/// Writes a file so that it is never there half-written.
pub(super) fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), LaunchError> {
    make_parent(path)?;
    let temporary = path.with_extension("nydus-cluster-new");
    let io = LaunchError::io(path);
    let written = (|| {
        remove_any(&temporary)?;
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(io)
}

/// Removes a file or a link, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), LaunchError> {
    remove_any(path).map_err(LaunchError::io(path))
}

fn remove_any(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make_parent(path: &Path) -> Result<(), LaunchError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(LaunchError::io(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_goes_and_what_was_there_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("own"), "own").unwrap();
        fs::set_permissions(path("own"), fs::Permissions::from_mode(0o600)).unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.file(&path("own"), "ours").unwrap();
        ledger.file(&path("new/file"), "ours").unwrap();
        ledger.link(&path("link"), Path::new("/target")).unwrap();
        assert_eq!(ledger.changed(), 3);

        // Another run finds all as it should be, and what was there before is still known after a third changes it.
        let mut again = Ledger::open(dir.path()).unwrap();
        again.file(&path("own"), "ours").unwrap();
        again.link(&path("link"), Path::new("/target")).unwrap();
        assert_eq!(again.changed(), 0);
        again.file(&path("own"), "newer").unwrap();
        assert_eq!(again.before(&path("own")).unwrap().as_deref(), Some("own"));
        assert_eq!(fs::read_to_string(path("own")).unwrap(), "newer");
        assert_eq!(mode(&path("own")), 0o600);

        Ledger::open(dir.path()).unwrap().undo().unwrap();
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["own"]);
        assert_eq!(fs::read_to_string(path("own")).unwrap(), "own");
        assert_eq!(mode(&path("own")), 0o600);
    }
}
