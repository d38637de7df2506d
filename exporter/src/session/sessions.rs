//! The sessions that are open, for calls of our own to their clients.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::grpc::{Code, Status};

/// A client opens its session about when it sends its Solve, in any order; buildkitd waits as long.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(5);

/// All open sessions, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<String, SessionClient>>,
    changed: watch::Sender<()>,
}

/// The BuildKit client of a session.
#[derive(Clone, Debug)]
pub(crate) struct SessionClient {
    /// Opens streams to it.
    pub(crate) streams: SendRequest<Bytes>,
    /// The request by which it opened the session: its headers say what it serves.
    pub(crate) request: Request<()>,
    /// Set when it has left.
    pub(crate) gone: CancellationToken,
}

impl Sessions {
    /// Makes a session known until the result is dropped.
    pub(crate) fn register(&self, id: &str, client: SessionClient) -> OpenSession<'_> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), client);
        self.changed.send_replace(());
        OpenSession { sessions: self, id: id.to_owned() }
    }

    fn find(&self, id: &str) -> Option<SessionClient> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// The client of session `id`, which may be about to open it.
    pub(crate) async fn client(&self, id: &str) -> Result<SessionClient, Status> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some(client) = self.find(id) {
                    return client;
                }
                // The sender lives as long as this.
                let _ = changed.changed().await;
            }
        };
        let absent = |_| {
            let seconds = ARRIVAL_DEADLINE.as_secs();
            let message =
                format!("expected session {id:?} of the build's client, which is not open after {seconds} s");
            Status::new(Code::Unavailable, message)
        };
        timeout(ARRIVAL_DEADLINE, wait).await.map_err(absent)
    }
}

/// A session's entry; dropping it removes it.
#[derive(Debug)]
pub(crate) struct OpenSession<'a> {
    sessions: &'a Sessions,
    id: String,
}

impl Drop for OpenSession<'_> {
    fn drop(&mut self) {
        let client = self.sessions.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        if let Some(client) = client {
            client.gone.cancel();
        }
    }
}
