//! Reads from registries, mirrors and object stores that misbehave.

use std::collections::BTreeMap;
use std::time::Duration;

use registry::client::{Client, ClientConfig, Error, HostConfig, Timeouts};
use registry::digest::sha256;
use registry::{Reference, Repository};

use crate::support::fake::{Fake, answer};
use crate::support::proxy::{Proxy, Way};
use crate::support::{Kind, MANIFEST, Registry, client, config, folder, noise, push_image, read_blob};

fn impatient() -> Client {
    let timeouts = Timeouts { idle: Duration::from_millis(200), ..config().timeouts };
    let retries = registry::client::Retries { attempts: 2, ..config().retries };
    Client::new(ClientConfig { timeouts, retries, ..config() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let dir = folder();
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let data = noise(21, 4_000_000);
    let digest = client().push_blob(&registry.repository("app"), data.clone()).await.unwrap();
    let proxy = Proxy::start(registry.host(), Way::ToClient, vec![1_000_000, 1_100_000, 3_500_000]).await;
    let repository = Repository::parse(&format!("{}/app", proxy.host)).unwrap();
    assert_eq!(read_blob(&client(), &repository, &digest).await, data);
    assert_eq!(proxy.cuts(), 3);
    let log = registry.log_when(|log| log.iter().filter(|line| line.method == "GET").count() == 4).await;
    let ranges: Vec<_> =
        log.iter().filter(|line| line.method == "GET").filter_map(|l| l.range.clone()).collect();
    assert_eq!(ranges.len(), 3, "each goes on from where the one before broke: {ranges:?}");
}

#[tokio::test]
async fn a_body_shorter_than_announced_is_read_again_from_there() {
    let digest = sha256(b"0123456789");
    let first = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123".to_vec();
    let rest =
        b"HTTP/1.1 206 Partial Content\r\ncontent-length: 6\r\ncontent-range: bytes 4-9/10\r\n\r\n456789"
            .to_vec();
    let fake = Fake::raw(vec![first, rest]).await;
    assert_eq!(read_blob(&client(), &fake.repository("app"), &digest).await, b"0123456789");
    assert_eq!(fake.seen()[1].header("range"), Some("bytes=4-9"));
}

#[tokio::test]
async fn a_short_range_is_an_error_and_no_short_answer() {
    let short =
        b"HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\ncontent-range: bytes 0-7/10\r\n\r\n0123"
            .to_vec();
    let still = b"HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\ncontent-range: bytes 4-7/10\r\n\r\n45"
        .to_vec();
    let fake = Fake::raw(vec![short, still]).await;
    let error = impatient().blob_range(&fake.repository("app"), &sha256(b""), 0, 8).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_still_serves_them() {
    let fake = Fake::start(|_, _| answer(200, &[], noise(22, 500_000))).await;
    let repository = fake.repository("app");
    let part = client().blob_range(&repository, &sha256(b""), 123_456, 200_000).await.unwrap();
    assert_eq!(part, noise(22, 500_000).slice(123_456..323_456));
}

#[tokio::test]
async fn an_answer_with_another_range_is_refused() {
    for range in ["bytes 1-8/10", "bytes 0-6/10", "bytes 0-8/10", "nonsense", ""] {
        let fake = Fake::start(move |_, _| answer(206, &[("content-range", range)], "01234567")).await;
        let error = client().blob_range(&fake.repository("app"), &sha256(b""), 0, 8).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{range}: {error}");
        assert_eq!(fake.seen().len(), 1);
    }
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_is_an_error() {
    let fake = Fake::start(|request, _| {
        let kind = if request.path.contains("manifests") { MANIFEST } else { "application/octet-stream" };
        answer(200, &[("content-type", kind)], r#"{"not":"it"}"#)
    })
    .await;
    let repository = fake.repository("app");
    let mut reader = client().blob(&repository, &sha256(b"it")).unwrap();
    let error = loop {
        match reader.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("wrong content ended well"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let error = client().manifest(&repository.with_digest(sha256(b"it"))).await.unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    assert!(error.to_string().contains(sha256(b"it").as_ref()), "{error}");
}

#[tokio::test]
async fn an_announced_digest_binds_a_tag() {
    let other = sha256(b"other").to_string();
    let fake = Fake::start(move |_, _| {
        answer(200, &[("content-type", MANIFEST), ("docker-content-digest", &other)], "{}")
    })
    .await;
    let error = client().manifest(&fake.repository("app").with_tag("v1").unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}

#[tokio::test]
async fn a_silent_registry_is_an_error_within_the_deadline() {
    let fake = Fake::raw(vec![]).await;
    let error = impatient().blob_range(&fake.repository("app"), &sha256(b""), 0, 8).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert!(error.to_string().contains("no byte moved for 200ms"), "{error}");
    assert_eq!(fake.seen().len(), 2, "tried as often as configured");
}

#[tokio::test]
async fn a_small_operation_ends_at_its_deadline_however_many_attempts_are_left() {
    let fake = Fake::start(|_, _| answer(503, &[("retry-after", "1")], "")).await;
    let timeouts = Timeouts { operation: Duration::from_millis(300), ..config().timeouts };
    let retries = registry::client::Retries {
        attempts: 1000,
        first_delay: Duration::from_millis(50),
        longest_delay: Duration::from_millis(60),
    };
    let client = Client::new(ClientConfig { timeouts, retries, ..config() }).unwrap();
    let error = client.blob_range(&fake.repository("app"), &sha256(b""), 0, 8).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    assert!(error.to_string().contains("503"), "says what went wrong before: {error}");
    // One a delay at most: for all that are allowed there is no time.
    assert!((1..100).contains(&fake.seen().len()), "{} attempts", fake.seen().len());
}

#[tokio::test]
async fn too_many_requests_is_waited_out() {
    let fake = Fake::start(|_, number| match number {
        0 => answer(429, &[("retry-after", "0")], ""),
        1 => answer(502, &[], ""),
        _ => answer(206, &[("content-range", "bytes 0-1/2")], "ok"),
    })
    .await;
    let part = client().blob_range(&fake.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap();
    assert_eq!((part.as_ref(), fake.seen().len()), (&b"ok"[..], 3));
}

#[tokio::test]
async fn a_redirect_to_an_object_store_takes_no_credentials_along() {
    let data = noise(23, 1000);
    let store = Fake::start({
        let data = data.clone();
        move |_, _| answer(206, &[("content-range", "bytes 0-999/1000")], data.clone())
    })
    .await;
    let location = format!("http://{}/bucket/object?signature=x%2Fy", store.host);
    let fake = Fake::start(move |request, _| match request.header("authorization") {
        Some("Basic YWxpY2U6c2VjcmV0") => answer(307, &[("location", &location)], ""),
        _ => answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""),
    })
    .await;
    let dir = folder();
    let path = dir.path().join("config.json");
    let auths = serde_json::json!({"auths": {fake.host.clone(): {"auth": "YWxpY2U6c2VjcmV0"}}});
    std::fs::write(&path, auths.to_string()).unwrap();
    let client = Client::new(ClientConfig { docker_config: Some(path), ..config() }).unwrap();
    let part = client.blob_range(&fake.repository("app"), &sha256(&data), 0, 1000).await.unwrap();
    assert_eq!(part, data);
    let seen = store.seen();
    assert_eq!(seen[0].path, "/bucket/object?signature=x%2Fy");
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[0].header("range"), Some("bytes=0-999"));
}

#[tokio::test]
async fn where_a_blob_was_redirected_to_is_remembered_until_it_is_refused() {
    // The store's URLs are good for three requests.
    let store = Fake::start(|_, number| match number % 4 {
        3 => answer(403, &[], "expired"),
        _ => answer(206, &[("content-range", "bytes 0-1/2")], "ok"),
    })
    .await;
    let location = format!("http://{}/object?signed", store.host);
    let fake = Fake::start(move |_, _| answer(307, &[("location", &location)], "")).await;
    let client = client();
    for _ in 0..8 {
        client.blob_range(&fake.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap();
    }
    assert_eq!((fake.seen().len(), store.seen().len()), (3, 10));
    client.blob_range(&fake.repository("app"), &sha256(b"other"), 0, 2).await.unwrap();
    assert_eq!(fake.seen().len(), 4, "each blob has its own");
}

#[tokio::test]
async fn a_mirror_with_other_content_under_a_digest_is_passed_over() {
    let manifest = r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;
    let origin = Fake::start(move |_, _| answer(200, &[("content-type", MANIFEST)], manifest)).await;
    let mirror = Fake::start(|_, _| answer(200, &[("content-type", MANIFEST)], "{}")).await;
    let client = with_mirrors(&origin.host, vec![mirror.host.clone()]);
    let reference = origin.repository("app").with_digest(sha256(manifest.as_bytes()));
    assert_eq!(client.manifest(&reference).await.unwrap().1, manifest);
    assert_eq!((mirror.seen().len(), origin.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let fake = Fake::start(|_, _| answer(302, &[("location", "/v2/again")], "")).await;
    let error = client().blob_size(&fake.repository("app"), &sha256(b"")).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
}

fn with_mirrors(origin: &str, mirrors: Vec<String>) -> Client {
    let host = HostConfig { mirrors, ..HostConfig::default() };
    Client::new(ClientConfig { hosts: BTreeMap::from([(origin.to_owned(), host)]), ..config() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_read_first_and_the_registry_when_they_fail() {
    let dir = folder();
    let origin = Registry::start(Kind::Embedded, dir.path()).await;
    let image = origin.reference("app:v1");
    let (digest, layer) = push_image(&client(), &image, noise(24, 50_000)).await;
    let mirror = Fake::start(|request, _| match request.path.contains("/blobs/") {
        true => answer(206, &[("content-range", "bytes 0-3/50000")], "fake"),
        false => answer(404, &[], ""),
    })
    .await;
    let dead = "http://127.0.0.1:9".to_owned();
    let client = with_mirrors(&origin.host(), vec![dead, mirror.host.clone()]);
    let part = client.blob_range(image.repository(), &layer, 0, 4).await.unwrap();
    assert_eq!(part.as_ref(), b"fake", "the mirror answered");
    assert!(mirror.seen()[0].path.ends_with(&format!("?ns={}", origin.host().replace(':', "%3A"))));
    assert_eq!(client.manifest(&image).await.unwrap().0.digest(), &digest, "the mirror has no manifests");
    // A whole blob from the mirror fails its check at the end; the caller is told, not given wrong bytes.
    let writes = client.push_blob(image.repository(), noise(25, 10)).await.unwrap();
    assert!(
        self::client().has_blob(image.repository(), &writes).await.unwrap(),
        "pushed to the registry itself"
    );
    assert!(mirror.seen().iter().all(|seen| seen.method == "GET"), "mirrors are only read from");
}

#[tokio::test]
async fn a_dead_mirror_is_not_asked_again_at_once() {
    let origin = Fake::start(|_, _| answer(206, &[("content-range", "bytes 0-1/2")], "ok")).await;
    let mirror = Fake::start(|_, _| answer(503, &[], "")).await;
    let client = with_mirrors(&origin.host, vec![mirror.host.clone()]);
    for _ in 0..5 {
        client.blob_range(&origin.repository("app"), &sha256(b"ok"), 0, 2).await.unwrap();
    }
    assert_eq!((mirror.seen().len(), origin.seen().len()), (1, 5));
}

#[tokio::test]
async fn pages_of_tags_are_followed() {
    let fake = Fake::start(|request, _| match request.path.split_once('?').map(|(_, query)| query) {
        None => {
            answer(200, &[("link", "</v2/app/tags/list?n=2&last=b>; rel=\"next\"")], r#"{"tags":["a","b"]}"#)
        }
        Some("n=2&last=b") => answer(200, &[], r#"{"tags":["c"]}"#),
        Some(other) => panic!("{other}"),
    })
    .await;
    assert_eq!(client().tags(&fake.repository("app")).await.unwrap(), ["a", "b", "c"]);
}

#[tokio::test]
async fn lists_without_end_are_refused() {
    let fake = Fake::start(|request, _| {
        let (place, other) = if request.path.contains("last=a") { ("b", "a") } else { ("a", "b") };
        let path = request.path.split('?').next().unwrap_or_default();
        let more = format!("<{path}?last={place}>; rel=\"next\"");
        let names = vec![other; 300_000];
        let page = serde_json::json!({"tags": names, "repositories": names});
        answer(200, &[("link", &more)], page.to_string())
    })
    .await;
    let error = client().tags(&fake.repository("app")).await.unwrap_err().to_string();
    assert!(error.contains("goes on behind"), "{error}");
    let error = client().repositories(&fake.host).await.unwrap_err().to_string();
    assert!(error.contains("goes on behind"), "{error}");
}

#[tokio::test]
async fn an_endless_manifest_is_refused() {
    let fake = Fake::start(|_, _| answer(200, &[("content-type", MANIFEST)], vec![b' '; 20 << 20])).await;
    let reference = Reference::parse(&format!("{}/app:v1", fake.host)).unwrap();
    let error = client().manifest(&reference).await.unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}
