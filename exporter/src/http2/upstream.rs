//! The connection to buildkitd that goes with a client's connection.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{settings, socket};
use crate::grpc::{Code, Status};

/// A local socket answers at once or its owner hangs.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Why buildkitd cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot reach buildkitd at unix://{}: {error}; is it running, and is this its socket?", path.display())]
    Socket { path: PathBuf, error: std::io::Error },
    #[error("what listens at unix://{} does not speak HTTP/2 as buildkitd does: {error}", path.display())]
    Handshake { path: PathBuf, error: h2::Error },
    #[error("buildkitd at unix://{} did not answer within {} s", path.display(), CONNECT_DEADLINE.as_secs())]
    Silent { path: PathBuf },
}

impl From<ConnectError> for Status {
    fn from(error: ConnectError) -> Self {
        Self::new(Code::Unavailable, error.to_string())
    }
}

/// A connection to buildkitd, made when first needed and made again when lost.
pub(crate) struct Upstream {
    path: PathBuf,
    peer: String,
    connection: Mutex<Option<SendRequest<Bytes>>>,
    /// Ends the connection.
    stop: CancellationToken,
}

impl Upstream {
    /// To the socket at `path`, until `stop`.
    pub(crate) fn new(path: &Path, stop: CancellationToken) -> Self {
        let peer = format!("buildkitd at unix://{}", path.display());
        Self { path: path.to_owned(), peer, connection: Mutex::new(None), stop }
    }

    /// What to call the other side in errors.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    /// A handle to open streams with.
    pub(crate) async fn get(&self) -> Result<SendRequest<Bytes>, ConnectError> {
        let mut connection = self.connection.lock().await;
        if let Some(send) = connection.clone()
            && let Ok(ready) = send.ready().await
        {
            return Ok(ready);
        }
        let silent = |_| ConnectError::Silent { path: self.path.clone() };
        let send = tokio::time::timeout(CONNECT_DEADLINE, self.connect()).await.map_err(silent)??;
        *connection = Some(send.clone());
        Ok(send)
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, ConnectError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| ConnectError::Socket { path: self.path.clone(), error })?;
        let (send, connection) = settings::client()
            .handshake(socket::gathered(stream))
            .await
            .map_err(|error| ConnectError::Handshake { path: self.path.clone(), error })?;
        let (peer, stop) = (self.peer.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                ended = connection => if let Err(error) = ended {
                    tracing::warn!(%error, peer, "connection lost");
                },
            }
        });
        Ok(send)
    }
}
