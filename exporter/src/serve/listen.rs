//! The socket that clients connect to.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Exporter;
use super::connection::serve_connection;

/// Pause after a failed accept, which mostly means that no file descriptor is free.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A bound socket, removed again when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Before the listener, so dropped while that still holds the inode: its number cannot be another's yet.
    socket: SocketFile,
    listener: UnixListener,
}

/// The file of a socket: which it was when bound, as another process may have put its own there since.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = identity(&self.path).is_ok_and(|found| found == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "socket not removed");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens at any more is replaced; one in use is an error.
    pub(crate) async fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path).await => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        }?;
        Ok(Self { listener, socket: SocketFile::at(path)? })
    }

    /// Serves clients until `shutdown`, then lets their streams end; the socket is free for a successor meanwhile.
    pub(crate) async fn serve(self, exporter: Arc<Exporter>, shutdown: CancellationToken) {
        let clients = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    clients.spawn(serve_connection(stream, Arc::clone(&exporter), shutdown.clone()));
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept a client");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        drop(self.socket);
        drop(self.listener);
        clients.close();
        clients.wait().await;
    }
}

/// Whether the socket at `path` was left behind by a process that is gone.
async fn is_stale(path: &Path) -> bool {
    matches!(UnixStream::connect(path).await, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}
