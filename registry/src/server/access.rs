//! One line for each request, when the last byte of its answer is out: for people in the log, for programs in
//! a file of JSON lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use serde::{Deserialize, Serialize};

use super::body::Body;

/// A line of the access log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    /// The HTTP method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The answer's status.
    pub status: u16,
    /// The request's `Range`.
    pub range: Option<String>,
    /// Bytes of the answer's body that were handed to the connection.
    pub bytes_sent: u64,
    /// Bytes of the request's body that were read.
    pub bytes_received: u64,
    /// From the request's head to the answer's last byte.
    pub milliseconds: u64,
    /// `User-Agent`.
    pub agent: Option<String>,
}

/// The file of JSON lines.
#[derive(Debug, Default)]
pub(super) struct AccessLog(Option<Mutex<File>>);

impl AccessLog {
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().create(true).append(true).open(path).map(Mutex::new);
        path.map(open).transpose().map(Self)
    }

    fn write(&self, record: &AccessRecord) {
        let AccessRecord { method, path, status, bytes_sent, bytes_received, milliseconds, .. } = record;
        let range = record.range.as_deref().unwrap_or_default();
        tracing::info!(%method, %path, status, %range, bytes_sent, bytes_received, milliseconds, "request");
        let Some(file) = &self.0 else { return };
        let Ok(mut line) = serde_json::to_vec(record) else { return };
        line.push(b'\n');
        // One write a line: readers of the file never see half of one.
        let result = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).write_all(&line);
        if let Err(error) = result {
            tracing::error!(%error, "cannot write to the access log");
        }
    }
}

/// What becomes a record: written when this is dropped, with the answer's body.
pub(super) struct Pending {
    pub(super) log: Arc<AccessLog>,
    pub(super) record: AccessRecord,
    pub(super) started: Instant,
    pub(super) received: Arc<AtomicU64>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.record.bytes_received = self.received.load(Ordering::Relaxed);
        self.record.milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.log.write(&self.record);
    }
}

/// An answer's body that counts what is sent of it.
pub(super) struct Logged {
    pub(super) body: Body,
    pub(super) pending: Pending,
}

impl hyper::body::Body for Logged {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.pending.record.bytes_sent += frame.data_ref().map_or(0, Bytes::len) as u64;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
