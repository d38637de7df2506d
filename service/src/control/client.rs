//! The client's end.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

use super::{Answered, Call, Failure, Protocol, Reply, line, versions};
use crate::line::{read_line, write_line};

/// Why a request failed. `K` says what kind of failure the server reports.
#[derive(Debug, thiserror::Error)]
pub enum ClientError<K> {
    /// The server does not run, or not with this socket.
    #[error("cannot connect to the {server}'s control socket {}", socket.display())]
    Connect {
        /// Who should answer.
        server: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("connection to the {server} at {} broke", socket.display())]
    Broken {
        /// Who should answer.
        server: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the {server} at {} did not answer within {} s", socket.display(), deadline.as_secs_f32())]
    Deadline {
        /// Who should answer.
        server: &'static str,
        /// The socket.
        socket: PathBuf,
        /// How long it was given.
        deadline: Duration,
    },
    /// The request is too large; it was not sent.
    #[error("a request of {bytes} bytes is too large for the {server}: expected at most {limit}")]
    TooLarge {
        /// Who should answer.
        server: &'static str,
        /// How large it is.
        bytes: usize,
        /// How large one may be.
        limit: usize,
    },
    /// The answer is no message of this version, or not one to this request.
    #[error("the {server} at {} answered what this client does not understand: {detail}", socket.display())]
    Protocol {
        /// Who answered.
        server: &'static str,
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The server could not do it.
    #[error("the {server} reports: {message}")]
    Reported {
        /// Who reports.
        server: &'static str,
        /// What kind of failure it is.
        kind: K,
        /// What happened.
        message: String,
    },
}

impl<K> ClientError<K> {
    /// Whether nobody listens on the socket: the server is not running, or is too old to have one.
    pub fn is_not_running(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
    }
}

/// Talks to a server. Holds no connection: each request makes one, so a client outlives restarts of the server.
#[derive(Debug)]
pub struct Client<P> {
    socket: PathBuf,
    deadline: Duration,
    protocol: PhantomData<fn() -> P>,
}

impl<P> Clone for Client<P> {
    fn clone(&self) -> Self {
        Self { socket: self.socket.clone(), ..*self }
    }
}

impl<P: Protocol> Client<P> {
    /// A client of the server that listens on `socket`, and has `deadline` for each request.
    pub fn new(socket: impl Into<PathBuf>, deadline: Duration) -> Self {
        Self { socket: socket.into(), deadline, protocol: PhantomData }
    }

    /// The same client with another deadline for each request.
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The server's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the server answers to a request without a descriptor.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn call(&self, request: P::Request) -> Result<P::Answer, ClientError<P::Kind>> {
        self.call_with(request, None).await.map(|(answer, _)| answer)
    }

    /// What the server answers to a request that comes with a descriptor, or whose answer does.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn call_with(
        &self,
        request: P::Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(P::Answer, Option<OwnedFd>), ClientError<P::Kind>> {
        let exchange = self.exchange(request, descriptor);
        let timed_out = |_| ClientError::Deadline {
            server: P::SERVER,
            socket: self.socket.clone(),
            deadline: self.deadline,
        };
        let (answered, descriptor) =
            tokio::time::timeout(self.deadline, exchange).await.map_err(timed_out)??;
        match answered {
            Ok(answer) => Ok((answer, descriptor)),
            Err(Failure { kind, message }) => Err(ClientError::Reported { server: P::SERVER, kind, message }),
        }
    }

    async fn exchange(
        &self,
        request: P::Request,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(Answered<P>, Option<OwnedFd>), ClientError<P::Kind>> {
        let call = Call { version: P::VERSION, oldest: Some(P::OLDEST_VERSION), request };
        let call = line(&call)
            .map_err(|error| self.protocol(format!("the request cannot be written as JSON: {error}")))?;
        if call.len() > P::LINE_LIMIT {
            let (bytes, limit) = (call.len(), P::LINE_LIMIT);
            return Err(ClientError::TooLarge { server: P::SERVER, bytes, limit });
        }
        let broken = |source| ClientError::Broken { server: P::SERVER, socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| ClientError::Connect {
            server: P::SERVER,
            socket: self.socket.clone(),
            source,
        })?;
        write_line(&stream, &call, descriptor).await.map_err(broken)?;
        let (answer, descriptor) = read_line(&stream, P::LINE_LIMIT).await.map_err(broken)?;
        if answer.last() != Some(&b'\n') {
            return Err(if answer.len() < P::LINE_LIMIT {
                // The server ended.
                broken(io::ErrorKind::UnexpectedEof.into())
            } else {
                self.protocol(format!("{} bytes without an end of line", answer.len()))
            });
        }
        let reply: Reply<P::Answer, P::Kind> =
            serde_json::from_slice(&answer).map_err(|error| self.protocol(error.to_string()))?;
        if (P::OLDEST_VERSION..=P::VERSION).contains(&reply.version) {
            return Ok((reply.into_result(), descriptor));
        }
        let expected = versions(P::OLDEST_VERSION, P::VERSION);
        Err(self.protocol(format!("version {}, expected {expected}", reply.version)))
    }

    /// The error of an answer that is not one to the request.
    pub fn unexpected(&self, answer: &P::Answer) -> ClientError<P::Kind> {
        self.protocol(format!("{answer:?} does not answer the request"))
    }

    fn protocol(&self, detail: String) -> ClientError<P::Kind> {
        ClientError::Protocol { server: P::SERVER, socket: self.socket.clone(), detail }
    }
}
