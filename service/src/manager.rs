//! What the process tells whoever started it, and leaves with it: systemd, for a unit with `Type=notify`. Elsewhere nothing
//! happens.

use std::env;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use sd_notify::NotifyState;

/// Where the manager hears, and how often it wants to: variables that are the process's own, not its children's.
pub const VARIABLES: [&str; 3] = [SOCKET, "WATCHDOG_USEC", "WATCHDOG_PID"];

const SOCKET: &str = "NOTIFY_SOCKET";

/// How long the manager may take to take a descriptor: it does at once, unless it is in trouble itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// All is set up: what waits for this unit may start.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The process ends what is under way; what it waits for is `status`.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells that the process lives, as often as its unit's watchdog wants; returns where there is none. To be run as a task of the
/// runtime that does the work: one that is stuck tells nothing, and is started again.
pub async fn keep_alive() {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    loop {
        tell(&[NotifyState::Watchdog]);
        // Twice as often: a busy machine is no reason.
        tokio::time::sleep(within / 2).await;
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// Leaves duplicates of descriptors with the manager, for a unit with `FileDescriptorStoreMax=`: the process that it starts in the
/// place of this one finds them by `name`, at most 255 characters without `:`. More under the same name are kept with them. The
/// manager drops those by whose end it sees that there is nobody at the other.
pub fn leave(name: &str, descriptors: &[BorrowedFd<'_>]) {
    send(&format!("FDSTORE=1\nFDNAME={name}\n"), descriptors);
}

/// Has the manager drop what was left with it under a name.
pub fn forget(name: &str) {
    send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]);
}

/// The numbers of the descriptors that earlier processes left with the manager, with their names: open from the start of this one,
/// which owns them.
pub fn left() -> Vec<(RawFd, String)> {
    match sd_notify::listen_fds_with_names() {
        Ok(left) => left.collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot use what the service manager holds");
            Vec::new()
        }
    }
}

fn send(message: &str, descriptors: &[BorrowedFd<'_>]) {
    let Some(socket) = env::var_os(SOCKET) else { return };
    if let Err(error) = send_to(Path::new(&socket), message, descriptors) {
        tracing::warn!(%error, "the service manager was not told of descriptors");
    }
}

fn send_to(path: &Path, message: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(path)?;
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &control };
    let message = [IoSlice::new(message.as_bytes())];
    sendmsg::<()>(socket.as_raw_fd(), &message, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read};
    use std::os::fd::AsFd;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    #[test]
    fn descriptors_are_left_under_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let (mut end, other) = std::os::unix::net::UnixStream::pair().unwrap();
        send_to(&path, "FDSTORE=1\n", &[other.as_fd()]).unwrap();
        drop(other);

        let (mut text, mut space) = ([0; 64], nix::cmsg_space!([RawFd; 2]));
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::empty();
        let message = recvmsg::<()>(manager.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
        let numbers = message.cmsgs().unwrap().find_map(|message| match message {
            ControlMessageOwned::ScmRights(numbers) => Some(numbers),
            _ => None,
        });
        let [number] = numbers.unwrap()[..] else { panic!("not one descriptor") };
        let length = message.bytes;
        assert_eq!(&text[..length], b"FDSTORE=1\n");
        // It is the same: the pair ends with it.
        end.set_nonblocking(true).unwrap();
        assert_eq!(end.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        nix::unistd::close(number).unwrap();
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
    }
}
