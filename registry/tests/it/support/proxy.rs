//! TCP proxies: one that cuts connections, and one that is slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
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

/// So many times a second a slow line takes something in.
const PACES: u32 = 20;

/// A line to `server` that takes in `rate` bytes a second on each connection, until the test ends; returns where it is.
pub(crate) async fn slow(server: String, rate: u32) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    // What the kernel has taken and nobody has read would look as if it had arrived.
    socket.set_recv_buffer_size(rate / 4).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(64).unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(&server).await else { continue };
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(async move {
                let mut piece = vec![0; (rate / PACES) as usize];
                while let Ok(size @ 1..) = from_client.read(&mut piece).await {
                    if to_server.write_all(&piece[..size]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1) / PACES).await;
                }
            });
        }
    });
    host
}
