//! The snapshotter's end of its control socket.

use std::sync::Arc;

use ::service::control::{self, Answered, Failure, Server};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::protocol::{Answer, ErrorKind, Request, SnapshotterProtocol};
use crate::daemon::describe;
use crate::error::Error;
use crate::snapshots::Snapshotter;

/// Requests at once. Each may have a set in memory.
const AT_ONCE: usize = 8;

/// Answers until `shutdown`, then ends the requests that are under way.
pub(crate) async fn serve(server: Server, snapshotter: Arc<Snapshotter>, shutdown: &CancellationToken) {
    let client = |stream| serve_client(stream, Arc::clone(&snapshotter));
    let mut clients = server.run(AT_ONCE, shutdown, client).await;
    while clients.join_next().await.is_some() {}
}

async fn serve_client(stream: UnixStream, snapshotter: Arc<Snapshotter>) {
    let Some(received) = control::receive::<SnapshotterProtocol>(&stream).await else { return };
    let answered = answer(received.request, &snapshotter).await;
    control::reply::<SnapshotterProtocol>(&stream, received.version, answered, None).await;
}

async fn answer(request: Request, snapshotter: &Arc<Snapshotter>) -> Answered<SnapshotterProtocol> {
    let answered = match request {
        Request::Put(set) => {
            let (name, images) = (set.name.clone(), set.images.len());
            snapshotter.put_set(*set).await.map(|changed| {
                info!(set = name, images, changed, "images are run as RAFS");
                if changed {
                    // Nobody waits for it: those that are mounted read on from where they did.
                    let snapshotter = Arc::clone(snapshotter);
                    tokio::spawn(async move { snapshotter.tell_backends().await });
                }
                Answer::Done { changed }
            })
        }
        Request::Remove { name } => {
            let shown = name.clone();
            snapshotter.remove_set(name).await.map(|changed| {
                info!(set = shown, changed, "images are pulled as they are");
                Answer::Done { changed }
            })
        }
        Request::List => snapshotter.sets().await.map(|sets| Answer::Sets { sets }),
        Request::Mount(image) => {
            let name = image.name.clone();
            snapshotter.mount_node_image(*image).await.map(|(mountpoint, changed)| {
                info!(image = name, mountpoint = %mountpoint.display(), changed, "a node image is mounted");
                Answer::Mounted { mountpoint, changed }
            })
        }
        Request::Unmount { name } => {
            let shown = name.clone();
            snapshotter.unmount_node_image(name).await.map(|changed| {
                info!(image = shown, changed, "a node image is not to be mounted");
                Answer::Done { changed }
            })
        }
        Request::NodeImages => snapshotter.node_images().await.map(|images| Answer::NodeImages { images }),
    };
    answered.map_err(|error| {
        let kind = if matches!(error, Error::Set(_) | Error::NodeImage(_)) {
            ErrorKind::Invalid
        } else {
            ErrorKind::Failed
        };
        let message = describe(&error);
        warn!(message, "control request failed");
        Failure { kind, message }
    })
}
