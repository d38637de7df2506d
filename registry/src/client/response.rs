//! An answer of a registry, read under deadlines.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Url;

use super::error::{Error, RegistryMessage, Target};
use super::transport::Exchange;

/// The most that is read of an error's text.
const ERROR_LIMIT_BYTES: usize = 64 << 10;

/// An answer whose body is still to be read.
pub(super) struct Response {
    inner: reqwest::Response,
    target: Target,
    idle: Duration,
    /// Bytes given back by [`Response::unread`].
    pending: Option<Bytes>,
}

impl Response {
    pub(super) fn new(inner: reqwest::Response, target: Target, idle: Duration) -> Self {
        Self { inner, target, idle, pending: None }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.inner.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    pub(super) fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// The announced length of the body; for HEAD that of the body there would be.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH).and_then(|length| length.parse().ok())
    }

    /// The absolute `Location`, whose query belongs to it.
    pub(super) fn location(&self) -> Result<Url, Error> {
        let text = self
            .header(LOCATION)
            .ok_or_else(|| Error::protocol(&self.target, "the answer has no Location"))?;
        let asked = self.inner.url();
        let mut url =
            asked.join(text).map_err(|e| Error::protocol(&self.target, format!("Location {text}: {e}")))?;
        if asked.scheme() == "https" && url.scheme() == "http" && url.host() == asked.host() {
            // A registry behind a proxy that ends TLS does not know that it is reached by HTTPS.
            let changed = url.set_scheme("https").and_then(|()| url.set_port(asked.port()));
            changed.map_err(|()| {
                Error::protocol(&self.target, format!("Location {text} cannot be reached by HTTPS"))
            })?;
        }
        Ok(url)
    }

    /// The next part of the body, `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(bytes) = self.pending.take() {
            return Ok(Some(bytes));
        }
        match tokio::time::timeout(self.idle, self.inner.chunk()).await {
            Ok(result) => result.map_err(|e| Error::connection(&self.target, e)),
            Err(_) => Err(Error::Stalled { target: Box::new(self.target.clone()), after: self.idle }),
        }
    }

    /// Puts `bytes` before the rest of the body.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.pending = Some(bytes);
    }

    /// The whole body, which must not be longer than `limit_bytes`.
    pub(super) async fn body(mut self, limit_bytes: usize) -> Result<Bytes, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > limit_bytes {
                return Err(Error::protocol(
                    &self.target,
                    format!("the answer is longer than {limit_bytes} bytes"),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }

    /// This answer if its status is one of `good`, else the error it stands for.
    pub(super) async fn expect(self, good: &[StatusCode], advice: &str) -> Result<Self, Error> {
        if good.contains(&self.status()) { Ok(self) } else { Err(self.into_error(advice).await) }
    }

    /// Whether the same request may well succeed later.
    pub(super) fn is_transient_failure(&self) -> bool {
        let status = self.status();
        status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
    }

    /// The error that this answer stands for.
    pub(super) async fn into_error(mut self, advice: &str) -> Error {
        let (status, target) = (self.status(), Box::new(self.target.clone()));
        let retry_after =
            self.header(RETRY_AFTER).and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let mut body = Vec::new();
        // The status is the error; a body that breaks off only costs its words.
        while let Ok(Some(chunk)) = self.chunk().await
            && body.len() < ERROR_LIMIT_BYTES
        {
            body.extend_from_slice(&chunk);
        }
        let message = RegistryMessage::parse(&body);
        Error::Status { target, status, message, advice: advice.to_owned(), retry_after }
    }

    /// Where `exchange` is to be sent instead, if the answer says so. What is not a read is sent on only where its
    /// method and body stay as they are (307, 308).
    pub(super) fn redirect(&self, exchange: &Exchange) -> Option<Result<Url, Error>> {
        let read = exchange.method == Method::GET || exchange.method == Method::HEAD;
        let moved = match self.status().as_u16() {
            307 | 308 => true,
            301..=303 => read,
            _ => false,
        };
        moved.then(|| self.location()).map(|location| {
            let to = location?;
            if !read && self.inner.url().scheme() == "https" && to.scheme() != "https" {
                let host = to.host_str().unwrap_or_default();
                let reason = format!("refused to send it on to {host}, which is reached without HTTPS");
                return Err(Error::protocol(&self.target, reason));
            }
            Ok(to)
        })
    }

    /// Whether another host than the registry answered.
    pub(super) fn is_redirected(&self) -> bool {
        self.target.redirected_to.is_some()
    }
}
