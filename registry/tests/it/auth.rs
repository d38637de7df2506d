//! Who may do what: passwords, tokens, and what is said when they are missing or wrong.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry::client::{Client, ClientConfig};
use registry::digest::sha256;
use registry::server::ServerConfig;

use crate::support::fake::{Fake, answer};
use crate::support::{Kind, Registry, config, folder, have, noise, push_image, token};

/// A client with the credentials `user_password` for `host`.
fn client_as(dir: &Path, host: &str, user_password: &str) -> Client {
    let path = dir.join(format!("config-of-{}.json", user_password.split(':').next().unwrap()));
    let auths = serde_json::json!({"auths": {host: {"auth": STANDARD.encode(user_password)}}});
    std::fs::write(&path, auths.to_string()).unwrap();
    Client::new(ClientConfig { docker_config: Some(path), ..config() }).unwrap()
}

async fn with_htpasswd(kind: Kind, dir: &Path) -> Registry {
    let htpasswd = dir.join("htpasswd");
    std::fs::write(&htpasswd, format!("# users\nalice:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
    match kind {
        Kind::Embedded => {
            let config = ServerConfig { htpasswd: Some(htpasswd), ..ServerConfig::new(dir.join("root")) };
            Registry::embedded(config).await
        }
        Kind::Docker => {
            let auth = format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}", htpasswd.display());
            Registry::docker(dir, &auth)
        }
    }
}

crate::with_both_registries! {
    a_password_from_dockers_config_opens_the_registry,
    a_missing_or_wrong_password_is_refused_with_the_file_looked_at,
}

async fn a_password_from_dockers_config_opens_the_registry(kind: Kind) {
    let dir = folder();
    let registry = with_htpasswd(kind, dir.path()).await;
    let client = client_as(dir.path(), &registry.host(), "alice:secret");
    let image = registry.reference("app:v1");
    let (digest, layer) = push_image(&client, &image, noise(31, 700_000)).await;
    assert_eq!(client.manifest(&image).await.unwrap().0.digest(), &digest);
    client.blob_range(image.repository(), &layer, 10, 20).await.unwrap();
}

async fn a_missing_or_wrong_password_is_refused_with_the_file_looked_at(kind: Kind) {
    let dir = folder();
    let registry = with_htpasswd(kind, dir.path()).await;
    let image = registry.reference("app:v1");
    let elsewhere = folder();
    for (client, hint) in [
        (Client::new(config()).unwrap(), "no credentials: /nonexistent/docker/config.json does not exist"),
        (client_as(elsewhere.path(), "elsewhere:1", "alice:secret"), "no credentials for 127.0.0.1"),
        (client_as(dir.path(), &registry.host(), "alice:wrong"), "credentials of user alice from"),
        (client_as(dir.path(), &registry.host(), "bob:secret"), "credentials of user bob from"),
    ] {
        let error = client.manifest(&image).await.unwrap_err();
        assert!(error.is_denied() && error.to_string().contains(hint), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        let error = client.push_blob(image.repository(), noise(32, 10)).await.unwrap_err();
        assert!(error.is_denied(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_for_each_scope_and_used_again() {
    if !have("docker-registry") || !have("openssl") {
        return;
    }
    let dir = folder();
    let key = token::Key::make(dir.path());
    let certificate = key.certificate.clone();
    let service = token::service(key).await;
    let auth = token::configuration(&service.host, &certificate);
    let registry = Registry::docker(dir.path(), &auth);
    let alice = client_as(dir.path(), &registry.host(), "alice:secret");
    let image = registry.reference("team/app:v1");
    let (digest, layer) = push_image(&alice, &image, noise(33, 700_000)).await;
    assert_eq!(alice.manifest(&image).await.unwrap().0.digest(), &digest);
    let other = registry.repository("team/other");
    assert!(alice.mount_blob(&other, image.repository(), &layer).await.unwrap());
    let asked = service.seen().len();
    for _ in 0..5 {
        alice.blob_range(image.repository(), &layer, 10, 20).await.unwrap();
        alice.has_blob(image.repository(), &layer).await.unwrap();
    }
    assert_eq!(service.seen().len(), asked, "tokens are kept");
    let mount = service.seen().into_iter().find(|seen| seen.path.contains("other")).unwrap();
    let scopes = "scope=repository%3Ateam%2Fapp%3Apull&scope=repository%3Ateam%2Fother%3Apull%2Cpush";
    assert!(mount.path.contains(scopes) && mount.path.contains("service=test+registry"), "{}", mount.path);

    // Anonymous users get tokens too, but only to read with.
    let anonymous = Client::new(config()).unwrap();
    assert_eq!(anonymous.manifest(&image).await.unwrap().0.digest(), &digest);
    let error = anonymous.push_blob(image.repository(), noise(34, 10)).await.unwrap_err();
    assert!(error.is_denied() && error.to_string().contains("no credentials"), "{error}");
    // The token service's own refusal is reported as such.
    let mallory = client_as(dir.path(), &registry.host(), "mallory:guess");
    let error = mallory.manifest(&image).await.unwrap_err();
    assert!(error.to_string().contains("token for repository:team/app:pull"), "{error}");
    assert!(error.to_string().contains("incorrect username or password"), "{error}");
}

/// A registry that takes only the token issued last, and a service that issues `token-1`, `token-2`, ….
async fn forgetful(expires_in: u64, forget_after: usize) -> (Fake, std::sync::Arc<AtomicUsize>) {
    let issued = std::sync::Arc::new(AtomicUsize::new(0));
    let (count, used) = (issued.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |request, _| {
        let host = request.header("host").unwrap();
        if request.path.starts_with("/token") {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let body = format!(r#"{{"access_token":"token-{number}","expires_in":{expires_in}}}"#);
            return answer(200, &[], body);
        }
        let expected = format!("Bearer token-{}", count.load(Ordering::SeqCst));
        let fresh = request.header("authorization") == Some(&expected);
        if fresh && used.fetch_add(1, Ordering::SeqCst) % forget_after != forget_after - 1 {
            return answer(206, &[("content-range", "bytes 0-1/2")], "ok");
        }
        let challenge =
            format!("Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:app:pull\"");
        answer(401, &[("www-authenticate", &challenge)], "")
    })
    .await;
    (fake, issued)
}

#[tokio::test]
async fn a_token_that_is_refused_is_fetched_again() {
    let (fake, issued) = forgetful(3600, 3).await;
    let client = Client::new(config()).unwrap();
    for _ in 0..10 {
        client.blob_range(&fake.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap();
    }
    let issued = issued.load(Ordering::SeqCst);
    assert!((4..=6).contains(&issued), "{issued} tokens");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let (fake, issued) = forgetful(0, usize::MAX).await;
    let client = Client::new(config()).unwrap();
    for _ in 0..3 {
        client.blob_range(&fake.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap();
    }
    assert_eq!(issued.load(Ordering::SeqCst), 3);
    let refused = fake.seen().iter().filter(|seen| seen.header("authorization").is_none()).count();
    assert_eq!(refused, 1 + 3, "one challenge, three fetches of tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_wait_for_one_token() {
    let (fake, issued) = forgetful(3600, usize::MAX).await;
    let client = Client::new(config()).unwrap();
    let repository = fake.repository("app");
    client.blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap();
    let read = || {
        let (client, repository) = (client.clone(), repository.clone());
        tokio::spawn(async move { client.blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap() })
    };
    for task in (0..50).map(|_| read()).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(issued.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let fake = Fake::start(|request, _| {
        let host = request.header("host").unwrap();
        match (request.path.as_str(), request.header("authorization")) {
            ("/token", None) => {
                let body = String::from_utf8(request.body.to_vec()).unwrap();
                assert_eq!(request.method, "POST");
                assert!(body.contains("grant_type=refresh_token&refresh_token=i%2Fd"), "{body}");
                assert!(body.contains("scope=repository%3Aapp%3Apull"), "{body}");
                answer(200, &[], r#"{"access_token":"good"}"#)
            }
            (_, Some("Bearer good")) => answer(206, &[("content-range", "bytes 0-1/2")], "ok"),
            _ => answer(401, &[("www-authenticate", &format!("Bearer realm=\"http://{host}/token\""))], ""),
        }
    })
    .await;
    let dir = folder();
    let path = dir.path().join("config.json");
    let auths = serde_json::json!({"auths": {fake.host.clone(): {"identitytoken": "i/d"}}});
    std::fs::write(&path, auths.to_string()).unwrap();
    let client = Client::new(ClientConfig { docker_config: Some(path), ..config() }).unwrap();
    client.blob_range(&fake.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap();
}
