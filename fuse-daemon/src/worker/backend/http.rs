//! A directory of blobs on an HTTP server, each named by its 64 hexadecimal digits, or by its digest as registries and upstream's
//! nydus-backend-proxy have it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use registry::client::{Client, Connection};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::{Backend, BackendError};
use crate::control::{BackendSpec, BlobId};

/// How often a request is sent that the server could not take or answer.
const ATTEMPTS: u32 = 3;

/// Before the second attempt; twice as long before the third.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Clone, Debug)]
pub struct HttpDirectoryBackend {
    /// To its path the digits of a blob are added.
    url: Url,
    client: reqwest::Client,
    /// Counts what is sent again.
    retries: Arc<AtomicU64>,
}

/// `HOST[:PORT]` of a URL, if it names a host.
pub(crate) fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// A directory's URL as digits of blobs are added to it: after a slash, or after the colon that it ends in, which is a digest's.
pub(crate) fn before_digits(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if url.ends_with(':') { url.to_owned() } else { format!("{url}/") }
}

/// The URL of a directory, to whose path digits of blobs are added; it names a host.
pub(super) fn directory(url: &str) -> Result<Url, BackendError> {
    let invalid = |reason| BackendError::Url { url: url.to_owned(), reason };
    let parsed = Url::parse(&before_digits(url));
    let parsed = parsed.map_err(|error| invalid(error.to_string()))?;
    match parsed.scheme() {
        _ if parsed.host_str().is_none() => Err(invalid("it names no host".to_owned())),
        "http" | "https" => Ok(parsed),
        other => Err(invalid(format!("scheme {other:?}; expected http or https"))),
    }
}

impl HttpDirectoryBackend {
    /// Reads what is under `url`, with the connection settings that `client` has for its host.
    ///
    /// # Errors
    ///
    /// [`BackendError`]: that is no URL of `http` or `https`, or the settings for its host are not valid.
    pub fn new(client: &Client, url: &str) -> Result<Self, BackendError> {
        let parsed = directory(url)?;
        let host = host_of(&parsed).unwrap_or_default();
        let client = client.http(&host, parsed.scheme() == "https")?;
        Ok(Self { client, url: parsed, retries: Arc::default() })
    }

    /// As [`new`](Self::new), over a connection that somebody else has the settings of, with what is sent again counted in `retries`.
    ///
    /// # Errors
    ///
    /// As there.
    pub(super) fn over(
        client: &Client,
        url: &str,
        connection: Connection,
        retries: Arc<AtomicU64>,
    ) -> Result<Self, BackendError> {
        Ok(Self { client: client.http_over(url, connection)?, url: directory(url)?, retries })
    }

