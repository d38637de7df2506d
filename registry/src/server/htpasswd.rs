//! The file of users and passwords, as `htpasswd -B` makes it, changed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// How often bcrypt hashes, as a power of two: a tenth of a second a password.
const COST: u32 = 10;

/// What bcrypt looks at; the rest of a longer password would count for nothing.
const PASSWORD_LIMIT_BYTES: usize = 72;

/// A file of passwords that cannot be changed so.
#[derive(Debug, Error)]
pub enum HtpasswdError {
    /// The user's name cannot stand in the file.
    #[error("user {0:?}: expected a name without colon, space or line break")]
    User(String),
    /// Nobody could log in with the password, or with part of it.
    #[error("the password has {0} bytes: expected 1 to {PASSWORD_LIMIT_BYTES}, on one line")]
    Password(usize),
    /// The file cannot be read or written.
    #[error("htpasswd {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// bcrypt failed.
    #[error("cannot hash the password: {0}")]
    Hash(String),
}

/// Gives `user` the password `password` in the file `path`, which is made if it does not exist.
pub fn set_password(path: &Path, user: &str, password: &str) -> Result<(), HtpasswdError> {
    check_user(user)?;
    let wrong =
        password.is_empty() || password.len() > PASSWORD_LIMIT_BYTES || password.contains(['\n', '\r', '\0']);
    if wrong {
        return Err(HtpasswdError::Password(password.len()));
    }
    let hash = bcrypt::hash(password, COST).map_err(|e| HtpasswdError::Hash(e.to_string()))?;
    let line = format!("{user}:{hash}");
    let mut lines = read(path)?;
    match lines.iter_mut().find(|line| is_of(line, user)) {
        Some(old) => *old = line,
        None => lines.push(line),
    }
    write(path, &lines)
}

/// Takes `user` out of the file `path`. `false`: it is not in there.
pub fn remove_user(path: &Path, user: &str) -> Result<bool, HtpasswdError> {
    check_user(user)?;
    let mut lines = read(path)?;
    let before = lines.len();
    lines.retain(|line| !is_of(line, user));
    if lines.len() == before {
        return Ok(false);
    }
    write(path, &lines).map(|()| true)
}

fn check_user(user: &str) -> Result<(), HtpasswdError> {
    let wrong = |character: char| character == ':' || character.is_whitespace() || character.is_control();
    if user.is_empty() || user.starts_with('#') || user.contains(wrong) {
        return Err(HtpasswdError::User(user.to_owned()));
    }
    Ok(())
}

fn is_of(line: &str, user: &str) -> bool {
    line.trim().split_once(':').is_some_and(|(name, _)| name == user)
}

fn read(path: &Path) -> Result<Vec<String>, HtpasswdError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(HtpasswdError::File { path: path.to_owned(), source }),
    }
}

/// Writes another file and moves it there, so that a server never reads half of it.
fn write(path: &Path, lines: &[String]) -> Result<(), HtpasswdError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mode = fs::metadata(path).map_or(0o600, |found| found.permissions().mode() & 0o777);
    let write = || {
        let _ = fs::remove_file(&new);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        for line in lines {
            writeln!(file, "{line}")?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // A user that was removed is not back after a power cut.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&new);
        HtpasswdError::File { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_added_changed_and_removed_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        fs::write(&path, "# people\nbob:$2y$05$x\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        set_password(&path, "alice", "one").unwrap();
        set_password(&path, "alice", "two").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[1]), (3, "# people", "bob:$2y$05$x"));
        let hash = lines[2].strip_prefix("alice:").unwrap();
        assert!(bcrypt::verify("two", hash).unwrap() && !bcrypt::verify("one", hash).unwrap());
        assert!(remove_user(&path, "bob").unwrap() && !remove_user(&path, "bob").unwrap());
        assert!(!fs::read_to_string(&path).unwrap().contains("bob"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left next to it");
    }

    #[test]
    fn a_new_file_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        set_password(&path, "alice", "one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_could_not_log_in_is_refused() {
        let path = Path::new("/nonexistent/htpasswd");
        for user in ["", "a:b", "a b", "a\nb", "#a"] {
            assert!(matches!(set_password(path, user, "x"), Err(HtpasswdError::User(_))), "{user:?}");
        }
        for password in ["", "a\nb", &"x".repeat(73)] {
            let set = set_password(path, "alice", password);
            assert!(matches!(set, Err(HtpasswdError::Password(_))), "{password:?}");
        }
        let error = set_password(path, "alice", "x").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/htpasswd"), "{error}");
    }
}
