//! Local sockets that only those may connect to who are meant to: whoever can, can mount or build.

mod file;
mod lock;
mod mode;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::fchmod;
use nix::unistd::{Gid, Group};

pub use file::SocketFile;
pub use mode::Mode;

use lock::Lock;

/// Who may connect.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Access {
    /// Permissions of the socket: writing is connecting.
    pub mode: Mode,
    /// The socket's group, by name or number; by default that of the process.
    pub group: Option<String>,
}

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process serves there.
    #[error("cannot listen on {}: another process serves there", .0.display())]
    InUse(PathBuf),
    /// Something else is there, which is not replaced.
    #[error("cannot listen on {}: there is a file that is no socket", .0.display())]
    NotASocket(PathBuf),
    /// The group does not exist.
    #[error("cannot listen on {}: there is no group {group:?}", path.display())]
    NoSuchGroup {
        /// The socket.
        path: PathBuf,
        /// The group.
        group: String,
    },
    /// The operating system refused.
    #[error("cannot listen on {}: cannot {action}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Listens on a local socket; its directory is made. The listener does not block. The socket goes with the
/// [`SocketFile`].
///
/// A socket that a dead process left is replaced, a living one's never: a lock file next to it says who lives, and who takes
/// it connects to make sure, as an older release takes none.
///
/// # Errors
///
/// [`BindError`].
pub fn bind_private(path: &Path, access: &Access) -> Result<(UnixListener, SocketFile), BindError> {
    let failed =
        |action| move |source: io::Error| BindError::System { path: path.to_owned(), action, source };
    let group = access.group.as_deref().map(|group| group_id(path, group)).transpose()?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed("make its directory"))?;
    }
    let lock =
        Lock::take(path).map_err(failed("lock it"))?.ok_or_else(|| BindError::InUse(path.to_owned()))?;
    remove_stale(path)?;
    let listener = bind_for_owner(path).map_err(|errno| failed("bind")(errno.into()))?;
    // From here on the socket is there: it goes again if what follows fails.
    let file = SocketFile::new(path, lock).map_err(failed("examine it"))?;
    if group.is_some() {
        nix::unistd::fchownat(
            nix::fcntl::AT_FDCWD,
            path,
            None,
            group,
            nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(|errno| failed("set its group")(errno.into()))?;
    }
    std::fs::set_permissions(path, access.mode.permissions()).map_err(failed("set its permissions"))?;
    listen(&listener, Backlog::MAXCONN).map_err(|errno| failed("listen")(errno.into()))?;
    Ok((listener, file))
}

fn group_id(path: &Path, name: &str) -> Result<Gid, BindError> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(name).map_err(|errno| BindError::System {
        path: path.to_owned(),
        action: "look up its group",
        source: errno.into(),
    })?;
    let none = || BindError::NoSuchGroup { path: path.to_owned(), group: name.to_owned() };
    found.map(|group| group.gid).ok_or_else(none)
}

/// Removes a socket that nobody listens on. The caller holds its lock.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |action, source| BindError::System { path: path.to_owned(), action, source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => match knock(path) {
            // The only answer that says that nobody listens. A full queue or missing rights do not.
            Err(Errno::ECONNREFUSED) => {
                std::fs::remove_file(path).map_err(|error| failed("remove what a dead process left", error))
            }
            _ => Err(BindError::InUse(path.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("examine what is there", error)),
    }
}

/// Connects without waiting, as one whose queue is full may never answer.
fn knock(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(path)?)
}

/// Binds so that nobody but the owner may connect, from the first moment.
fn bind_for_owner(path: &Path) -> nix::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Linux gives the file the mode that the socket has when it is bound, less the umask.
    fchmod(&socket, Mode::OWNER.bits())?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &UnixAddr::new(path)?)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests;
