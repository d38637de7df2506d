//! Pushing a blob while it is made: pieces go out while the next is filled, and outlive broken connections.

mod session;
mod spool;

use bytes::{Bytes, BytesMut};
use http::Method;
use reqwest::Url;
use tokio_util::task::AbortOnDropHandle;

use self::session::Session;
#[cfg(test)]
pub(super) use self::session::received_bytes;
use super::{Client, Error, Target};
use crate::digest::Digest;
use crate::reference::Repository;

/// A blob on its way to a registry.
///
/// Dropping it stops sending, and the registry is told in the background to forget what came: [`Client::uploads_ended`] waits
/// for that. [`Upload::cancel`] does it at once.
pub struct Upload {
    target: Target,
    piece_bytes: usize,
    buffer: BytesMut,
    /// The memory of a piece that has arrived, for the one after the next: that of a piece is so much that it would be new each time.
    spare: BytesMut,
    /// Bytes handed on to the session before those in the buffer.
    dispatched: u64,
    state: SessionState,
}

/// Where the session is: here, or in the task that sends a piece.
enum SessionState {
    Idle(Box<Session>),
    Sending(AbortOnDropHandle<Result<Sent, Error>>),
    Failed,
}

/// A piece that has arrived.
struct Sent {
    session: Box<Session>,
    piece: Bytes,
}

impl Client {
    /// Begins the upload of a blob whose digest need not be known yet.
    pub async fn begin_upload(&self, repository: &Repository) -> Result<Upload, Error> {
        let session = Session::begin(self.clone(), repository.clone()).await?;
        Ok(Upload {
            target: Target::new(Method::PATCH, repository, "blob upload"),
            piece_bytes: session.piece_bytes(),
            buffer: BytesMut::new(),
            spare: BytesMut::new(),
            dispatched: 0,
            state: SessionState::Idle(Box::new(session)),
        })
    }

    /// Tells the registry that the upload at `location` will not be finished. Failure is only noted: the registry
    /// clears it away by itself some day.
    pub(super) async fn abandon_upload(&self, repository: &Repository, location: Url) {
        session::abandon(self, repository, location).await;
    }
}

impl Upload {
    /// Adds `data`. Returns at once while there is room, else when the piece before the last has arrived.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), Error> {
        while !data.is_empty() {
            if self.buffer.capacity() == 0 {
                self.buffer.reserve(self.piece_bytes);
            }
            let take = data.len().min(self.piece_bytes - self.buffer.len());
            self.buffer.extend_from_slice(&data.split_to(take));
            if self.buffer.len() == self.piece_bytes {
                self.dispatch().await?;
            }
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.dispatched + self.buffer.len() as u64
    }

    /// Sends what is left, has the registry check the blob against `digest` and store it, and returns its size.
    pub async fn finish(mut self, digest: &Digest) -> Result<u64, Error> {
        let session = self.settle().await?;
        let size = self.written();
        session.finish(self.dispatched, self.buffer.freeze(), digest).await?;
        Ok(size)
    }

    /// Stops, and tells the registry to forget what came.
    pub async fn cancel(mut self) {
        match std::mem::replace(&mut self.state, SessionState::Failed) {
            SessionState::Idle(session) => session.abandon().await,
            SessionState::Sending(task) => {
                // The piece on its way is let go through: its answer names the place to cancel.
                if let Ok(Ok(sent)) = task.await {
                    sent.session.abandon().await;
                }
            }
            SessionState::Failed => {}
        }
    }

    async fn dispatch(&mut self) -> Result<(), Error> {
        let session = self.settle().await?;
        let piece = std::mem::replace(&mut self.buffer, std::mem::take(&mut self.spare)).freeze();
        let start = self.dispatched;
        self.dispatched += piece.len() as u64;
        let sending = async move { Ok(Sent { session: session.send(start, &piece).await?, piece }) };
        self.state = SessionState::Sending(AbortOnDropHandle::new(tokio::spawn(sending)));
        Ok(())
    }

    /// The session, once nothing is on its way any more.
    async fn settle(&mut self) -> Result<Box<Session>, Error> {
        match std::mem::replace(&mut self.state, SessionState::Failed) {
            SessionState::Idle(session) => Ok(session),
            SessionState::Sending(task) => {
                let ended = |e| Error::protocol(&self.target, format!("the sending task ended: {e}"));
                let Sent { session, piece } = task.await.map_err(ended)??;
                // Where a connection still has a part of it, there is none to spare.
                self.spare = piece.try_into_mut().unwrap_or_default();
                self.spare.clear();
                Ok(session)
            }
            SessionState::Failed => Err(Error::protocol(&self.target, "the upload has failed before")),
        }
    }
}
