//! What was put on a node, in a file, so that all of it goes again and what was there before comes back.
//!
//! A change is in the ledger before it is made: whatever interrupts us, `remove` knows at least all that was done, and the next run
//! who has not read it yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::launch::error::LaunchError;

const FILE: &str = "ledger.json";
const UNREAD_FILE: &str = "unread.json";
/// `/`, `/etc` and the like are every system's own, even if nothing is in them.
const KEPT_DEPTH: usize = 2;

/// What was put on this node.
#[derive(Debug)]
pub(super) struct Ledger {
    dir: PathBuf,
    put: BTreeMap<PathBuf, Before>,
    changed: usize,
    /// Who reads what is put now.
    reader: Option<&'static str>,
    /// Who has not read yet what was put.
    unread: BTreeSet<String>,
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
        let (put, unread) = (read(&dir.join(FILE))?, read(&dir.join(UNREAD_FILE))?);
        Ok(Self { dir: dir.to_owned(), put, changed: 0, reader: None, unread })
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

    /// The paths in `directory` that are of our making.
    pub(super) fn below(&self, directory: &Path) -> Vec<PathBuf> {
        self.put.keys().filter(|path| path.starts_with(directory)).cloned().collect()
    }

    /// Puts what `reader` reads, and has it `read` that if anything is new to it, also by an earlier run that was interrupted.
    pub(super) fn put_for(
        &mut self,
        reader: &'static str,
        put: impl FnOnce(&mut Self) -> Result<(), LaunchError>,
        read: impl FnOnce() -> Result<(), LaunchError>,
    ) -> Result<(), LaunchError> {
        self.reader = Some(reader);
        let done = put(self);
        self.reader = None;
        done?;
        if self.unread.contains(reader) {
            read()?;
            self.unread.remove(reader);
            self.save_unread()?;
        }
        Ok(())
    }

    /// Puts a file at `path`, with the directories above it. Who may read one that is there may read the new one.
    pub(super) fn file(&mut self, path: &Path, content: &str) -> Result<(), LaunchError> {
        self.put_file(path, content, mode(path))
    }

    /// The same with `new_mode` for a file that is of our making.
    pub(super) fn file_with_mode(
        &mut self,
        path: &Path,
        content: &str,
        new_mode: u32,
    ) -> Result<(), LaunchError> {
        let is_theirs = !matches!(self.put.get(path), Some(Before::Nothing)) && path.exists();
        self.put_file(path, content, if is_theirs { mode(path) } else { new_mode })
    }

    fn put_file(&mut self, path: &Path, content: &str, new_mode: u32) -> Result<(), LaunchError> {
        let is_so = fs::read(path).is_ok_and(|found| found == content.as_bytes()) && mode(path) == new_mode;
        if is_so {
            return Ok(());
        }
        self.note(path)?;
        write(path, content.as_bytes(), new_mode)
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
        if let Some(reader) = self.reader
            && self.unread.insert(reader.to_owned())
        {
            self.save_unread()?;
        }
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
            before.bring_back(path)?;
        }
        for path in self.put.keys() {
            remove_empty_parents(path);
        }
        self.put.clear();
        self.unread.clear();
        remove(&self.dir.join(UNREAD_FILE))?;
        remove(&self.dir.join(FILE))
    }

    /// Brings back what was at `path` before.
    pub(super) fn undo_at(&mut self, path: &Path) -> Result<(), LaunchError> {
        let Some(before) = self.put.get(path) else { return Ok(()) };
        self.changed += 1;
        before.bring_back(path)?;
        remove_empty_parents(path);
        self.put.remove(path);
        self.save()
    }

    fn save(&self) -> Result<(), LaunchError> {
        save(&self.dir.join(FILE), &self.put)
    }

    fn save_unread(&self) -> Result<(), LaunchError> {
        save(&self.dir.join(UNREAD_FILE), &self.unread)
    }
}

impl Before {
    fn bring_back(&self, path: &Path) -> Result<(), LaunchError> {
        match self {
            Self::Nothing => remove(path),
            Self::Text(text) => write(path, text.as_bytes(), mode(path)),
        }
    }
}

/// Those that are empty now were ours, or nobody misses them.
fn remove_empty_parents(path: &Path) {
    let parents = path.ancestors().skip(1).take_while(|parent| parent.components().count() > KEPT_DEPTH);
    let mut parents = parents.map(fs::remove_dir);
    while parents.next().is_some_and(|removed| removed.is_ok()) {}
}

fn read<T: DeserializeOwned + Default>(file: &Path) -> Result<T, LaunchError> {
    match fs::read(file) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| LaunchError::wrong(file.display().to_string(), error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(LaunchError::io(file)(error)),
    }
}

fn save(file: &Path, value: &impl Serialize) -> Result<(), LaunchError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    write(file, &text.map_err(LaunchError::io(file))?, 0o600)
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
        // Also where whoever logs in has it that others may read less of new files.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
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
    use std::env;
    use std::process::Command;

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

    #[test]
    fn one_thing_comes_back_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("own"), "own").unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        for name in ["own", "new/file", "other/file"] {
            ledger.file(&path(name), "ours").unwrap();
        }
        assert_eq!(ledger.below(&path("new")), [path("new/file")]);
        ledger.undo_at(&path("own")).unwrap();
        ledger.undo_at(&path("new/file")).unwrap();
        assert_eq!(fs::read_to_string(path("own")).unwrap(), "own");
        assert!(!path("new").exists() && path("other/file").exists());
        let again = Ledger::open(dir.path()).unwrap();
        assert!(!again.has(&path("own")) && again.has(&path("other/file")));
    }

    #[test]
    fn what_was_not_read_for_an_interruption_is_read_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let put = |text: &'static str, end: Result<(), LaunchError>| {
            let mut was_read = false;
            let read = || {
                was_read = true;
                end
            };
            let mut ledger = Ledger::open(dir.path()).unwrap();
            let done = ledger.put_for("service", |ledger| ledger.file(&file, text), read);
            (was_read, done.is_ok())
        };
        let interrupted = || Err(LaunchError::wrong("service", "interrupted"));
        assert_eq!(put("1", interrupted()), (true, false));
        // The file is as it should be, and who reads it is not.
        assert_eq!(put("1", Ok(())), (true, true));
        assert_eq!(put("1", Ok(())), (false, true));
        assert_eq!(put("2", Ok(())), (true, true));
        // What somebody else reads is not its affair.
        let mut ledger = Ledger::open(dir.path()).unwrap();
        ledger.file(&file, "3").unwrap();
        assert_eq!(put("3", Ok(())), (false, true));
    }

    #[test]
    fn a_file_of_our_making_has_the_mode_that_it_should_have() {
        let dir = tempfile::tempdir().unwrap();
        let (own, new) = (dir.path().join("own"), dir.path().join("new"));
        fs::write(&own, "own").unwrap();
        let theirs = mode(&own);
        let mut ledger = Ledger::open(dir.path()).unwrap();
        // One that an earlier version put there.
        ledger.file(&new, "ours").unwrap();
        for path in [&own, &new] {
            ledger.file_with_mode(path, "ours", 0o755).unwrap();
        }
        assert_eq!((mode(&own), mode(&new)), (theirs, 0o755));
    }

    #[test]
    fn a_umask_takes_nothing_from_a_mode() {
        let (_, module) = module_path!().split_once("::").unwrap();
        let test = format!("{module}::a_file_of_our_making_has_the_mode_that_it_should_have");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(env::current_exe().unwrap());
        let said = shell.args([&test, "--exact"]).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success() && text.contains("1 passed"), "{text}");
    }
}
