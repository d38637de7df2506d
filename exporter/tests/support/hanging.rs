//! A registry that begins uploads and takes in what comes for them, and never says that it did.

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
    /// Connections that ended under an upload.
    gone: AtomicUsize,
    /// How long it takes to give up an upload.
    giving_up: Duration,
}

impl Hanging {
    /// Gives up each upload, if asked to, after so long.
    pub(crate) async fn start(giving_up: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared { giving_up, ..Shared::default() });
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

    /// How many uploads were cut off while their content came.
    pub(crate) fn gone(&self) -> usize {
        self.shared.gone.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Some(head) = Head::read(&mut stream).await {
        let answer = match head.method.as_str() {
            "POST" => {
                let number = shared.begun.fetch_add(1, Ordering::SeqCst);
                format!("202 Accepted\r\nLocation: /v2/stuck/blobs/uploads/{number}")
            }
            "PATCH" | "PUT" => {
                shared.seen.lock().unwrap().push(head.method.clone());
                head.skip_body(&mut stream).await;
                // Whoever waits for the answer leaves some day.
                super::http1::read_to_end(&mut stream).await;
                shared.gone.fetch_add(1, Ordering::SeqCst);
                return;
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
