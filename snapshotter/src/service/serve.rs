//! The socket.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::info;

use super::Service;
use super::api::snapshots_server::SnapshotsServer;
use crate::error::Error;
use crate::snapshots::Snapshotter;

/// How long calls may go on after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// Answers on `path` until `shutdown`, then ends the calls that are under way.
pub(crate) async fn serve(
    snapshotter: Arc<Snapshotter>,
    path: &Path,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| Error::Serve { path: path.to_owned(), source };
    let listener = bind(path).await.map_err(|error| failed(error.into()))?;
    info!(socket = %path.display(), "serving snapshots");
    let server = Server::builder()
        .add_service(SnapshotsServer::new(Service { snapshotter }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled());
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let result = tokio::select! {
        result = server => result.map_err(|error| failed(error.into())),
        () = overdue => Ok(()),
    };
    // Nobody answers here any more; the next start would remove it too.
    let _ = fs::remove_file(path);
    result
}

/// Binds, in place of a socket that nobody answers on. Only the owner may connect: whoever can, can mount.
async fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there")),
            Err(_) => fs::remove_file(path)?,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
