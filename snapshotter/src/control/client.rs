//! The client of the snapshotter's control socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use service::line::{read_line, write_line};
use tokio::net::UnixStream;

use super::protocol::{
    Answer, Call, ErrorKind, LINE_LIMIT, OLDEST_VERSION, Reply, Request, SetStatus, VERSION,
};
use super::{ImageSet, SetError};

/// How long a request may take unless the caller says otherwise: the largest set is on disk within it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a request to the snapshotter failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The snapshotter does not run, or not with this socket.
    #[error("cannot connect to the snapshotter's control socket {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("connection to the snapshotter at {} broke", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("the snapshotter at {} did not answer within {deadline:?}", socket.display())]
    Deadline {
        /// The socket.
        socket: PathBuf,
        /// How long it was given.
        deadline: Duration,
    },
    /// The answer is no message of this version, or not one to this request.
    #[error("the snapshotter at {} answered what this client does not understand: {detail}", socket.display())]
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The set is not sound; it was not sent.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The set is too large to be sent.
    #[error("image set {name:?} is a message of {bytes} bytes, expected at most {LINE_LIMIT}")]
    TooLarge {
        /// The set.
        name: String,
        /// How large it is.
        bytes: usize,
    },
    /// The snapshotter could not do it.
    #[error("the snapshotter reports: {message}")]
    Snapshotter {
        /// What kind of failure it is.
        kind: ErrorKind,
        /// What happened.
        message: String,
    },
}

impl ClientError {
    /// Whether nobody listens on the socket: the snapshotter is not running, or is too old for it.
    pub fn is_not_running(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
    }
}

/// Talks to a snapshotter. Holds no connection: each request makes one, so a client outlives restarts of the snapshotter.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    deadline: Duration,
}

impl Client {
    /// A client of the snapshotter whose control socket is `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), deadline: DEADLINE }
    }

    /// The same client with another deadline for each request (default 60 seconds).
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The snapshotter's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has these images run as RAFS when they are pulled from now on, instead of what a set of the same name said. It is on disk
    /// when this returns: whether anything is otherwise than before.
    ///
    /// # Errors
    ///
    /// [`ClientError`], as from every method; nothing has changed then, but on [`ClientError::Deadline`] and
    /// [`ClientError::Broken`], after which it may have. Repeating the call is harmless.
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
        match self.call(Request::List).await? {
            Answer::Sets { sets } => Ok(sets),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn call_done(&self, request: Request) -> Result<bool, ClientError> {
        match self.call(request).await? {
            Answer::Done { changed } => Ok(changed),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn call(&self, request: Request) -> Result<Answer, ClientError> {
        let timed_out = |_| ClientError::Deadline { socket: self.socket.clone(), deadline: self.deadline };
        match tokio::time::timeout(self.deadline, self.exchange(request)).await.map_err(timed_out)?? {
            Answer::Error { kind, message } => Err(ClientError::Snapshotter { kind, message }),
            answer => Ok(answer),
        }
    }

    async fn exchange(&self, request: Request) -> Result<Answer, ClientError> {
        let name = match &request {
            Request::Put(set) => set.name.clone(),
            _ => String::new(),
        };
        let mut line = serde_json::to_vec(&Call { version: VERSION, oldest: Some(OLDEST_VERSION), request })
            .map_err(|error| self.protocol(format!("the request cannot be written as JSON: {error}")))?;
        line.push(b'\n');
        if line.len() > LINE_LIMIT {
            return Err(ClientError::TooLarge { name, bytes: line.len() });
        }
        let broken = |source| ClientError::Broken { socket: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        write_line(&stream, &line, None).await.map_err(broken)?;
        let (answer, _) = read_line(&stream, LINE_LIMIT).await.map_err(broken)?;
        if answer.last() != Some(&b'\n') {
            // The snapshotter ended.
            return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let reply: Reply =
            serde_json::from_slice(&answer).map_err(|error| self.protocol(error.to_string()))?;
        match reply.version {
            OLDEST_VERSION..=VERSION => Ok(reply.answer),
            other => Err(self.protocol(format!("version {other}, expected {OLDEST_VERSION} to {VERSION}"))),
        }
    }

    fn unexpected(&self, answer: &Answer) -> ClientError {
        self.protocol(format!("{answer:?} does not answer the request"))
    }

    fn protocol(&self, detail: String) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), detail }
    }
}
