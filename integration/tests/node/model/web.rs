//! Directories of blobs on an HTTP server, as upstream's nydus-backend-proxy has them.

use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_RANGE, RANGE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A server of the files below a directory. Dropping it closes all its connections.
pub(super) struct WebServer {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl WebServer {
    pub(super) fn start(root: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).context("binding a web server")?;
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, root.to_owned()));
        Ok(Self { address, runtime: Some(runtime) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, root: PathBuf) {
    while let Ok((stream, _)) = listener.accept().await {
        let root = root.clone();
        let service = service_fn(move |request| {
            let answer = answer(&request, &root);
            async move { answer }
        });
        let server = hyper::server::conn::http1::Builder::new();
        tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
    }
}

/// The file that the path names, or the range of it that is asked for; of `HEAD`, the body is left out.
fn answer(request: &Request<Incoming>, root: &Path) -> Result<Response<Full<Bytes>>> {
    let path = root.join(request.uri().path().trim_start_matches('/'));
    let Ok(file) = fs::read(path) else {
        return Ok(Response::builder().status(StatusCode::NOT_FOUND).body(Full::default())?);
    };
    let file = Bytes::from(file);
    let Some(range) = request.headers().get(RANGE) else { return Ok(Response::new(Full::new(file))) };
    let range = range.to_str().ok().and_then(wanted).filter(|range| range.end <= file.len());
    let Some(range) = range.filter(|range| range.start < range.end) else {
        return Ok(Response::builder().status(StatusCode::RANGE_NOT_SATISFIABLE).body(Full::default())?);
    };
    let said = format!("bytes {}-{}/{}", range.start, range.end - 1, file.len());
    let response = Response::builder().status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, said);
    Ok(response.body(Full::new(file.slice(range)))?)
}

/// The bytes of `bytes=FIRST-LAST`.
fn wanted(header: &str) -> Option<Range<usize>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<usize>().ok()?.checked_add(1)?)
}
