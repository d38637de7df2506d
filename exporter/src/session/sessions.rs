//! The sessions that are open, for calls of our own to their clients.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    open: Mutex<OpenClients>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct OpenClients {
    /// The clients by the ids of their sessions, each with its number among all.
    by_id: HashMap<String, (u64, SessionClient)>,
    registered: u64,
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
    fn lock(&self) -> MutexGuard<'_, OpenClients> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a session known until the result is dropped. A client that opens a session again, its old connection not being gone yet,
    /// is reached by the new one from then on.
    pub(crate) fn register(&self, id: &str, client: SessionClient) -> OpenSession<'_> {
        let gone = client.gone.clone();
        let mut open = self.lock();
        open.registered += 1;
        let number = open.registered;
        open.by_id.insert(id.to_owned(), (number, client));
        drop(open);
        self.changed.send_replace(());
        OpenSession { sessions: self, id: id.to_owned(), number, gone }
    }

    fn find(&self, id: &str) -> Option<SessionClient> {
        self.lock().by_id.get(id).map(|(_, client)| client.clone())
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
    number: u64,
    gone: CancellationToken,
}

impl Drop for OpenSession<'_> {
    fn drop(&mut self) {
        let mut open = self.sessions.lock();
        if open.by_id.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            open.by_id.remove(&self.id);
        }
        drop(open);
        self.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn client() -> SessionClient {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move { h2::server::handshake(far).await.map(drop) });
        let (streams, _connection) = h2::client::handshake(near).await.unwrap();
        SessionClient { streams, request: Request::new(()), gone: CancellationToken::new() }
    }

    #[tokio::test]
    async fn a_session_that_is_opened_again_outlives_its_old_connection() {
        let sessions = Sessions::default();
        let (old, new) = (client().await, client().await);
        let (old_gone, new_gone) = (old.gone.clone(), new.gone.clone());
        let old = sessions.register("id", old);
        let new = sessions.register("id", new);
        drop(old);
        assert!(old_gone.is_cancelled() && !new_gone.is_cancelled());
        assert!(sessions.client("id").await.is_ok());
        drop(new);
        assert!(new_gone.is_cancelled() && sessions.find("id").is_none());
    }
}
