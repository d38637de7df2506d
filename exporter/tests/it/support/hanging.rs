//! A registry that begins uploads and takes in what comes for them, and never says that it did; or is slow.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::http1::Head;

/// One that runs until the test ends.
pub(crate) struct Hanging {
    pub(crate) host: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    begun: AtomicUsize,
    /// Methods of requests whose body begins to come, and of those that were answered.
    seen: Mutex<Vec<String>>,
    /// Requests that got no answer.
    unanswered: AtomicUsize,
    /// Connections that ended under one.
    gone: AtomicUsize,
    /// How long it takes to give up an upload.
    giving_up: Duration,
    /// Whether it takes in pieces, and says nothing when a blob ends.
    takes_pieces: bool,
    /// Whether it says nothing at all after it has fallen silent once.
    dies: bool,
}

impl Shared {
    /// Whether a request with this method, which is one more, gets no answer.
    fn is_silent_at(&self, method: &str) -> bool {
        let is_stuck = || self.seen.lock().unwrap().iter().any(|method| self.hangs_at(method));
        self.hangs_at(method) || (self.dies && is_stuck())
    }

    fn hangs_at(&self, method: &str) -> bool {
        method == "PUT" || (method == "PATCH" && !self.takes_pieces)
    }
}

impl Hanging {
    /// Gives up each upload, if asked to, after so long.
    pub(crate) async fn start(giving_up: Duration) -> Self {
        Self::start_as(Shared { giving_up, ..Shared::default() }).await
    }

    /// Says nothing to the method `at`, `PATCH` or `PUT`; and to nothing else after that if it `dies`.
    pub(crate) async fn silent(at: &str, dies: bool) -> Self {
        Self::start_as(Shared { takes_pieces: at == "PUT", dies, ..Shared::default() }).await
    }

    async fn start_as(shared: Shared) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(shared);
        let all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all)));
            }
        });
        Self { host, shared }
    }

    /// How many requests with one of these methods there were: of uploads those whose content came, of others those that were
    /// answered.
    pub(crate) fn count(&self, methods: &[&str]) -> usize {
        self.shared.seen.lock().unwrap().iter().filter(|method| methods.contains(&method.as_str())).count()
    }

    /// Whether the content of an upload comes.
    pub(crate) fn is_stuck(&self) -> bool {
        self.count(&["PATCH", "PUT"]) > 0
    }

    /// How many requests wait for an answer.
    pub(crate) fn held(&self) -> usize {
        // What is gone was not answered before.
        let gone = self.gone();
        self.shared.unanswered.load(Ordering::SeqCst) - gone
    }

    /// How many uploads were cut off while their content came.
    pub(crate) fn gone(&self) -> usize {
        self.shared.gone.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Some(head) = Head::read(&mut stream).await {
        let answer = match head.method.as_str() {
            silent if shared.is_silent_at(silent) => {
                shared.unanswered.fetch_add(1, Ordering::SeqCst);
                shared.seen.lock().unwrap().push(head.method.clone());
                head.skip_body(&mut stream).await;
                // Whoever waits for the answer leaves some day.
                super::http1::read_to_end(&mut stream).await;
                shared.gone.fetch_add(1, Ordering::SeqCst);
                return;
            }
            "PATCH" => {
                head.skip_body(&mut stream).await;
                format!("202 Accepted\r\nLocation: {}", head.path)
            }
            "POST" => {
                let number = shared.begun.fetch_add(1, Ordering::SeqCst);
                format!("202 Accepted\r\nLocation: /v2/stuck/blobs/uploads/{number}")
            }
            "DELETE" => {
                tokio::time::sleep(shared.giving_up).await;
                "204 No Content".to_owned()
            }
            _ => "404 Not Found".to_owned(),
        };
        shared.seen.lock().unwrap().push(head.method);
        let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Stands before `server` and takes in what is uploaded at `rate` bytes a second; returns where it is.
pub(crate) async fn slow(server: &str, rate: u32) -> String {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // What the kernel has taken and nobody has read would look as if it had arrived.
    socket.set_recv_buffer_size((rate / 4).min(64 << 10)).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(64).unwrap();
    let (host, server) = (listener.local_addr().unwrap().to_string(), server.to_owned());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let Some(head) = Head::read(&mut stream).await else { return };
                let pace = matches!(head.method.as_str(), "PATCH" | "PUT").then_some(rate.into());
                head.forward_at(stream, &server, pace).await;
            });
        }
    });
    host
}
