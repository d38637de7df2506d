//! What the kernel still holds of what was written to connections.
//!
//! A request that is written is in the kernel's memory, up to megabytes of it, and goes on its way from there: over a slow line for minutes.
//! Only the kernel knows how far it is. `/proc/net/tcp` has a line for each connection (Linux, `proc_net_tcp.rst`):
//!
//! | field | content |
//! |---|---|
//! | 1 | number, `:` |
//! | 2, 3 | address of this end and of the other: words of 32 bits as the machine reads them, and the port; hexadecimal |
//! | 4 | state, hexadecimal: 01 established, 08 the other end has said its last |
//! | 5 | bytes that the other end has not acknowledged, `:`, bytes that nobody has read; hexadecimal |

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpInfo};
use tower::{Layer, Service};

/// Connections of a lane that are looked at: to a registry, and to where it sends uploads on.
const KEPT: usize = 4;

/// The latest connections that an HTTP client has made.
#[derive(Clone, Default)]
pub(super) struct Sockets(Arc<Mutex<VecDeque<Ends>>>);

/// Where a connection begins and ends.
struct Ends {
    local: SocketAddr,
    remote: SocketAddr,
}

impl Sockets {
    fn note(&self, connected: &Connected) {
        let mut extensions = http::Extensions::new();
        connected.get_extras(&mut extensions);
        if let Some(info) = extensions.get::<HttpInfo>() {
            let mut latest = self.lock();
            latest.push_front(Ends { local: info.local_addr(), remote: info.remote_addr() });
            latest.truncate(KEPT);
        }
    }

    /// The bytes that the other ends have not acknowledged yet; none where the kernel does not say.
    pub(super) async fn unacknowledged(&self) -> u64 {
        let (lines4, lines6): (Vec<_>, Vec<_>) = {
            let latest = self.lock();
            let (v4, v6): (Vec<_>, Vec<_>) = latest.iter().partition(|ends| ends.local.is_ipv4());
            (v4.into_iter().map(Ends::in_table).collect(), v6.into_iter().map(Ends::in_table).collect())
        };
        let mut sum = 0;
        for (lines, table) in [(lines4, "/proc/self/net/tcp"), (lines6, "/proc/self/net/tcp6")] {
            if !lines.is_empty() {
                let table = tokio::fs::read_to_string(table).await.unwrap_or_default();
                sum += lines.iter().filter_map(|ends| unacknowledged_in(&table, ends)).sum::<u64>();
            }
        }
        sum
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Ends>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Ends {
    /// Fields 2 and 3 of its line.
    fn in_table(&self) -> String {
        format!(" {} {} ", end_in_table(self.local), end_in_table(self.remote))
    }
}

fn end_in_table(end: SocketAddr) -> String {
    let words = |bytes: &[u8]| -> String {
        let words = bytes.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(u32::from_ne_bytes);
        words.map(|word| format!("{word:08X}")).collect()
    };
    let address = match end.ip() {
        IpAddr::V4(address) => words(&address.octets()),
        IpAddr::V6(address) => words(&address.octets()),
    };
    format!("{address}:{:04X}", end.port())
}

/// Field 5 of the line of a connection that is open, by its fields 2 and 3.
fn unacknowledged_in(table: &str, ends: &str) -> Option<u64> {
    let (_, rest) = table.lines().find_map(|line| line.split_once(ends))?;
    let (state, rest) = rest.split_once(' ')?;
    let (unacknowledged, _) = rest.split_once(':')?;
    matches!(state, "01" | "08").then(|| u64::from_str_radix(unacknowledged, 16).ok())?
}

/// Notes the connections of the client that it is a layer of.
impl<S> Layer<S> for Sockets {
    type Service = Noting<S>;

    fn layer(&self, connector: S) -> Noting<S> {
        Noting { connector, sockets: self.clone() }
    }
}

/// A connector whose connections are noted.
#[derive(Clone)]
pub(super) struct Noting<S> {
    connector: S,
    sockets: Sockets,
}

impl<S, To> Service<To> for Noting<S>
where
    S: Service<To>,
    S::Response: Connection,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, to: To) -> Self::Future {
        let (connecting, sockets) = (self.connector.call(to), self.sockets.clone());
        async move {
            let connection = connecting.await?;
            sockets.note(&connection.connected());
            Ok(connection)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// What the kernel holds of a connection to `listen` whose other end reads late.
    async fn seen_on(listen: &str) {
        let listener = TcpListener::bind(listen).await.unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut there, _) = listener.accept().await.unwrap();
        let sockets = Sockets::default();
        let (local, remote) = (here.local_addr().unwrap(), here.peer_addr().unwrap());
        sockets.lock().push_front(Ends { local, remote });
        assert_eq!(sockets.unacknowledged().await, 0);
        // More than the other end's kernel takes.
        let (mut reading, mut writing) = here.split();
        let content = vec![7; 32 << 20];
        let stuck = tokio::time::timeout(std::time::Duration::from_millis(500), writing.write_all(&content));
        assert!(stuck.await.is_err());
        assert!(sockets.unacknowledged().await > 0);
        there.shutdown().await.unwrap();
        assert_eq!(reading.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(sockets.unacknowledged().await > 0, "the other end may read on");
        drop(there);
        drop(here);
        assert_eq!(sockets.unacknowledged().await, 0, "what is closed is nobody's");
    }

    #[tokio::test]
    async fn the_kernel_says_what_is_on_its_way() {
        seen_on("127.0.0.1:0").await;
    }

    #[tokio::test]
    async fn the_kernel_says_it_of_ipv6_too() {
        if TcpListener::bind("[::1]:0").await.is_ok() {
            seen_on("[::1]:0").await;
        }
    }

    #[test]
    fn tables_in_another_form_say_nothing() {
        let ends = Ends { local: "127.0.0.1:80".parse().unwrap(), remote: "10.0.0.1:256".parse().unwrap() };
        let ends = ends.in_table();
        if cfg!(target_endian = "little") {
            assert_eq!(ends, " 0100007F:0050 0100000A:0100 ");
        }
        let line = |rest: &str| format!("  sl  local\n   0:{ends}{rest}");
        assert_eq!(unacknowledged_in(&line("01 0000001F:00000000 00:0"), &ends), Some(31));
        for rest in ["", "01", "01 ", "01 x:0", "04 0000001F:00000000", "01 FFFFFFFFFFFFFFFFF:0"] {
            assert_eq!(unacknowledged_in(&line(rest), &ends), None, "{rest:?}");
        }
    }
}
