//! A TCP proxy that cuts connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// Passes everything on to a server, and cuts each connection that is the first to bring a direction's total to one
/// of the given numbers of bytes.
pub(crate) struct Proxy {
    pub(crate) host: String,
    plan: Arc<Plan>,
    _task: AbortOnDropHandle<()>,
}

struct Plan {
    way: Way,
    at: Vec<u64>,
    passed: AtomicU64,
    cuts: AtomicUsize,
}

impl Proxy {
    pub(crate) async fn start(server: String, way: Way, at: Vec<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let plan = Arc::new(Plan { way, at, passed: AtomicU64::new(0), cuts: AtomicUsize::new(0) });
        let shared = plan.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let cut = CancellationToken::new();
                tokio::spawn(pass(from_client, to_server, Way::ToServer, shared.clone(), cut.clone()));
                tokio::spawn(pass(from_server, to_client, Way::ToClient, shared.clone(), cut));
            }
        });
        Self { host, plan, _task: AbortOnDropHandle::new(task) }
    }

    /// How many connections were cut.
    pub(crate) fn cuts(&self) -> usize {
        self.plan.cuts.load(Ordering::SeqCst)
    }

    /// How many bytes have gone the way that is counted.
    pub(crate) fn passed(&self) -> u64 {
        self.plan.passed.load(Ordering::SeqCst)
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    plan: Arc<Plan>,
    cut: CancellationToken,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let size = tokio::select! {
            () = cut.cancelled() => return,
            size = from.read(&mut buffer) => size.unwrap_or(0),
        };
        if size == 0 {
            return;
        }
        if way == plan.way {
            let before = plan.passed.fetch_add(size as u64, Ordering::SeqCst);
            let after = before + size as u64;
            if let Some(at) = plan.at.iter().find(|at| before < **at && **at <= after) {
                // What comes before the cut arrives: the server has seen a part of the request.
                let _ = to.write_all(&buffer[..usize::try_from(at - before).unwrap()]).await;
                plan.cuts.fetch_add(1, Ordering::SeqCst);
                cut.cancel();
                return;
            }
        }
        if to.write_all(&buffer[..size]).await.is_err() {
            return;
        }
    }
}
