//! A request as the handlers see it: checked route, query, and a body that cannot stall for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AsHeaderName, EXPECT};
use http::request::Parts;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use reqwest::Url;

use super::error::{Code, Failure};

/// The body of a request.
pub(super) struct RequestBody {
    incoming: Incoming,
    received: Arc<AtomicU64>,
    patience: Duration,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, received: Arc<AtomicU64>, patience: Duration) -> Self {
        Self { incoming, received, patience }
    }

    /// Whether nothing will come (any more).
    pub(super) fn is_empty(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// The next bytes, `None` at the end. A client that goes away or sends nothing for too long is an error.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = match tokio::time::timeout(self.patience, self.incoming.frame()).await {
                Err(_) => return Err(Failure::Body(format!("nothing came for {:?}", self.patience))),
                Ok(None) => return Ok(None),
                Ok(Some(Err(e))) => return Err(Failure::Body(e.to_string())),
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers carry nothing for us.
            if let Ok(data) = frame.into_data() {
                self.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                return Ok(Some(data));
            }
        }
    }

    /// The whole body, refused with `too_large` beyond `limit_bytes`.
    pub(super) async fn collect(&mut self, limit_bytes: usize, too_large: Code) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            if all.len() + bytes.len() > limit_bytes {
                return Err(Failure::new(too_large, format!("more than {limit_bytes} bytes")));
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// Reads and drops up to `limit_bytes`, behind an answer that is on its way out: a client which is still sending gets
    /// to see it instead of a connection reset.
    pub(super) async fn drain(mut self, limit_bytes: u64) {
        let mut left = limit_bytes;
        while left > 0 {
            match self.next().await {
                Ok(Some(bytes)) => left = left.saturating_sub(bytes.len() as u64),
                _ => return,
            }
        }
    }
}

/// The head of a request, with the parameters of its query.
pub(super) struct Head {
    parts: Parts,
    query: Vec<(String, String)>,
}

impl Head {
    pub(super) fn new(parts: Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        // Any URL does: only the query's decoding is needed.
        let url = Url::parse(&format!("http://query/?{query}"));
        let query = url.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default();
        Self { parts, query }
    }

    pub(super) fn method(&self) -> &http::Method {
        &self.parts.method
    }

    pub(super) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The first value of the query's parameter `name`.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Whether the client waits to be told that its body is wanted.
    pub(super) fn expects_continue(&self) -> bool {
        self.header(EXPECT).is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    }

    /// Whether this is GET or HEAD.
    pub(super) fn is_read(&self) -> bool {
        matches!(*self.method(), http::Method::GET | http::Method::HEAD)
    }
}
