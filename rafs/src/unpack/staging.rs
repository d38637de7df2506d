//! A directory that gets its name when it is complete.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::UnpackError;

/// Temporary names that are tried; each is taken only by another process of this id, in another namespace.
const ATTEMPTS: u32 = 1000;

/// Where a directory is being filled.
pub(super) struct Staging<'a> {
    target: &'a Path,
    /// The temporary name; `None` where the target itself is filled.
    temporary: Option<PathBuf>,
}

impl<'a> Staging<'a> {
    /// A directory next to `target`, or `target` itself if that is an empty directory.
    pub(super) fn new(target: &'a Path) -> Result<Self, UnpackError> {
        let io =
            |action| move |source| UnpackError::Io { path: target.display().to_string(), action, source };
        match fs::read_dir(target).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(Self { target, temporary: None }),
            Ok(false) => Err(UnpackError::NotEmpty(target.display().to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let temporary = make_next_to(target).map_err(io("make the directory"))?;
                Ok(Self { target, temporary: Some(temporary) })
            }
            Err(error) => Err(io("open the directory")(error)),
        }
    }

    /// Where to unpack to.
    pub(super) fn path(&self) -> &Path {
        self.temporary.as_deref().unwrap_or(self.target)
    }

    /// All is there: gives it its name.
    pub(super) fn publish(&self) -> Result<(), UnpackError> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        // What is in it is on the disk already; so a directory of this name is a whole one, after a power cut as well.
        let renamed = fs::rename(temporary, self.target);
        renamed.and_then(|()| fs::File::open(folder)?.sync_all()).map_err(|source| UnpackError::Io {
            path: self.target.display().to_string(),
            action: "rename the directory",
            source,
        })
    }

    /// Removes what was unpacked.
    pub(super) fn abandon(self) {
        let path = self.path();
        let removed = match &self.temporary {
            Some(temporary) => remove(temporary),
            None => empty(path),
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "cannot remove the files of an unpacking that failed");
        }
    }
}

fn make_next_to(target: &Path) -> io::Result<PathBuf> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    for attempt in 0..ATTEMPTS {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{attempt}", std::process::id()));
        let path = target.with_file_name(temporary);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| path),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes a directory, also if directories in it forbid that to anybody but root.
fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mut pending = vec![directory.to_owned()];
            while let Some(path) = pending.pop() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
                for entry in fs::read_dir(&path)? {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        pending.push(entry.path());
                    }
                }
            }
            fs::remove_dir_all(directory)
        }
        result => result,
    }
}
