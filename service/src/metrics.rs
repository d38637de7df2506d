//! Metrics over HTTP, in the text format of OpenMetrics that Prometheus reads. Off unless an address is configured.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::TcpAddress;

/// Where the metrics are.
const PATH: &str = "/metrics";

/// The format's media type, with its version.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A scrape takes a few milliseconds; who sends nothing for so long goes.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// The longest that one connection lasts. Prometheus opens another.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(300);

/// Connections at once: a few scrapers have one each.
const CONNECTIONS: usize = 16;

/// Pause after a failed accept, which mostly means that no file descriptor is free.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What is scraped.
pub trait Scraped: Send + Sync + 'static {
    /// What is encoded for a scrape.
    fn registry(&self) -> &Registry;

    /// Called before each scrape: brings what has to be waited for, which no collector can. Has a deadline of its own, within that of
    /// Prometheus (10 s).
    fn refresh(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

impl Scraped for Registry {
    fn registry(&self) -> &Registry {
        self
    }
}

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {address}: {error}")]
pub struct MetricsError {
    address: SocketAddr,
    error: io::Error,
}

/// A listener for scrapes.
#[derive(Debug)]
pub struct MetricsListener {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsListener {
    /// Listens at `address`; port 0 is any free one.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on.
    pub async fn bind(address: TcpAddress) -> Result<Self, MetricsError> {
        let failed = |error| MetricsError { address: address.0, error };
        let listener = TcpListener::bind(address.0).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers scrapes with what `scraped` holds then, until `stop`.
    pub async fn serve<S: Scraped>(self, scraped: Arc<S>, stop: CancellationToken) {
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    // More than a few scrapers are none: they are closed at once.
                    let Ok(permit) = Arc::clone(&free).try_acquire_owned() else { continue };
                    let (scraped, stop) = (Arc::clone(&scraped), stop.clone());
                    tokio::spawn(async move {
                        stop.run_until_cancelled(connection(stream, scraped)).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a scrape");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
}

async fn connection<S: Scraped>(stream: TcpStream, scraped: Arc<S>) {
    let service = service_fn(move |request| {
        let scraped = Arc::clone(&scraped);
        let (head, _): (_, Incoming) = Request::into_parts(request);
        async move { Ok::<_, Infallible>(answer(&head, &*scraped).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(CONNECTION_DEADLINE, served).await {
        tracing::debug!(%error, "a scrape broke off");
    }
}

async fn answer<S: Scraped>(head: &Parts, scraped: &S) -> Response<Full<Bytes>> {
    let mut text = String::new();
    let (status, media_type) = if head.uri.path() != PATH {
        text.push_str("metrics are at /metrics\n");
        (StatusCode::NOT_FOUND, "text/plain")
    } else if head.method != Method::GET && head.method != Method::HEAD {
        (StatusCode::METHOD_NOT_ALLOWED, "text/plain")
    } else {
        scraped.refresh().await;
        match prometheus_client::encoding::text::encode(&mut text, scraped.registry()) {
            Ok(()) => (StatusCode::OK, MEDIA_TYPE),
            Err(error) => {
                tracing::warn!(%error, "metrics cannot be written");
                (StatusCode::INTERNAL_SERVER_ERROR, "text/plain")
            }
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_scrape_shows_what_is_counted_then_and_nothing_else_is_there() {
        let (mut registry, counter) = (Registry::default(), Counter::<u64>::default());
        registry.register("things", "Things that were seen", counter.clone());
        let listener = MetricsListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stop) = (listener.address(), CancellationToken::new());
        let serving = tokio::spawn(listener.serve(Arc::new(registry), stop.clone()));
        for expected in ["things_total 0", "things_total 1"] {
            let answer = ask(address, "GET /metrics").await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(expected), "{answer}");
            assert!(answer.contains("openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
            counter.inc();
        }
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /metrics").await.starts_with("HTTP/1.1 405 "));
        // Those who say nothing keep nobody out, and more than there is room for are closed.
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 4 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut last = silent.pop().unwrap();
        assert_eq!(last.read(&mut [0; 1]).await.unwrap(), 0);
        drop(silent);
        stop.cancel();
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let first = MetricsListener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = MetricsListener::bind(TcpAddress(first.address())).await.unwrap_err().to_string();
        assert!(error.contains(&first.address().to_string()), "{error}");
    }
}
