//! The socket that clients connect to.

use std::sync::Arc;
use std::time::Duration;

use service::{Access, BindError, SocketFile, UnixAddress, bind_private};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::serve_connection;
use crate::exporter::Exporter;

/// Pause after a failed accept, which mostly means that no file descriptor is free.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A bound socket, removed again when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: UnixListener,
    file: SocketFile,
}

impl Listener {
    /// Listens. Needs a runtime.
    pub(crate) fn bind(address: &UnixAddress, access: &Access) -> Result<Self, BindError> {
        let (listener, file) = bind_private(address.path(), access)?;
        let registered = UnixListener::from_std(listener);
        let failed =
            |source| BindError::System { path: address.path().to_owned(), action: "watch it", source };
        Ok(Self { listener: registered.map_err(failed)?, file })
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
        drop(self.listener);
        drop(self.file);
        clients.close();
        clients.wait().await;
    }
}
