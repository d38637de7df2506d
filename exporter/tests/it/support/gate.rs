//! Ways to a registry that hold those who read or write one manifest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    method: &'static str,
    path: String,
    holds: Holds,
    is_open: AtomicBool,
    /// Those that it held, those of them that were stored, and those that have left without an answer.
    come: watch::Sender<usize>,
    stored: watch::Sender<usize>,
    left: watch::Sender<usize>,
}

/// Whom a gate holds for how long.
enum Holds {
    /// Those who write wait for each other: neither is stored before both have come, and neither is answered before both are stored. The
    /// first waits so long for the second.
    UntilTwo(Duration),
    /// Nobody is answered, and nothing of them arrives, until it is opened for those who come later.
    UntilOpen,
}

impl Gate {
    /// Leads to `server`; those meet that write the manifest with this path, if the second comes within `patience`.
    pub(crate) async fn meeting(server: &str, path: &str, patience: Duration) -> Self {
        Self::start(server, "PUT", path, Holds::UntilTwo(patience)).await
    }

    /// Leads to `server`, shut for those who come with this method to the manifest with this path.
    pub(crate) async fn shut(server: &str, method: &'static str, path: &str) -> Self {
        Self::start(server, method, path, Holds::UntilOpen).await
    }

    async fn start(server: &str, method: &'static str, path: &str, holds: Holds) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (server, path, is_open) = (server.to_owned(), path.to_owned(), AtomicBool::new(false));
        let [come, stored, left] = [(); 3].map(|()| watch::Sender::new(0));
        let shared = Arc::new(Shared { server, method, path, holds, is_open, come, stored, left });
        let all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all)));
            }
        });
        Self { host, shared }
    }

    /// How many it has held.
    pub(crate) fn come(&self) -> usize {
        *self.shared.come.borrow()
    }

    /// How often the manifest was written by those who met.
    pub(crate) fn written(&self) -> usize {
        *self.shared.stored.borrow()
    }

    /// How many have left that it held, without an answer.
    pub(crate) fn left(&self) -> usize {
        *self.shared.left.borrow()
    }

    /// Lets all pass who come from now on.
    pub(crate) fn open(&self) {
        self.shared.is_open.store(true, Ordering::SeqCst);
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let Some(head) = Head::read(&mut stream).await else { return };
    let is_held = (head.method.as_str(), &head.path) == (shared.method, &shared.path);
    if !is_held || shared.is_open.load(Ordering::SeqCst) {
        return head.forward(stream, &shared.server).await;
    }
    shared.come.send_modify(|come| *come += 1);
    match shared.holds {
        Holds::UntilTwo(patience) => meet(head, stream, &shared, patience).await,
        Holds::UntilOpen => {
            head.skip_body(&mut stream).await;
            read_to_end(&mut stream).await;
            shared.left.send_modify(|left| *left += 1);
        }
    }
}

async fn meet(head: Head, mut stream: TcpStream, shared: &Shared, patience: Duration) {
    let both = async |counted: &watch::Sender<usize>| {
        let mut counted = counted.subscribe();
        timeout(patience, counted.wait_for(|counted| *counted >= 2)).await.is_ok()
    };
    let have_met = both(&shared.come).await;
    let mut behind = head.ask(&mut stream, &shared.server).await.unwrap();
    let mut answer = Vec::new();
    behind.read_to_end(&mut answer).await.unwrap();
    shared.stored.send_modify(|stored| *stored += 1);
    if have_met {
        both(&shared.stored).await;
    }
    // A client that has left needs no answer.
    let _ = stream.write_all(&answer).await;
}
