//! Ways to a registry. On one, two that write one manifest at once meet: neither is stored before both have come, and neither is answered
//! before both are stored. Another is shut for those who write one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::http1::{Head, read_to_end};

/// One that runs until the test ends.
pub(crate) struct Gate {
    pub(crate) host: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    path: String,
    /// How long the first waits for the second.
    patience: Duration,
    come: watch::Sender<usize>,
    stored: watch::Sender<usize>,
}

impl Gate {
    /// Leads to `server`; those meet that write the manifest with this path, if the second comes in time.
    pub(crate) async fn start(server: &str, path: &str, patience: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (server, path) = (server.to_owned(), path.to_owned());
        let [come, stored] = [(); 2].map(|()| watch::Sender::new(0));
        let shared = Arc::new(Shared { server, path, patience, come, stored });
        let all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all)));
            }
        });
        Self { host, shared }
    }

    /// How often the manifest was written.
    pub(crate) fn written(&self) -> usize {
        *self.shared.stored.borrow()
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let Some(head) = Head::read(&mut stream).await else { return };
    if (head.method.as_str(), &head.path) != ("PUT", &shared.path) {
        return head.forward(stream, &shared.server).await;
    }
    shared.come.send_modify(|come| *come += 1);
    let both = async |counted: &watch::Sender<usize>| {
        let mut counted = counted.subscribe();
        timeout(shared.patience, counted.wait_for(|counted| *counted >= 2)).await.is_ok()
    };
    let meet = both(&shared.come).await;
    let mut behind = head.ask(&mut stream, &shared.server).await.unwrap();
    let mut answer = Vec::new();
    behind.read_to_end(&mut answer).await.unwrap();
    shared.stored.send_modify(|stored| *stored += 1);
    if meet {
        both(&shared.stored).await;
    }
    // A client that has left needs no answer.
    let _ = stream.write_all(&answer).await;
}

/// A way to a registry on which nobody is answered who writes one manifest, and nothing of it arrives, until it is opened; one that runs until
/// the test ends.
pub(crate) struct ShutGate {
    pub(crate) host: String,
    shared: Arc<Shut>,
}

struct Shut {
    server: String,
    path: String,
    is_open: AtomicBool,
    /// Those who have come to write it, and those of them who have left without an answer.
    come: AtomicUsize,
    left: AtomicUsize,
}

impl ShutGate {
    /// Leads to `server`, shut for those who write the manifest with this path.
    pub(crate) async fn start(server: &str, path: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (server, path, is_open) = (server.to_owned(), path.to_owned(), AtomicBool::new(false));
        let [come, left] = [(); 2].map(|()| AtomicUsize::new(0));
        let shared = Arc::new(Shut { server, path, is_open, come, left });
        let all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(lead(stream, Arc::clone(&all)));
            }
        });
        Self { host, shared }
    }

    /// How many have come to write the manifest while it was shut.
    pub(crate) fn come(&self) -> usize {
        self.shared.come.load(Ordering::SeqCst)
    }

    /// How many of them have left, without an answer.
    pub(crate) fn left(&self) -> usize {
        self.shared.left.load(Ordering::SeqCst)
    }

    /// Lets all pass who come from now on.
    pub(crate) fn open(&self) {
        self.shared.is_open.store(true, Ordering::SeqCst);
    }
}

async fn lead(mut stream: TcpStream, shared: Arc<Shut>) {
    let Some(head) = Head::read(&mut stream).await else { return };
    let is_shut = (head.method.as_str(), &head.path) == ("PUT", &shared.path);
    if !is_shut || shared.is_open.load(Ordering::SeqCst) {
        return head.forward(stream, &shared.server).await;
    }
    shared.come.fetch_add(1, Ordering::SeqCst);
    head.skip_body(&mut stream).await;
    read_to_end(&mut stream).await;
    shared.left.fetch_add(1, Ordering::SeqCst);
}
