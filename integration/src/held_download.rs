//! A download that takes until it is let go, so that whatever waits for it is under way meanwhile.

use std::io::{Read as _, Result, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a client may take to send its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// An HTTP server with one small file, that answers nobody before it is told to.
#[derive(Debug)]
pub struct HeldDownload {
    address: SocketAddr,
    release: mpsc::Sender<()>,
}

impl HeldDownload {
    /// Listens on an address of this host.
    pub fn start(address: IpAddr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        let (release, released) = mpsc::channel();
        thread::spawn(move || {
            // Whoever is told, or finds nobody left to tell it, answers from then on.
            let _ = released.recv();
            for stream in listener.incoming().flatten() {
                if let Err(error) = answer(stream) {
                    eprintln!("a download was not answered: {error}");
                }
            }
        });
        Ok(Self { address, release })
    }

    /// Where it is, whatever the path.
    pub fn url(&self) -> String {
        format!("http://{}/file", self.address)
    }

    /// Lets it go.
    pub fn release(&self) {
        // The server waits for it as long as it runs.
        let _ = self.release.send(());
    }
}

/// Answers one request with the file.
fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
        request.push(byte[0]);
    }
    let body = if request.starts_with(b"HEAD") { "" } else { "file" };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\n{body}")
}
