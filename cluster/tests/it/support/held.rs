//! What is between a registry and us, and lets through as much as a test wants.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What is passed on at once.
const PIECE_BYTES: usize = 16 << 10;

/// Passes everything on to a server, and no more than a number of bytes back: what is too much waits.
pub(crate) struct Held {
    pub(crate) host: String,
    left: watch::Sender<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Held {
    /// Lets this many bytes more through.
    pub(crate) fn let_through(&self, bytes: u64) {
        self.left.send_replace(bytes);
    }

    /// Whether nothing that is worth it can come through any more: what waits is more than is left.
    pub(crate) fn is_full(&self) -> bool {
        *self.left.borrow() < PIECE_BYTES as u64
    }

    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let left = watch::Sender::new(u64::MAX);
        let shared = left.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                tokio::spawn(Self::pass(client, server, shared.clone()));
            }
        });
        Self { host, left, _task: AbortOnDropHandle::new(task) }
    }

    async fn pass(client: TcpStream, server: TcpStream, left: watch::Sender<u64>) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            let mut changed = left.subscribe();
            let take = |left: &mut u64| match left.checked_sub(read as u64) {
                Some(less) => {
                    *left = less;
                    true
                }
                None => false,
            };
            while !left.send_if_modified(take) {
                changed.changed().await.unwrap();
            }
            if to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    }
}
