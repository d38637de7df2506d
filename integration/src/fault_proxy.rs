//! An HTTP proxy in front of a registry that fails on purpose.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// How a request is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Answer with this status without asking the registry.
    Status(u16),
    /// Take the request and never answer.
    Stall,
    /// Close the connection once this many bytes of the request's body have come.
    CutUpload(u64),
    /// Close the connection once this many bytes of the answer's body have gone.
    CutDownload(u64),
}

/// Which requests fail, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The method; any if absent.
    pub method: Option<&'static str>,
    /// What the path must contain.
    pub path_contains: String,
    /// How such requests fail.
    pub failure: Failure,
    /// How many requests fail before the rule is used up.
    pub times: u64,
}

impl Rule {
    /// Every request whose path contains `path_contains` fails.
    pub fn always(path_contains: &str, failure: Failure) -> Self {
        Self { method: None, path_contains: path_contains.to_owned(), failure, times: u64::MAX }
    }

    /// Only requests with this method.
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Only the first such request.
    pub fn once(mut self) -> Self {
        self.times = 1;
        self
    }
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    rules: Mutex<Vec<Rule>>,
    failed: AtomicU64,
}

impl Shared {
    fn failure_for<B>(&self, request: &Request<B>) -> Option<Failure> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let path = request.uri().path();
        let rule = rules.iter_mut().find(|rule| {
            rule.times > 0
                && path.contains(&rule.path_contains)
                && rule.method.is_none_or(|method| request.method() == method)
        })?;
        rule.times -= 1;
        self.failed.fetch_add(1, Ordering::SeqCst);
        Some(rule.failure)
    }
}

/// A running proxy. Dropping it closes all its connections.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl FaultProxy {
    /// Starts a proxy in front of `upstream` that at first lets everything through.
    pub fn start(upstream: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener =
            runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("binding the fault proxy")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { upstream, rules: Mutex::default(), failed: AtomicU64::new(0) });
        runtime.spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the rules; the first that matches a request applies.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        *self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// How many requests have been made to fail.
    pub fn failed_requests(&self) -> u64 {
        self.shared.failed.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            // Turning `true` closes the client's connection at once, whatever is on its way.
            let (cut, mut is_cut) = watch::channel(false);
            let cut = Arc::new(cut);
            let service = service_fn(move |request| answer(request, shared.clone(), cut.clone()));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                _ = is_cut.wait_for(|&cut| cut) => {}
            }
        });
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    cut: Arc<watch::Sender<bool>>,
) -> Result<Answer> {
    match shared.failure_for(&request) {
        Some(Failure::Status(status)) => refuse(status),
        Some(Failure::Stall) => std::future::pending().await,
        Some(Failure::CutUpload(bytes)) => {
            let limited = request.map(|body| CutAfter { body, left: bytes, cut });
            forward(limited, &shared).await
        }
        Some(Failure::CutDownload(bytes)) => {
            let answer = forward(request, &shared).await?;
            Ok(answer.map(|body| CutAfter { body, left: bytes, cut }.boxed_unsync()))
        }
        None => forward(request, &shared).await,
    }
}

fn refuse(status: u16) -> Result<Answer> {
    let code = if status == 401 { "UNAUTHORIZED" } else { "DENIED" };
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"refused on purpose"}}]}}"#);
    let mut response = Response::new(Full::from(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status)?;
    Ok(response)
}

async fn forward<B>(request: Request<B>, shared: &Shared) -> Result<Answer>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(shared.upstream).await.context("the registry behind the fault proxy")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // The `Host` header stays the client's, so that locations in answers lead back through the proxy.
    let response = sender.send_request(request).await?;
    Ok(response.map(BodyExt::boxed_unsync))
}

/// A body that closes the client's connection after some bytes.
struct CutAfter<B> {
    body: B,
    left: u64,
    cut: Arc<watch::Sender<bool>>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for CutAfter<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        use std::task::Poll;

        if self.left == 0 {
            self.cut.send_replace(true);
            return Poll::Pending;
        }
        let frame = std::task::ready!(std::pin::Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                Ok(mut data) => {
                    let passed = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
                    self.left -= passed as u64;
                    Frame::data(data.split_to(passed))
                }
                Err(other) => other,
            })),
            other => other,
        })
    }
}
