//! The socket that clients connect to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::serve_connection;
use crate::exporter::Exporter;

/// Pause after a failed accept, which mostly means that no file descriptor is free.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A bound socket, removed again when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. A socket that nobody listens at any more is replaced; one in use is an error.
    pub(crate) async fn bind(path: &Path) -> io::Result<Self> {
        match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path).await => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        }
        .map(|listener| Self { listener, path: path.to_owned() })
    }

    /// Serves clients until `shutdown`, then lets their streams end.
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
        clients.close();
        clients.wait().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "socket not removed");
        }
    }
}

/// Whether the socket at `path` was left behind by a process that is gone.
async fn is_stale(path: &Path) -> bool {
    matches!(UnixStream::connect(path).await, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}
