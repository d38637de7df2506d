//! Registries that answer what a test wants.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use registry::Repository;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A server that runs until this is dropped.
pub(crate) struct Fake {
    pub(crate) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: AbortOnDropHandle<()>,
}

impl Fake {
    /// Answers each request with what `handler` makes of it and of its number, from 0.
    pub(crate) async fn start(
        handler: impl Fn(&Seen, usize) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self::silent(move |seen, number| Some(handler(seen, number))).await
    }

    /// As [`Self::start`]; but what `handler` has no answer to is read in full and never answered.
    pub(crate) async fn silent(
        handler: impl Fn(&Seen, usize) -> Option<Response<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        let (listener, host) = listen().await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (handler, all) = (Arc::new(handler), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, all) = (handler.clone(), all.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (handler, all) = (handler.clone(), all.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        let path = parts.uri.path_and_query().unwrap().to_string();
                        let one = Seen { method: parts.method, path, headers: parts.headers, body };
                        let number = {
                            let mut all = all.lock().unwrap();
                            all.push(one.clone());
                            all.len() - 1
                        };
                        match handler(&one, number) {
                            Some(answer) => Ok::<_, hyper::Error>(answer.map(Full::new)),
                            None => std::future::pending().await,
                        }
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { host, seen, _task: AbortOnDropHandle::new(task) }
    }

    /// Answers the n-th connection's first request with the n-th of `answers`, byte for byte, and closes it.
    /// Connections beyond that are accepted and never answered.
    pub(crate) async fn raw(answers: Vec<Vec<u8>>) -> Self {
        let (listener, host) = listen().await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        let task = tokio::spawn(async move {
            let mut silent = Vec::new();
            let mut answers = answers.into_iter();
            while let Ok((mut stream, _)) = listener.accept().await {
                let one = read_head(&mut stream).await;
                all.lock().unwrap().push(one);
                match answers.next() {
                    Some(answer) => {
                        let _ = stream.write_all(&answer).await;
                    }
                    None => silent.push(stream),
                }
            }
        });
        Self { host, seen, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn repository(&self, name: &str) -> Repository {
        Repository::parse(&format!("{}/{name}", self.host)).unwrap()
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    (listener, host)
}

async fn read_head(stream: &mut TcpStream) -> Seen {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { break };
        head.push(byte);
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap().parse().unwrap_or(Method::GET);
    let path = first.next().unwrap_or_default().to_owned();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        headers.insert(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    Seen { method, path, headers, body: Bytes::new() }
}

pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}
