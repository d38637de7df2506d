//! A registry for those with a token, and the service that gives tokens for passwords.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::{TcpListener, TcpStream};

use super::http1::{Head, answer};

/// One in front of a registry, until the test ends.
pub(crate) struct TokenRegistry {
    pub(crate) host: String,
    /// The programs that were given a token, by what they call themselves.
    asked: Arc<Mutex<Vec<String>>>,
}

impl TokenRegistry {
    /// In front of the registry `behind`, for the user who has this password.
    pub(crate) async fn start(behind: &str, user: &str, password: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (notes, behind, own) = (Arc::clone(&asked), behind.to_owned(), host.clone());
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (notes, behind, own, basic) =
                    (Arc::clone(&notes), behind.clone(), own.clone(), basic.clone());
                tokio::spawn(async move { serve(stream, &notes, &behind, &own, &basic).await });
            }
        });
        Self { host, asked }
    }

    /// Who was given tokens since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

async fn serve(mut stream: TcpStream, asked: &Mutex<Vec<String>>, behind: &str, own: &str, basic: &str) {
    let Some(head) = Head::read(&mut stream).await else { return };
    if head.path.starts_with("/token") {
        head.skip_body(&mut stream).await;
        // As services that know no POST; clients then ask as those of old do.
        return match (head.method.as_str(), head.header("authorization")) {
            ("GET", Some(shown)) if shown == basic => {
                let program = head.header("user-agent").unwrap_or_default().to_owned();
                asked.lock().unwrap().push(program);
                answer(&mut stream, "200 OK", r#"{"token":"good","expires_in":3600}"#).await;
            }
            ("GET", _) => answer(&mut stream, "401 Unauthorized", "").await,
            _ => answer(&mut stream, "404 Not Found", "").await,
        };
    }
    if head.header("authorization") == Some("Bearer good") {
        return head.forward(stream, behind).await;
    }
    head.skip_body(&mut stream).await;
    let challenge = format!(
        "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"tokens\""
    );
    answer(&mut stream, &challenge, "").await;
}
