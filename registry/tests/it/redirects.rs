//! Registries that send uploads elsewhere.

use bytes::Bytes;
use http::Method;
use registry::client::{Client, ClientConfig};
use registry::digest::sha256;

use crate::support::fake::{Fake, answer};
use crate::support::{Kind, Registry, config, folder, noise, push_image, read_blob};

/// A registry that wants a password and sends every request on to `other`.
async fn elsewhere(status: u16, other: String) -> Fake {
    Fake::start(move |request, _| match request.header("authorization") {
        None => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
        Some(_) => answer(status, &[("location", &format!("http://{other}{}", request.path))], ""),
    })
    .await
}

fn client_of(dir: &std::path::Path, host: &str) -> Client {
    let path = dir.join("config.json");
    let auths = serde_json::json!({"auths": {host: {"username": "u", "password": "p"}}});
    std::fs::write(&path, auths.to_string()).unwrap();
    Client::new(ClientConfig { docker_config: Some(path), ..config() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_and_manifests_follow_307_and_308() {
    for status in [307, 308] {
        let dir = folder();
        let registry = Registry::start(Kind::Embedded, dir.path()).await;
        let front = elsewhere(status, registry.host()).await;
        let client = client_of(dir.path(), &front.host);
        let image = front.repository("team/app").with_tag("v1").unwrap();
        // Larger than a piece: POST, PATCH and PUT.
        let data = noise(41, 700_000);
        let (digest, layer) = push_image(&client, &image, data.clone()).await;
        assert_eq!(client.manifest(&image).await.unwrap().0.digest(), &digest);
        assert_eq!(read_blob(&client, &registry.repository("team/app"), &layer).await, data);
        let posted = front.seen().iter().any(|one| one.method == Method::POST);
        let patched = front.seen().iter().any(|one| one.method == Method::PATCH);
        assert!(posted && !patched, "pieces go where the upload was begun");
    }
}

#[tokio::test]
async fn no_credentials_reach_the_host_that_an_upload_is_sent_on_to() {
    let other = Fake::start(|request, _| {
        assert_eq!(request.header("authorization"), None);
        match request.method {
            Method::POST => answer(202, &[("location", "/upload/1")], ""),
            Method::PUT => answer(201, &[], ""),
            _ => answer(404, &[], ""),
        }
    })
    .await;
    let front = elsewhere(307, other.host.clone()).await;
    let dir = folder();
    let client = client_of(dir.path(), &front.host);
    client.push_blob(&front.repository("app"), Bytes::from("data")).await.unwrap();
    let put = other.seen().into_iter().find(|one| one.method == Method::PUT).unwrap();
    assert_eq!(put.body, "data");
    assert!(
        put.path.starts_with(&format!("/upload/1?digest={}", sha256(b"data").algorithm())),
        "{}",
        put.path
    );
}

#[tokio::test]
async fn an_upload_is_not_sent_on_where_its_method_would_change_or_in_a_circle() {
    for status in [301, 302, 303] {
        let front = elsewhere(status, "127.0.0.1:1".to_owned()).await;
        let dir = folder();
        let client = client_of(dir.path(), &front.host);
        let error = client.begin_upload(&front.repository("app")).await.err().unwrap();
        assert_eq!(error.status().map(|status| status.as_u16()), Some(status), "{error}");
    }
    let circle = Fake::start(|request, _| answer(307, &[("location", &request.path)], "")).await;
    let error = Client::new(config()).unwrap().begin_upload(&circle.repository("app")).await.err().unwrap();
    assert!(error.to_string().contains("more than 5 redirects"), "{error}");
}

#[tokio::test]
async fn pieces_are_as_long_as_the_registry_asks_for() {
    let fake = Fake::start(|request, _| match request.method {
        Method::POST => answer(202, &[("location", "/upload"), ("oci-chunk-min-length", "300000")], ""),
        Method::PATCH => {
            let last = request.header("content-range").unwrap().split_once('-').unwrap().1;
            answer(202, &[("location", "/upload"), ("range", &format!("0-{last}"))], "")
        }
        _ => answer(201, &[], ""),
    })
    .await;
    let client = Client::new(config()).unwrap();
    let mut upload = client.begin_upload(&fake.repository("app")).await.unwrap();
    let data = noise(42, 1_000_000);
    upload.write(data.clone()).await.unwrap();
    upload.finish(&sha256(&data)).await.unwrap();
    let pieces: Vec<usize> =
        fake.seen().iter().filter(|one| one.method == Method::PATCH).map(|one| one.body.len()).collect();
    assert_eq!(pieces, [300_000, 300_000, 300_000, 100_000]);
    // What nobody can hold in memory is refused, not tried.
    let greedy = Fake::start(|_, _| {
        answer(202, &[("location", "/upload"), ("oci-chunk-min-length", "1000000000000")], "")
    })
    .await;
    let error = client.begin_upload(&greedy.repository("app")).await.err().unwrap();
    assert!(error.to_string().contains("1000000000000 bytes"), "{error}");
}
