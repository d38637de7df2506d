//! An HTTP proxy in front of a registry that fails on purpose.

mod body;
mod tokens;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use body::{Limited, Line, OverLine, Paced, altered};
use tokens::{CredentialKind, Tokens};

pub use tokens::USER;

/// How a request is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Answer with this status without asking the registry.
    Status(u16),
    /// Take the request and never answer.
    Stall,
    /// Ask the registry only after this time.
    Delay(Duration),
    /// Send the answer's body with this many bytes a second.
    Bandwidth(u64),
    /// Send the bodies of all answers together with this many bytes a second.
    Link(u64),
    /// Send nothing more once this many bytes of the answer's body have gone, and keep the connection open.
    StallDownload(u64),
    /// Change a byte in each piece of the answer's body.
    WrongBytes,
    /// Close the connection once this many bytes of the request's body have come.
    CutUpload(u64),
    /// Close the connection once this many bytes of the answer's body have gone.
    CutDownload(u64),
    /// The same, and all tokens expire while the body is on its way.
    CutDownloadAndExpire(u64),
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
    held: AtomicU64,
    /// What answers share that come over a link.
    line: Arc<Line>,
    /// Whether it asks for credentials.
    tokens: Option<Tokens>,
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

/// A request that stands still. It is dropped with the connection, when the client closes that.
struct Held(Arc<Shared>);

impl Held {
    fn new(shared: Arc<Shared>) -> Self {
        shared.held.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
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
        Self::start_with(upstream, None)
    }

    /// Starts a proxy that wants a bearer token with each request, and has a service that gives them to everybody.
    pub fn start_with_tokens(upstream: SocketAddr) -> Result<Self> {
        Self::start_with(upstream, Some(Tokens::new(CredentialKind::Bearer)))
    }

    /// Starts a proxy that wants [`USER`] and the one [`password`](Self::password) that is good.
    pub fn start_with_password(upstream: SocketAddr) -> Result<Self> {
        Self::start_with(upstream, Some(Tokens::new(CredentialKind::Password)))
    }

    fn start_with(upstream: SocketAddr, tokens: Option<Tokens>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener =
            runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("binding the fault proxy")?;
        let address = listener.local_addr()?;
        let (failed, held) = (AtomicU64::new(0), AtomicU64::new(0));
        let (rules, line) = (Mutex::default(), Arc::new(Line::new()));
        let shared = Arc::new(Shared { upstream, rules, failed, held, line, tokens });
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

    /// All tokens that were given so far have expired, or the password: they are refused with this status.
    pub fn expire_tokens(&self, refusal: u16) {
        if let Some(tokens) = &self.shared.tokens {
            tokens.expire(refusal);
        }
    }

    /// Tokens expire after so long, whatever is said of them; they are refused with 401 and 403 in turn.
    pub fn let_tokens_live(&self, life: Duration) {
        if let Some(tokens) = &self.shared.tokens {
            tokens.live(life);
        }
    }

    /// The password that is good now, if it asks for one.
    pub fn password(&self) -> String {
        self.shared.tokens.as_ref().map(Tokens::password).unwrap_or_default()
    }

    /// How many requests came with credentials that had expired.
    pub fn refused_requests(&self) -> u64 {
        self.shared.tokens.as_ref().map_or(0, Tokens::refused)
    }

    /// How many tokens were given.
    pub fn tokens(&self) -> u64 {
        self.shared.tokens.as_ref().map_or(0, Tokens::issued)
    }

    /// How many requests have been made to fail.
    pub fn failed_requests(&self) -> u64 {
        self.shared.failed.load(Ordering::SeqCst)
    }

    /// How many requests stand still by [`Failure::Stall`], and their clients have not given them up.
    pub fn held_requests(&self) -> u64 {
        self.shared.held.load(Ordering::SeqCst)
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
    if let Some(answer) = shared.tokens.as_ref().and_then(|tokens| tokens.answer(&request)) {
        return answer;
    }
    match shared.failure_for(&request) {
        Some(Failure::Status(status)) => refuse(status),
        Some(Failure::Stall) => {
            let _held = Held::new(shared);
            std::future::pending().await
        }
        Some(Failure::Delay(time)) => {
            tokio::time::sleep(time).await;
            forward(request, &shared).await
        }
        Some(Failure::Bandwidth(bytes_per_second)) => {
            let answer = forward(request, &shared).await?;
            Ok(answer.map(|body| Paced::new(body, bytes_per_second).boxed_unsync()))
        }
        Some(Failure::Link(bytes_per_second)) => {
            let line = Arc::clone(&shared.line);
            let answer = forward(request, &shared).await?;
            Ok(answer.map(|body| OverLine::new(body, line, bytes_per_second).boxed_unsync()))
        }
        Some(Failure::StallDownload(bytes)) => {
            let answer = forward(request, &shared).await?;
            Ok(answer.map(|body| Limited::stalling(body, bytes).boxed_unsync()))
        }
        Some(Failure::WrongBytes) => {
            let answer = forward(request, &shared).await?;
            Ok(answer.map(|body| body.map_frame(altered).boxed_unsync()))
        }
        Some(Failure::CutUpload(bytes)) => {
            let limited = request.map(|body| Limited::cutting(body, bytes, cut));
            forward(limited, &shared).await
        }
        Some(failure @ (Failure::CutDownload(bytes) | Failure::CutDownloadAndExpire(bytes))) => {
            let answer = forward(request, &shared).await?;
            if let (Failure::CutDownloadAndExpire(_), Some(tokens)) = (failure, &shared.tokens) {
                tokens.expire(401);
            }
            Ok(answer.map(|body| Limited::cutting(body, bytes, cut).boxed_unsync()))
        }
        None => forward(request, &shared).await,
    }
}

fn refuse(status: u16) -> Result<Answer> {
    let code = match status {
        401 => "UNAUTHORIZED",
        404 => "BLOB_UNKNOWN",
        429 => "TOOMANYREQUESTS",
        _ => "DENIED",
    };
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"refused on purpose"}}]}}"#);
    plain(StatusCode::from_u16(status)?, body)
}

fn plain(status: StatusCode, body: String) -> Result<Answer> {
    let mut response = Response::new(Full::from(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
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
