//! The client of the control socket.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use service::control;

use super::protocol::{
    Answer, BackendSpec, BlobId, BootstrapRequest, CachedStatus, DaemonProtocol, ErrorKind, HandedOut,
    Handover, Kept, MountRequest, Removed, Request, Verified,
};
use super::status::{CacheTotals, Status, Summary};

/// How long a request may take unless the caller says otherwise: longer than the daemon's own wait for a busy mount.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a request to the daemon failed.
pub type ClientError = control::ClientError<ErrorKind>;

/// Talks to a daemon. Holds no connection: each request makes one, so a client outlives restarts of the daemon.
#[derive(Clone, Debug)]
pub struct Client(control::Client<DaemonProtocol>);

impl Client {
    /// A client of the daemon that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(control::Client::new(socket, DEADLINE))
    }

    /// The same client with another deadline for each request (default 30 seconds).
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self(self.0.with_deadline(deadline))
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        self.0.socket()
    }

    /// Mounts an image and returns once it serves. Repeating the call is harmless, and adds backends that are new; the same
    /// id with other content is [`ErrorKind::Conflict`].
    ///
    /// # Errors
    ///
    /// [`ClientError`], as from every method.
    pub async fn mount(&self, mount: &MountRequest) -> Result<(), ClientError> {
        self.call_done(Request::Mount(mount.clone())).await
    }

    /// Makes the file of a bootstrap, which is on disk when this returns. Repeating the call makes it again.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; [`ErrorKind::Bootstrap`] where what the backends have is not what it should be.
    pub async fn make_bootstrap(&self, request: &BootstrapRequest) -> Result<(), ClientError> {
        self.call_done(Request::MakeBootstrap(request.clone())).await
    }

    /// Adds backends to a mounted image; [`ErrorKind::Unknown`] if it is not mounted.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn add_backends(&self, id: &str, backends: &[BackendSpec]) -> Result<(), ClientError> {
        self.call_done(Request::AddBackends { id: id.to_owned(), backends: backends.to_vec() }).await
    }

    /// Unmounts; a busy mount is detached after a wait, and goes away with its last user. An unknown id is no error.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn umount(&self, id: &str) -> Result<(), ClientError> {
        self.call_done(Request::Umount { id: id.to_owned() }).await
    }

    /// What the daemon is and serves.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        match self.0.call(Request::Status).await? {
            Answer::Status(status) => Ok(status),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// The same without what has to be counted, as a sign of life. A daemon that does not know this request is asked for its status.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn summary(&self) -> Result<Summary, ClientError> {
        match self.0.call(Request::Summary).await {
            Ok(Answer::Summary(summary)) => Ok(summary),
            Ok(other) => Err(self.0.unexpected(&other)),
            Err(error) if is_not_known(&error) => self.status().await.map(Summary::from),
            Err(error) => Err(error),
        }
    }

    /// What the daemon's cache takes, if it says so. A daemon that does not know this request is asked for its status.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn cache_totals(&self) -> Result<Option<CacheTotals>, ClientError> {
        match self.0.call(Request::CacheTotals).await {
            Ok(Answer::CacheTotals(totals)) => Ok(Some(totals)),
            Ok(other) => Err(self.0.unexpected(&other)),
            Err(error) if is_not_known(&error) => Ok(self.status().await?.cache),
            Err(error) => Err(error),
        }
    }

    /// The paths of the files of a mount that were read, in the order in which each was first.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn trace(&self, id: &str) -> Result<Vec<String>, ClientError> {
        match self.0.call(Request::Trace { id: id.to_owned() }).await? {
            Answer::Trace { paths } => Ok(paths),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// Bytes on disk that the cache holds of each blob, in the order asked; 0 for unknown ones.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn usage(&self, blobs: &[BlobId]) -> Result<Vec<u64>, ClientError> {
        match self.0.call(Request::Usage { blobs: blobs.to_vec() }).await? {
            Answer::Usage { bytes } if bytes.len() == blobs.len() => Ok(bytes),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// Deletes blobs from the cache that no mount reads from.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn remove_blobs(&self, digests: &[BlobId]) -> Result<Removed, ClientError> {
        match self.0.call(Request::RemoveBlobs { digests: digests.to_vec() }).await? {
            Answer::Removed(removed) => Ok(removed),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// Frees all of the cache but `blobs` and what mounts use. Blobs in use that are not named are freed with their last
    /// mount, unless they are named or mounted again before.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn keep(&self, blobs: &[BlobId]) -> Result<Kept, ClientError> {
        match self.0.call(Request::Keep { blobs: blobs.to_vec() }).await? {
            Answer::Kept(kept) => Ok(kept),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// What the cache holds, in order of blobs.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn cached(&self) -> Result<Vec<CachedStatus>, ClientError> {
        match self.0.call(Request::Cached).await? {
            Answer::Cached { blobs } => Ok(blobs),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// Frees all of the cache that no mount uses and that is not pinned.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn prune(&self) -> Result<Kept, ClientError> {
        match self.0.call(Request::Prune).await? {
            Answer::Kept(kept) => Ok(kept),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// Keeps blobs from being pruned or giving way to others, or no longer.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn pin(&self, blobs: &[BlobId], pinned: bool) -> Result<(), ClientError> {
        self.call_done(Request::Pin { blobs: blobs.to_vec(), pinned }).await
    }

    /// Verifies all cached chunks of blobs, or of all if none are named. Takes as long as it takes to read them.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn verify(&self, blobs: &[BlobId]) -> Result<Verified, ClientError> {
        match self.0.call(Request::Verify { blobs: blobs.to_vec() }).await? {
            Answer::Verified(verified) => Ok(verified),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// What another daemon needs to go on serving a mount, should this one end; and the mount's descriptor, which keeps it
    /// alive until then.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn handover(&self, id: &str) -> Result<(Handover, OwnedFd), ClientError> {
        match self.0.call_with(Request::Handover { id: id.to_owned() }, None).await? {
            (Answer::Handover(handover), Some(descriptor)) => Ok((handover, descriptor)),
            (other, _) => Err(self.0.unexpected(&other)),
        }
    }

    /// Has the daemon go on serving a mount of one that has ended. Repeating the call is harmless.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn adopt(&self, handover: &Handover, descriptor: BorrowedFd<'_>) -> Result<(), ClientError> {
        match self.0.call_with(Request::Adopt(handover.clone()), Some(descriptor)).await? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(self.0.unexpected(&other)),
        }
    }

    /// Has repositories read so from now on.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn hand_out(&self, accesses: &[HandedOut]) -> Result<(), ClientError> {
        self.call_done(Request::HandOut { accesses: accesses.to_vec() }).await
    }

    /// The repositories whose credentials were refused, as soon as there are some; none after `wait`, which is to be shorter
    /// than the client's deadline.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn renewals(&self, wait: Duration) -> Result<Vec<String>, ClientError> {
        match self.0.call(Request::Renewals { wait_seconds: wait.as_secs() }).await? {
            Answer::Renewals { repositories } => Ok(repositories),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// Asks the daemon to end. It does so only if the returned list, of mounts that are in use, is empty.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn shutdown(&self) -> Result<Vec<String>, ClientError> {
        match self.0.call(Request::Shutdown).await? {
            Answer::Shutdown { in_use } => Ok(in_use),
            other => Err(self.0.unexpected(&other)),
        }
    }

    /// Has the daemon make place for the program that is at its place now: the version of that. It ends then, and leaves its
    /// mounts to whoever holds them.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: the daemon goes on. That program would not work, or nobody holds a mount.
    pub async fn upgrade(&self) -> Result<String, ClientError> {
        match self.0.call(Request::Upgrade).await? {
            Answer::Upgrade { version } => Ok(version),
            other => Err(self.0.unexpected(&other)),
        }
    }

    async fn call_done(&self, request: Request) -> Result<(), ClientError> {
        match self.0.call(request).await? {
            Answer::Done => Ok(()),
            other => Err(self.0.unexpected(&other)),
        }
    }
}

/// Whether a daemon refused a request without values, as one does that is older than it.
fn is_not_known(error: &ClientError) -> bool {
    matches!(error, ClientError::Reported { kind: ErrorKind::Invalid, .. })
}
