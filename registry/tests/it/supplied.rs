//! Reading with values that somebody else hands out, who alone has files and credentials.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, try_join_all};
use http::Response;
use registry::client::{AccessSource, Client, ClientConfig, Credentials, Found, Place, RepositoryAccess};
use registry::digest::sha256;
use registry::reference::Repository;

use crate::support::fake::{Fake, Seen, answer};
use crate::support::{config, folder};

/// Whoever has the values: those of now, and those that a renewal finds.
struct Broker {
    current: Mutex<Option<Arc<RepositoryAccess>>>,
    next: Mutex<Option<RepositoryAccess>>,
    renewals: AtomicUsize,
}

impl Broker {
    fn new(current: RepositoryAccess) -> Arc<Self> {
        Arc::new(Self {
            current: Mutex::new(Some(Arc::new(current))),
            next: Mutex::default(),
            renewals: AtomicUsize::new(0),
        })
    }

    fn will_find(&self, next: RepositoryAccess) {
        *self.next.lock().unwrap() = Some(next);
    }

    fn renewals(&self) -> usize {
        self.renewals.load(Ordering::SeqCst)
    }
}

impl AccessSource for Broker {
    fn access(&self, _registry: &str, _repository: &str) -> Option<Arc<RepositoryAccess>> {
        self.current.lock().unwrap().clone()
    }

    fn renew<'a>(&'a self, _registry: &'a str, _repository: &'a str) -> BoxFuture<'a, ()> {
        async {
            self.renewals.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            if let Some(next) = self.next.lock().unwrap().take() {
                *self.current.lock().unwrap() = Some(Arc::new(next));
            }
        }
        .boxed()
    }
}

/// A client that can read no file of registries.
fn client(broker: &Arc<Broker>) -> Client {
    let missing = PathBuf::from("/nonexistent");
    let config = ClientConfig { certs_dir: missing.clone(), docker_config: Some(missing), ..config() };
    Client::new(config).unwrap().with_access(broker.clone())
}

fn part() -> Response<Bytes> {
    answer(206, &[("content-range", "bytes 0-1/2")], "ok")
}

fn with_password(host: &str, password: &str) -> RepositoryAccess {
    let credentials = Credentials::Basic { user: "AWS".to_owned(), password: password.to_owned() };
    let place = Place {
        host: host.to_owned(),
        base: format!("http://{host}"),
        api: "/v2".to_owned(),
        mirror: false,
        connection: Default::default(),
        credentials: Found { credentials, origin: format!("credentials called {password}") },
    };
    RepositoryAccess { places: vec![place] }
}

fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("AWS:{password}")))
}

#[tokio::test]
async fn values_made_of_files_are_all_that_is_needed_elsewhere() {
    let mirror = Fake::start(|request, _| match request.header("authorization") {
        Some(header) if header == basic("mirrored") => part(),
        _ => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    })
    .await;
    let dir = folder();
    let settings = dir.path().join("registry.invalid");
    std::fs::create_dir(&settings).unwrap();
    let text = format!(
        "[host.\"http://{host}/api\"]\noverride_path = true\n[host.\"http://{host}/api\".header]\nx-own = \"1\"\n",
        host = mirror.host
    );
    std::fs::write(settings.join("hosts.toml"), text).unwrap();
    let docker_config = dir.path().join("config.json");
    let entry = serde_json::json!({"auth": STANDARD.encode("AWS:mirrored")});
    std::fs::write(&docker_config, serde_json::json!({"auths": {&mirror.host: entry}}).to_string()).unwrap();
    let files = ClientConfig { certs_dir: dir.path().into(), docker_config: Some(docker_config), ..config() };

    let repository = Repository::parse("registry.invalid/app").unwrap();
    let (access, failure) = Client::new(files).unwrap().access(&repository).await;
    assert!(failure.is_none(), "{failure:?}");
    assert!(!format!("{access:?}").contains("mirrored"), "{access:?}");
    let sent = serde_json::to_string(&access).unwrap();
    let broker = Broker::new(serde_json::from_str(&sent).unwrap());
    client(&broker).blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap();
    let last: Seen = mirror.seen().pop().unwrap();
    assert!(last.path.starts_with("/api/app/blobs/") && last.path.ends_with("ns=registry.invalid"));
    assert_eq!(last.header("x-own"), Some("1"));
}

#[tokio::test]
async fn a_repository_that_nobody_handed_out_is_an_error_and_asked_of_nobody() {
    let fake = Fake::start(|_, _| part()).await;
    let broker = Broker::new(RepositoryAccess::default());
    let repository = fake.repository("app");
    let error = client(&broker).blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap_err();
    assert!(error.to_string().contains(&repository.to_string()), "{error}");
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn credentials_that_ended_are_renewed_once_for_all_who_read() {
    for refusal in [401, 403] {
        let right = Arc::new(Mutex::new("first"));
        let current = right.clone();
        let fake = Fake::start(move |request, _| match request.header("authorization") {
            Some(header) if header == basic(*current.lock().unwrap()) => part(),
            Some(_) if refusal == 403 => answer(403, &[], r#"{"errors":[{"code":"DENIED"}]}"#),
            _ => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
        })
        .await;
        let broker = Broker::new(with_password(&fake.host, "first"));
        let client = client(&broker);
        let repository = fake.repository("app");
        let digest = sha256(b"ok");
        let read = || client.blob_range(&repository, &digest, 0, 2);
        read().await.unwrap();
        assert_eq!(broker.renewals(), 0);

        *right.lock().unwrap() = "second";
        broker.will_find(with_password(&fake.host, "second"));
        try_join_all((0..8).map(|_| read())).await.unwrap();
        assert_eq!(broker.renewals(), 1, "{refusal}");

        // Where there are none that are better, the registry's words stand, and say whose credentials these were.
        *right.lock().unwrap() = "third";
        let error = read().await.unwrap_err();
        assert!(error.is_denied() && error.to_string().contains("credentials called second"), "{error}");
        assert_eq!(broker.renewals(), 2, "{refusal}");
    }
}

#[tokio::test]
async fn a_token_service_that_refuses_is_shown_renewed_credentials() {
    let right = Arc::new(Mutex::new("first"));
    let current = right.clone();
    let fake = Fake::start(move |request, _| {
        let host = request.header("host").unwrap().to_owned();
        let password = *current.lock().unwrap();
        let token = format!("token-of-{password}");
        if request.path.starts_with("/token") {
            let known = request.header("authorization") == Some(&basic(password));
            return if known {
                answer(200, &[], format!(r#"{{"token":"{token}","expires_in":3600}}"#))
            } else {
                answer(401, &[], "wrong password")
            };
        }
        match request.header("authorization") {
            Some(header) if header == format!("Bearer {token}") => part(),
            _ => answer(401, &[("www-authenticate", &format!("Bearer realm=\"http://{host}/token\""))], ""),
        }
    })
    .await;
    let broker = Broker::new(with_password(&fake.host, "first"));
    let (client, repository) = (client(&broker), fake.repository("app"));
    let digest = sha256(b"ok");
    let read = || client.blob_range(&repository, &digest, 0, 2);
    read().await.unwrap();
    *right.lock().unwrap() = "second";
    broker.will_find(with_password(&fake.host, "second"));
    read().await.unwrap();
    read().await.unwrap();
    assert_eq!(broker.renewals(), 1);
}
