//! Credentials and signed URLs that end while they are in use.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Response};
use registry::client::{Client, ClientConfig};
use registry::digest::sha256;

use crate::support::fake::{Fake, Seen, answer};
use crate::support::{config, folder};

/// Writes `user_password` as the only credentials, for `host`.
fn log_in(dir: &Path, host: &str, user_password: &str) -> PathBuf {
    let path = dir.join("config.json");
    let auths = serde_json::json!({"auths": {host: {"auth": STANDARD.encode(user_password)}}});
    std::fs::write(&path, auths.to_string()).unwrap();
    path
}

fn client_with(docker_config: PathBuf) -> Client {
    Client::new(ClientConfig { docker_config: Some(docker_config), ..config() }).unwrap()
}

fn part() -> Response<Bytes> {
    answer(206, &[("content-range", "bytes 0-1/2")], "ok")
}

/// A registry with basic authentication that takes the password in the mutex, and refuses others that it knows
/// with `refusal`.
async fn basic(refusal: u16, password: Arc<Mutex<&'static str>>) -> Fake {
    Fake::start(move |request, _| {
        let right = format!("Basic {}", STANDARD.encode(format!("AWS:{}", password.lock().unwrap())));
        match request.header("authorization") {
            Some(header) if header == right => part(),
            Some(_) if refusal == 403 => answer(403, &[], r#"{"errors":[{"code":"DENIED"}]}"#),
            _ => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
        }
    })
    .await
}

#[tokio::test]
async fn a_password_that_ended_is_looked_up_again_whether_refused_with_401_or_403() {
    for refusal in [401, 403] {
        let password = Arc::new(Mutex::new("first"));
        let (fake, dir) = (basic(refusal, password.clone()).await, folder());
        let client = client_with(log_in(dir.path(), &fake.host, "AWS:first"));
        let read = async || client.blob_range(&fake.repository("app"), &sha256(b"ok"), 0, 2).await;
        read().await.unwrap();
        *password.lock().unwrap() = "second";
        log_in(dir.path(), &fake.host, "AWS:second");
        read().await.unwrap();
        assert_eq!(fake.seen().len(), 2 + 2, "{refusal}: one refusal, one renewal");
        // Without new ones in the file, what the registry says stands, and it is not asked over and over.
        *password.lock().unwrap() = "third";
        let error = read().await.unwrap_err();
        assert!(error.is_denied() && error.to_string().contains("credentials of user AWS"), "{error}");
        assert_eq!(fake.seen().len(), 4 + 1, "{refusal}: the same password is not shown twice");
    }
}

#[tokio::test]
async fn a_403_to_credentials_that_never_worked_is_final() {
    let (fake, dir) = (basic(403, Arc::new(Mutex::new("right"))).await, folder());
    let client = client_with(log_in(dir.path(), &fake.host, "AWS:wrong"));
    let error = client.blob_range(&fake.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap_err();
    assert!(error.is_denied() && error.to_string().contains("DENIED"), "{error}");
    assert_eq!(fake.seen().len(), 2, "one challenge, one refusal");
}

/// A registry that takes only the token whose number is in `current`, and says 403 to others; its token service
/// gives out that one.
async fn with_tokens(current: Arc<AtomicUsize>, denied: &'static str) -> Fake {
    Fake::start(move |request, _| {
        let host = request.header("host").unwrap();
        let token = format!("token-{}", current.load(Ordering::SeqCst));
        if request.path.starts_with("/token") {
            return answer(200, &[], format!(r#"{{"token":"{token}","expires_in":3600}}"#));
        }
        match request.header("authorization") {
            Some(_) if !denied.is_empty() && request.path.contains(denied) => answer(403, &[], ""),
            Some(header) if header == format!("Bearer {token}") => part(),
            Some(_) => answer(403, &[], ""),
            None => {
                answer(401, &[("www-authenticate", &format!("Bearer realm=\"http://{host}/token\""))], "")
            }
        }
    })
    .await
}

fn tokens(fake: &Fake) -> usize {
    fake.seen().iter().filter(|seen| seen.path.starts_with("/token")).count()
}

#[tokio::test]
async fn a_token_that_ended_early_is_fetched_again_after_a_403() {
    let current = Arc::new(AtomicUsize::new(1));
    let fake = with_tokens(current.clone(), "").await;
    let client = Client::new(config()).unwrap();
    let read = async || client.blob_range(&fake.repository("app"), &sha256(b"ok"), 0, 2).await;
    read().await.unwrap();
    current.store(2, Ordering::SeqCst);
    read().await.unwrap();
    read().await.unwrap();
    assert_eq!(tokens(&fake), 2);
}

#[tokio::test]
async fn what_is_forbidden_to_a_good_token_costs_one_more_token_and_no_more() {
    let fake = with_tokens(Arc::new(AtomicUsize::new(1)), "/manifests/").await;
    let client = Client::new(config()).unwrap();
    let repository = fake.repository("app");
    client.blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap();
    for _ in 0..3 {
        assert!(client.manifest(&repository.with_tag("v1").unwrap()).await.unwrap_err().is_denied());
    }
    assert!(tokens(&fake) <= 2, "{} tokens", tokens(&fake));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_token_service_holds_up_only_who_needs_that_token() {
    let (entered, mut waiting) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let fake = Fake::start(move |request: &Seen, _| {
        let host = request.header("host").unwrap();
        if request.path.starts_with("/token") {
            if request.path.contains("slow") {
                entered.send(()).unwrap();
                let _ = tokio::task::block_in_place(|| released.lock().unwrap().recv());
            }
            return answer(200, &[], r#"{"token":"good"}"#);
        }
        match request.header("authorization") {
            Some("Bearer good") => part(),
            _ => answer(401, &[("www-authenticate", &format!("Bearer realm=\"http://{host}/token\""))], ""),
        }
    })
    .await;
    let client = Client::new(config()).unwrap();
    let slow = {
        let (client, repository) = (client.clone(), fake.repository("slow"));
        tokio::spawn(async move { client.blob_range(&repository, &sha256(b"ok"), 0, 2).await })
    };
    waiting.recv().await.unwrap();
    client.blob_range(&fake.repository("fast"), &sha256(b"ok"), 0, 2).await.unwrap();
    assert!(!slow.is_finished());
    release.send(()).unwrap();
    slow.await.unwrap().unwrap();
}

/// An object store whose signed URLs are good for `uses` requests, and a registry that signs them.
async fn signed(uses: usize, head: u16) -> (Fake, Fake) {
    let used: Mutex<std::collections::HashMap<String, usize>> = Mutex::default();
    let store = Fake::start(move |request, _| {
        assert_eq!(request.header("authorization"), None, "credentials for the registry reached the store");
        if request.method == Method::HEAD && head != 200 {
            return answer(head, &[], "");
        }
        let mut used = used.lock().unwrap();
        let count = used.entry(request.path.clone()).or_default();
        *count += 1;
        if *count > uses { answer(403, &[], "<Code>AccessDenied</Code>") } else { part() }
    })
    .await;
    let host = store.host.clone();
    let registry = Fake::start(move |request, number| {
        if request.header("authorization").is_none() {
            return answer(401, &[("www-authenticate", "Basic realm=\"x\"")], "");
        }
        answer(307, &[("location", &format!("http://{host}/bucket?signature={number}"))], "")
    })
    .await;
    (registry, store)
}

#[tokio::test]
async fn a_signed_url_that_ended_is_asked_for_again() {
    let (registry, store) = signed(2, 200).await;
    let dir = folder();
    let client = client_with(log_in(dir.path(), &registry.host, "u:p"));
    for _ in 0..5 {
        client.blob_range(&registry.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap();
    }
    assert_eq!(registry.seen().len(), 1 + 3, "a challenge, and three URLs for five reads");
    assert_eq!(store.seen().len(), 5 + 2);
    // One that is refused at once is asked for once more; then the store's refusal stands, and the store is named.
    let (registry, store) = signed(0, 200).await;
    let client = client_with(log_in(dir.path(), &registry.host, "u:p"));
    let error = client.blob_range(&registry.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("sent on to {}", store.host)) && text.contains("AccessDenied"), "{text}");
    assert!(!text.contains("user u"), "the store was shown no credentials: {text}");
    assert_eq!(store.seen().len(), 2);
}

#[tokio::test]
async fn a_store_that_refuses_head_is_asked_for_one_byte() {
    let dir = folder();
    for status in [400, 403, 405, 501] {
        let (registry, store) = signed(9, status).await;
        let client = client_with(log_in(dir.path(), &registry.host, "u:p"));
        let (repository, digest) = (registry.repository("app"), sha256(b"ok"));
        assert_eq!(client.blob_size(&repository, &digest).await.unwrap(), Some(2), "{status}");
        assert!(client.has_blob(&repository, &digest).await.unwrap(), "{status}");
        let asked: Vec<_> = store.seen().iter().map(|one| one.method.clone()).collect();
        assert_eq!(asked[..2], [Method::HEAD, Method::GET]);
    }
    let (registry, store) = signed(0, 403).await;
    let client = client_with(log_in(dir.path(), &registry.host, "u:p"));
    let error = client.blob_size(&registry.repository("app"), &sha256(b"ok")).await.unwrap_err().to_string();
    assert!(error.contains(&store.host) && error.contains("AccessDenied"), "{error}");
}