    /// The answer with a status out of `good`; what may go away by itself is tried again.
    async fn ask(
        &self,
        method: Method,
        blob: BlobId,
        good: &[StatusCode],
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, BackendError> {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{}", self.url.path(), blob.0));
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let request = with(self.client.request(method.clone(), url.clone()));
            let (error, may_pass) = match request.send().await {
                Ok(response) if good.contains(&response.status()) => return Ok(response),
                Ok(response) => {
                    let status = response.status();
                    let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                    (self.failed(blob, Some(status), &format!("{status}; expected {}", good[0])), may_pass)
                }
                Err(error) => (self.failed(blob, None, &error.without_url().to_string()), true),
            };
            if !may_pass || attempt >= ATTEMPTS {
                return Err(error);
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop has no end")
    }

    fn failed(&self, blob: BlobId, status: Option<StatusCode>, reason: &str) -> BackendError {
        BackendError::Http { url: format!("{}{}", self.url, blob.0), status, reason: reason.to_owned() }
    }

    async fn open(
        self,
        blob: BlobId,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, BackendError>>, BackendError> {
        let wanted = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let with = |request: RequestBuilder| request.header(RANGE, wanted.as_str());
        // nydus-backend-proxy sends 200 with a part. Whether it is the right one, its Content-Range says in either case.
        let good = [StatusCode::PARTIAL_CONTENT, StatusCode::OK];
        let response = self.ask(Method::GET, blob, &good, with).await?;
        let expected = format!("bytes {}-{}/", range.start, range.end.saturating_sub(1));
        let found = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        if !found.is_some_and(|found| found.starts_with(&expected)) {
            let found = found.unwrap_or("none");
            return Err(self.failed(blob, None, &format!("Content-Range: {found}; expected {expected}…")));
        }
        let mut left = range.end - range.start;
        // What reads it keeps all of it: an answer has no end if a server will have it so.
        let piece = move |piece: Result<Bytes, reqwest::Error>| {
            let piece = piece.map_err(|error| self.failed(blob, None, &error.without_url().to_string()))?;
            let rest = left.checked_sub(piece.len() as u64);
            left = rest.ok_or_else(|| self.failed(blob, None, &format!("more bytes than {expected}…")))?;
            Ok(piece)
        };
        Ok(response.bytes_stream().map(piece).boxed())
    }
}

impl Backend for HttpDirectoryBackend {
    fn name(&self) -> String {
        BackendSpec::HttpDirectory { url: self.url.to_string() }.to_string()
    }

    fn size(&self, blob: BlobId) -> BoxFuture<'_, Result<u64, BackendError>> {
        let size = async move {
            let response = self.ask(Method::HEAD, blob, &[StatusCode::OK], |request| request).await?;
            let length = response.headers().get(reqwest::header::CONTENT_LENGTH);
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            length.ok_or_else(|| self.failed(blob, None, "no Content-Length"))
        };
        size.boxed()
    }

    fn read(&self, blob: BlobId, range: Range<u64>) -> BoxStream<'static, Result<Bytes, BackendError>> {
        if range.is_empty() {
            return futures::stream::empty().boxed();
        }
        futures::stream::once(self.clone().open(blob, range)).try_flatten().boxed()
    }
}

#[cfg(test)]
mod tests {
    use registry::client::ClientConfig;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_answer_ends_where_the_range_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/blobs", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut reader, _) = listener.accept().await.unwrap();
            assert_ne!(reader.read(&mut [0; 1024]).await.unwrap(), 0);
            let head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-99/1000\r\nTransfer-Encoding: chunked\r\n\r\n";
            let mut sent = reader.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                sent = reader.write_all(format!("40\r\n{:64}\r\n", "").as_bytes()).await;
            }
        });
        let client = Client::new(ClientConfig::default()).unwrap();
        let backend = HttpDirectoryBackend::new(&client, &url).unwrap();
        let read: Result<Vec<Bytes>, _> =
            backend.read(BlobId(rafs::digest::Digest([7; 32])), 0..100).try_collect().await;
        let error = read.unwrap_err().to_string();
        assert!(error.contains("more bytes than bytes 0-99/"), "{error}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_not_the_range_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/blobs", listener.local_addr().unwrap());
        let ranges = ["", "Content-Range: bytes 1-99/1000\r\n"];
        let server = tokio::spawn(async move {
            for range in ranges {
                let (mut reader, _) = listener.accept().await.unwrap();
                assert_ne!(reader.read(&mut [0; 1024]).await.unwrap(), 0);
                let head =
                    format!("HTTP/1.1 200 OK\r\n{range}Connection: close\r\nContent-Length: 100\r\n\r\n");
                reader.write_all(format!("{head}{:100}", "").as_bytes()).await.unwrap();
            }
        });
        let client = Client::new(ClientConfig::default()).unwrap();
        let backend = HttpDirectoryBackend::new(&client, &url).unwrap();
        for found in ["none", "bytes 1-99/1000"] {
            let read: Result<Vec<Bytes>, _> =
                backend.read(BlobId(rafs::digest::Digest([7; 32])), 0..100).try_collect().await;
            let error = read.unwrap_err().to_string();
            assert!(error.contains(&format!("Content-Range: {found}; expected bytes 0-99/")), "{error}");
        }
        server.await.unwrap();
    }
}
