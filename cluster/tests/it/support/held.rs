//! What is between a registry and us, and lets through as much as a test wants.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What is passed on at once.
const PIECE_BYTES: usize = 16 << 10;

/// Bytes that may come through: what is too much waits.
#[derive(Clone, Copy)]
enum Allowed {
    /// On all connections together; less with each that comes.
    Together(u64),
    /// On each connection, from its start on.
    Each(u64),
}

/// Passes everything on to a server, and no more than is allowed back.
pub(crate) struct Held {
    pub(crate) host: String,
    allowed: watch::Sender<Allowed>,
    /// Connections with something that waits.
    waiting: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Held {
    /// Lets this many bytes more through.
    pub(crate) fn let_through(&self, bytes: u64) {
        self.allowed.send_replace(Allowed::Together(bytes));
    }

    /// Lets this many bytes through on each connection: what is smaller comes, whatever else is asked for at the same time.
    pub(crate) fn let_through_each(&self, bytes: u64) {
        self.allowed.send_replace(Allowed::Each(bytes));
    }

    /// Whether something waits.
    pub(crate) fn holds(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let allowed = watch::Sender::new(Allowed::Together(u64::MAX));
        let waiting = Arc::new(AtomicUsize::new(0));
        let shared = (allowed.clone(), Arc::clone(&waiting));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                let (allowed, waiting) = shared.clone();
                tokio::spawn(Self::pass(client, server, allowed, waiting));
            }
        });
        Self { host, allowed, waiting, _task: AbortOnDropHandle::new(task) }
    }

    async fn pass(
        client: TcpStream,
        server: TcpStream,
        allowed: watch::Sender<Allowed>,
        waiting: Arc<AtomicUsize>,
    ) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        let mut buffer = vec![0; PIECE_BYTES];
        let mut passed = 0;
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            let mut changed = allowed.subscribe();
            passed += read as u64;
            let may_pass = || {
                let mut may = false;
                allowed.send_if_modified(|allowed| match allowed {
                    Allowed::Together(left) => {
                        may = *left >= read as u64;
                        *left -= if may { read as u64 } else { 0 };
                        may
                    }
                    Allowed::Each(bytes) => {
                        may = passed <= *bytes;
                        false
                    }
                });
                may
            };
            if !may_pass() {
                waiting.fetch_add(1, Ordering::Relaxed);
                while !may_pass() {
                    changed.changed().await.unwrap();
                }
                waiting.fetch_sub(1, Ordering::Relaxed);
            }
            if to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    }
}
