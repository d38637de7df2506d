//! As much of HTTP/1.1 as registries of a test need.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A paced body is taken in by so many parts a second.
const PACES: u64 = 20;

/// The head of a request.
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Head {
    /// The next one; `None` at the end, or where there is none.
    pub(crate) async fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let text = String::from_utf8(head).ok()?;
        let mut lines = text.lines();
        let mut first = lines.next()?.split(' ');
        let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Some(Self { method, path, headers })
    }

    /// A header, by its name in small letters.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn length(&self) -> u64 {
        self.header("content-length").map_or(0, |length| length.parse().unwrap())
    }

    /// Reads the request's body and forgets it.
    pub(crate) async fn skip_body(&self, stream: &mut TcpStream) {
        let mut body = stream.take(self.length());
        // A client that leaves in the middle of it is no error here.
        let _ = tokio::io::copy(&mut body, &mut tokio::io::sink()).await;
    }

    /// Has `server` answer the request in the place of whoever it came to, without the credentials that came with it, and ends the
    /// connection with the answer.
    pub(crate) async fn forward(&self, stream: TcpStream, server: &str) {
        self.forward_at(stream, server, None).await;
    }

    /// The same, taking in `rate` bytes of the body a second.
    pub(crate) async fn forward_at(&self, mut stream: TcpStream, server: &str, rate: Option<u64>) {
        let forwarded = async {
            let mut behind = self.ask_at(&mut stream, server, rate).await?;
            tokio::io::copy(&mut behind, &mut stream).await
        };
        // Either side may leave.
        let _ = forwarded.await;
    }

    /// Sends the request on to `server`, with the body that comes on `stream`; the answer is what is to be read of the result, to its end.
    pub(crate) async fn ask(&self, stream: &mut TcpStream, server: &str) -> std::io::Result<TcpStream> {
        self.ask_at(stream, server, None).await
    }

    async fn ask_at(
        &self,
        stream: &mut TcpStream,
        server: &str,
        rate: Option<u64>,
    ) -> std::io::Result<TcpStream> {
        let mut behind = TcpStream::connect(server).await?;
        let mut head = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", self.method, self.path);
        let kept = self.headers.iter().filter(|(name, _)| name != "connection" && name != "authorization");
        head.extend(kept.map(|(name, value)| format!("{name}: {value}\r\n")));
        behind.write_all((head + "\r\n").as_bytes()).await?;
        let mut left = self.length();
        while left > 0 {
            let piece = left.min(rate.map_or(u64::MAX, |rate| rate / PACES));
            tokio::io::copy(&mut (&mut *stream).take(piece), &mut behind).await?;
            left -= piece;
            if rate.is_some() {
                tokio::time::sleep(Duration::from_secs(1) / PACES as u32).await;
            }
        }
        Ok(behind)
    }
}

/// Reads what comes until the other side closes the connection.
pub(crate) async fn read_to_end(stream: &mut TcpStream) {
    let _ = tokio::io::copy(stream, &mut tokio::io::sink()).await;
}

/// Sends an answer without more than a head and a body, after which the connection is closed.
pub(crate) async fn answer(stream: &mut TcpStream, head: &str, body: &str) {
    let text =
        format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let _ = stream.write_all(text.as_bytes()).await;
}
