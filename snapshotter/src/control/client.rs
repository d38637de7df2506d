//! The client of the snapshotter's control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::service::control;

use super::protocol::{Answer, ErrorKind, NodeImageStatus, Request, SetStatus, SnapshotterProtocol};
use super::{ImageSet, NodeImage, NodeImageError, SetError};

/// How long a request may take: the largest set is on disk within it.
const DEADLINE: Duration = Duration::from_secs(60);
/// The same of one that mounts: longer than the snapshotter's own patience, by default a minute.
const MOUNT_DEADLINE: Duration = Duration::from_secs(90);

/// Why a request to the snapshotter failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The set is not sound; it was not sent.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The node image is not sound; it was not sent.
    #[error(transparent)]
    NodeImage(#[from] NodeImageError),
    /// The snapshotter did not do it, or nobody knows.
    #[error(transparent)]
    Control(#[from] control::ClientError<ErrorKind>),
}

impl ClientError {
    /// Whether nobody listens on the socket: the snapshotter is not running, or is too old for it.
    pub fn is_not_running(&self) -> bool {
        matches!(self, Self::Control(error) if error.is_not_running())
    }
}

/// Talks to a snapshotter. Holds no connection: each request makes one, so a client outlives restarts of the snapshotter.
#[derive(Clone, Debug)]
pub struct Client(control::Client<SnapshotterProtocol>);

impl Client {
    /// A client of the snapshotter whose control socket is `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(control::Client::new(socket, DEADLINE))
    }

    /// The snapshotter's socket.
    pub fn socket(&self) -> &Path {
        self.0.socket()
    }

    /// Has these images run as RAFS when they are pulled from now on, instead of what a set of the same name said. It is on disk
    /// when this returns: whether anything is otherwise than before.
    ///
    /// # Errors
    ///
    /// [`ClientError`], as from every method; nothing has changed then, but where the connection broke or the
    /// deadline passed, after which it may have. Repeating the call is harmless.
    pub async fn put(&self, set: &ImageSet) -> Result<bool, ClientError> {
        set.check()?;
        self.call_done(Request::Put(Box::new(set.clone()))).await
    }

    /// Has what only this set has pulled as it is from now on; what was pulled stays as it is. Whether there was such a set.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn remove(&self, name: &str) -> Result<bool, ClientError> {
        self.call_done(Request::Remove { name: name.to_owned() }).await
    }

    /// All sets, in order of their names.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn list(&self) -> Result<Vec<SetStatus>, ClientError> {
        match self.0.call(Request::List).await? {
            Answer::Sets { sets } => Ok(sets),
            other => Err(self.0.unexpected(&other).into()),
        }
    }

    /// Has an image mounted for the node itself, from now on and after each start, instead of one of its name. It serves, and that is on
    /// disk, when this returns: where it is mounted, and whether anything is otherwise than before.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; an image that was mounted under its name stays then. Repeating the call is harmless.
    pub async fn mount(&self, image: &NodeImage) -> Result<(PathBuf, bool), ClientError> {
        image.check()?;
        let client = control::Client::<SnapshotterProtocol>::new(self.socket(), MOUNT_DEADLINE);
        match client.call(Request::Mount(Box::new(image.clone()))).await? {
            Answer::Mounted { mountpoint, changed } => Ok((mountpoint, changed)),
            other => Err(client.unexpected(&other).into()),
        }
    }

    /// Has a node image unmounted, and its blobs freed unless others need them. Whether there was one of that name.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn unmount(&self, name: &str) -> Result<bool, ClientError> {
        self.call_done(Request::Unmount { name: name.to_owned() }).await
    }

    /// All node images, in order of their names.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn node_images(&self) -> Result<Vec<NodeImageStatus>, ClientError> {
        match self.0.call(Request::NodeImages).await? {
            Answer::NodeImages { images } => Ok(images),
            other => Err(self.0.unexpected(&other).into()),
        }
    }

    async fn call_done(&self, request: Request) -> Result<bool, ClientError> {
        match self.0.call(request).await? {
            Answer::Done { changed } => Ok(changed),
            other => Err(self.0.unexpected(&other).into()),
        }
    }
}
