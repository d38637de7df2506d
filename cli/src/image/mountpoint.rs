//! Where an image is mounted by hand: made if missing and removed afterwards, and nowhere that others can lead us.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

/// A directory to mount on.
#[derive(Debug)]
pub(super) struct Mountpoint {
    path: PathBuf,
    /// Directories that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl Mountpoint {
    /// Takes an empty directory, or makes one. Whoever can write to a directory above it could put another in its place:
    /// those have to belong to root or to the user, and only a sticky one may be writable by everybody.
    pub(super) fn prepare(path: &Path) -> anyhow::Result<Self> {
        let path = std::path::absolute(path).context("finding the working directory")?;
        ensure!(
            !path.components().any(|component| component == Component::ParentDir),
            "{}: expected a path without `..`",
            path.display()
        );
        let mut mountpoint = Self { path: path.clone(), made: Vec::new() };
        for directory in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            mountpoint.check_or_make(directory)?;
        }
        let mut entries = fs::read_dir(&path).with_context(|| format!("reading {}", path.display()))?;
        if entries.next().is_some() {
            bail!("{} is not empty: what is in it would be hidden", path.display());
        }
        Ok(mountpoint)
    }

    fn check_or_make(&mut self, directory: &Path) -> anyhow::Result<()> {
        match fs::symlink_metadata(directory) {
            Ok(found) => check(directory, &found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(directory).with_context(|| format!("making {}", directory.display()))?;
                self.made.insert(0, directory.to_owned());
                Ok(())
            }
            Err(error) => Err(error).with_context(|| format!("examining {}", directory.display())),
        }
    }

    /// The directory, absolute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn check(directory: &Path, found: &Metadata) -> anyhow::Result<()> {
    let name = directory.display();
    let user = nix::unistd::geteuid().as_raw();
    let mode = found.permissions().mode();
    // A symbolic link of root's or the user's own is followed by the kernel as it is now, and checked where it leads.
    if found.is_symlink() {
        ensure!([0, user].contains(&found.uid()), "{name} is a symbolic link of another user");
        let place = fs::canonicalize(directory).with_context(|| format!("following {name}"))?;
        return place.ancestors().try_for_each(|directory| {
            let found = fs::symlink_metadata(directory)
                .with_context(|| format!("examining {}", directory.display()))?;
            check(directory, &found)
        });
    }
    ensure!(found.is_dir(), "{name} is no directory");
    ensure!(
        [0, user].contains(&found.uid()),
        "{name} belongs to another user, who could lead the mount elsewhere"
    );
    let (everybody, sticky) = (mode & 0o002 != 0, mode & 0o1000 != 0);
    ensure!(!everybody || sticky, "{name} is writable by everybody, who could lead the mount elsewhere");
    Ok(())
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        for directory in &self.made {
            // Not if something else is in it, or still mounted on it.
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let mountpoint = Mountpoint::prepare(&path).unwrap();
        assert!(path.is_dir());
        drop(mountpoint);
        assert!(!dir.path().join("a").exists() && dir.path().exists());
        fs::create_dir(dir.path().join("a")).unwrap();
        drop(Mountpoint::prepare(&path).unwrap());
        assert!(dir.path().join("a").exists() && !path.exists());
    }

    #[test]
    fn unsafe_places_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: &Path| Mountpoint::prepare(path).unwrap_err().to_string();
        assert!(refused(dir.path().parent().unwrap()).contains("is not empty"));

        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refused(&file).contains("is no directory"));
        assert!(refused(&dir.path().join("a/../b")).contains("without `..`"));

        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refused(&open.join("mnt")).contains("writable by everybody"));
        std::os::unix::fs::symlink(&open, dir.path().join("link")).unwrap();
        assert!(refused(&dir.path().join("link")).contains("writable by everybody"));
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        Mountpoint::prepare(&open.join("mnt")).unwrap();

        if nix::unistd::geteuid().is_root() {
            let foreign = dir.path().join("foreign");
            fs::create_dir(&foreign).unwrap();
            std::os::unix::fs::chown(&foreign, Some(12_345), None).unwrap();
            assert!(refused(&foreign.join("mnt")).contains("another user"));
        }
    }
}
