//! The socket.

use std::sync::Arc;
use std::time::Duration;

use ::service::{Access, UnixAddress, bind_private};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::info;

use super::Service;
use super::api::snapshots_server::SnapshotsServer;
use crate::error::Error;
use crate::metrics::{Calls, Counted};
use crate::snapshots::Snapshotter;

/// How long calls may go on after a shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// Answers at `address` until `shutdown`, then ends the calls that are under way. All are counted in `calls`.
pub(crate) async fn serve(
    snapshotter: Arc<Snapshotter>,
    address: &UnixAddress,
    access: &Access,
    calls: Calls,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Serve {
        path: address.path().to_owned(),
        source,
    };
    // The socket goes with `_file`, when calls have ended.
    let (listener, _file) = bind_private(address.path(), access)?;
    let listener = UnixListener::from_std(listener).map_err(|error| failed(error.into()))?;
    info!(socket = %address, "serving snapshots");
    // containerd's unit may wait for it: the socket takes connections already.
    ::service::manager::ready();
    tokio::spawn(::service::manager::keep_alive());
    let server = Server::builder()
        .layer(tower::layer::layer_fn(move |inner| Counted::new(inner, calls.clone())))
        .add_service(SnapshotsServer::new(Service { snapshotter }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            shutdown.cancelled().await;
            ::service::manager::stopping("waiting for calls that are under way");
        });
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = server => result.map_err(|error| failed(error.into())),
        () = overdue => Ok(()),
    }
}
