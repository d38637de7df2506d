//! The embedded server's HTTP, request by request.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use registry::digest::sha256;
use registry::server::ServerConfig;
use reqwest::{RequestBuilder, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Kind, MANIFEST, Registry, SOON, client, folder, noise, push_image};

/// A plain HTTP client that adds nothing of its own.
pub(crate) fn http() -> reqwest::Client {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let builder = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy();
    builder.redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

struct Api {
    registry: Registry,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Api {
    async fn start() -> Self {
        let dir = folder();
        Self { registry: Registry::start(Kind::Embedded, dir.path()).await, http: http(), _dir: dir }
    }

    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.http.request(method, format!("http://{}{path}", self.registry.host()))
    }

    async fn begin(&self) -> String {
        let response = self.request("POST", "/v2/app/blobs/uploads/").send().await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        header(&response, "location").to_owned()
    }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

async fn code(response: Response) -> String {
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_base_path_says_which_api_this_is() {
    let api = Api::start().await;
    for path in ["/v2/", "/v2"] {
        let response = api.request("GET", path).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "docker-distribution-api-version"), "registry/2.0");
    }
    assert_eq!(api.request("GET", "/").send().await.unwrap().status(), StatusCode::NOT_FOUND);
    let response = api.request("POST", "/v2/").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(header(&response, "allow"), "GET, HEAD");
}

#[tokio::test]
async fn pieces_must_follow_on_each_other() {
    let api = Api::start().await;
    let location = api.begin().await;
    let patch = |range: &str, body: &'static str| {
        api.request("PATCH", &location).header("content-range", range).body(body).send()
    };
    let response = patch("0-4", "01234").await.unwrap();
    assert_eq!((response.status(), header(&response, "range")), (StatusCode::ACCEPTED, "0-4"));
    for range in ["0-4", "4-8", "6-10", "nonsense", "9-5"] {
        let response = patch(range, "56789").await.unwrap();
        assert_eq!(
            (response.status(), header(&response, "range")),
            (StatusCode::RANGE_NOT_SATISFIABLE, "0-4")
        );
        assert_eq!(header(&response, "location"), location);
    }
    let response = patch("5-9", "too long").await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(code(response).await, "SIZE_INVALID");
    let response = api.request("GET", &location).send().await.unwrap();
    assert_eq!((response.status(), header(&response, "range")), (StatusCode::NO_CONTENT, "0-4"));
    let digest = sha256(b"0123456789");
    let response =
        api.request("PUT", &format!("{location}?digest={digest}")).body("56789").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(header(&response, "docker-content-digest"), digest.as_ref());
    let blob = api.request("GET", header(&response, "location")).send().await.unwrap();
    assert_eq!(blob.bytes().await.unwrap().as_ref(), b"0123456789");
    let gone = api.request("GET", &location).send().await.unwrap();
    assert_eq!(code(gone).await, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn one_request_is_enough_for_a_blob() {
    let api = Api::start().await;
    let digest = sha256(b"all at once");
    let path = format!("/v2/app/blobs/uploads/?digest={digest}");
    let response = api.request("POST", &path).body("all at once").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    let response = api.request("POST", &path).body("something else").send().await.unwrap();
    assert_eq!(code(response).await, "DIGEST_INVALID");
    // A mount without a repository to mount from finds the blob wherever it is.
    let path = format!("/v2/other/blobs/uploads/?mount={digest}");
    assert_eq!(api.request("POST", &path).send().await.unwrap().status(), StatusCode::CREATED);
    let path = format!("/v2/other/blobs/{digest}");
    assert_eq!(api.request("HEAD", &path).send().await.unwrap().status(), StatusCode::OK);
    let path = format!("/v2/other/blobs/uploads/?mount={}&from=../../app", sha256(b"x"));
    assert_eq!(api.request("POST", &path).send().await.unwrap().status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_blob_may_have_a_sha512_digest() {
    let api = Api::start().await;
    let mut hasher =
        registry::digest::Hasher::like(&format!("sha512:{}", "0".repeat(128)).parse().unwrap()).unwrap();
    hasher.update(b"longer");
    let digest = hasher.finish();
    let path = format!("/v2/app/blobs/uploads/?digest={digest}");
    assert_eq!(api.request("POST", &path).body("longer").send().await.unwrap().status(), StatusCode::CREATED);
    let mount = format!("/v2/other/blobs/uploads/?mount={digest}&from=app");
    assert_eq!(api.request("POST", &mount).send().await.unwrap().status(), StatusCode::CREATED);
    for name in ["app", "other"] {
        let blob = api.request("GET", &format!("/v2/{name}/blobs/{digest}")).send().await.unwrap();
        assert_eq!(blob.bytes().await.unwrap().as_ref(), b"longer", "{name}");
    }
}

#[tokio::test]
async fn an_image_may_be_without_layers_and_schema_1_is_refused_by_name() {
    let api = Api::start().await;
    let config = client().push_blob(&api.registry.repository("app"), "{}".into()).await.unwrap();
    let put = |body: serde_json::Value| {
        let request = api.request("PUT", "/v2/app/manifests/v1").header("content-type", MANIFEST);
        request.body(body.to_string()).send()
    };
    let config = serde_json::json!({"mediaType": "x/y", "digest": config.to_string(), "size": 2});
    for layers in [serde_json::json!(null), serde_json::json!([])] {
        let body = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        assert_eq!(put(body).await.unwrap().status(), StatusCode::CREATED);
        let got = api.request("GET", "/v2/app/manifests/v1").send().await.unwrap();
        assert_eq!(header(&got, "content-type"), MANIFEST, "{layers}");
    }
    let response = put(serde_json::json!({"schemaVersion": 1, "fsLayers": []})).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let text = String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap();
    assert!(text.contains("schema 1"), "{text}");
}

#[tokio::test]
async fn referrers_in_a_repository_that_does_not_exist_are_none() {
    let api = Api::start().await;
    let path = format!("/v2/made/up/referrers/{}", sha256(b"x"));
    let response = api.request("GET", &path).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "content-type"), "application/vnd.oci.image.index.v1+json");
    let list: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(list["manifests"], serde_json::json!([]));
}

#[tokio::test]
async fn ranges_and_conditions_of_a_blob_are_honoured() {
    let api = Api::start().await;
    let data = noise(71, 2_000_000);
    let digest = client().push_blob(&api.registry.repository("app"), data.clone()).await.unwrap();
    let path = format!("/v2/app/blobs/{digest}");
    let get = |name: &'static str, value: String| api.request("GET", &path).header(name, value).send();
    for (range, part) in [
        ("bytes=0-9", 0..10),
        ("bytes=-7", 1_999_993..2_000_000),
        ("bytes=1500000-", 1_500_000..2_000_000),
        ("bytes=0-1999999", 0..2_000_000),
    ] {
        let response = get("range", range.to_owned()).await.unwrap();
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        let expected = format!("bytes {}-{}/2000000", part.start, part.end - 1);
        assert_eq!(header(&response, "content-range"), expected);
        assert_eq!(response.bytes().await.unwrap(), data.slice(part), "{range}");
    }
    let response = get("range", "bytes=2000000-".to_owned()).await.unwrap();
    assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(header(&response, "content-range"), "bytes */2000000");
    let response = get("if-none-match", format!("\"{digest}\"")).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
    let response = api.request("HEAD", &path).send().await.unwrap();
    assert_eq!(header(&response, "content-length"), "2000000");
    assert_eq!(header(&response, "accept-ranges"), "bytes");
}

#[tokio::test]
async fn the_access_log_counts_every_byte() {
    let api = Api::start().await;
    let data = noise(72, 1_000_000);
    let digest = client().push_blob(&api.registry.repository("app"), data).await.unwrap();
    let path = format!("/v2/app/blobs/{digest}");
    api.request("HEAD", &path).send().await.unwrap();
    api.request("GET", &path).header("range", "bytes=5-14").send().await.unwrap().bytes().await.unwrap();
    api.request("GET", &path).send().await.unwrap().bytes().await.unwrap();
    let log = api.registry.log_when(|log| log.iter().filter(|line| line.method == "GET").count() == 2).await;
    let of_blob: Vec<_> = log.iter().filter(|line| line.path == path).collect();
    let seen: Vec<_> =
        of_blob.iter().map(|l| (l.method.as_str(), l.status, l.range.as_deref(), l.bytes_sent)).collect();
    let expected = [
        ("HEAD", 404, None, 0),
        ("HEAD", 200, None, 0),
        ("GET", 206, Some("bytes=5-14"), 10),
        ("GET", 200, None, 1_000_000),
    ];
    assert_eq!(seen, expected);
    assert_eq!(log.iter().map(|line| line.bytes_received).sum::<u64>(), 1_000_000);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let api = Api::start().await;
    for tag in ["a", "b", "c", "d"] {
        push_image(&client(), &api.registry.reference(&format!("x/{tag}:{tag}")), noise(73, 10)).await;
        push_image(&client(), &api.registry.reference(&format!("app:{tag}")), noise(73, 10)).await;
    }
    for (path, key, expected) in [
        ("/v2/app/tags/list?n=3", "tags", vec![vec!["a", "b", "c"], vec!["d"]]),
        ("/v2/app/tags/list?n=2&last=a", "tags", vec![vec!["b", "c"], vec!["d"]]),
        ("/v2/app/tags/list?n=0", "tags", vec![vec![]]),
        ("/v2/_catalog?n=2", "repositories", vec![vec!["app", "x/a"], vec!["x/b", "x/c"], vec!["x/d"]]),
    ] {
        let mut next = Some(path.to_owned());
        let mut pages = Vec::new();
        while let Some(path) = next {
            let response = api.request("GET", &path).send().await.unwrap();
            let link = header(&response, "link").to_owned();
            next = link.strip_prefix('<').and_then(|link| Some(link.split_once('>')?.0.to_owned()));
            let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
            pages
                .push(body[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect());
        }
        let pages: Vec<Vec<String>> = pages;
        assert_eq!(pages, expected, "{path}");
    }
    let response = api.request("GET", "/v2/app/tags/list?n=x").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn manifests_are_checked_when_they_come_in() {
    let api = Api::start().await;
    push_image(&client(), &api.registry.reference("app:v1"), noise(74, 10)).await;
    let put = |kind: &'static str, body: Vec<u8>| {
        api.request("PUT", "/v2/app/manifests/v2").header("content-type", kind).body(body).send()
    };
    for (kind, body, expected) in [
        (MANIFEST, b"not json".to_vec(), "MANIFEST_INVALID"),
        (
            MANIFEST,
            br#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#.to_vec(),
            "MANIFEST_INVALID",
        ),
        (MANIFEST, br#"{"config":{"digest":"../../etc"},"layers":[]}"#.to_vec(), "MANIFEST_INVALID"),
        (
            "application/vnd.oci.image.index.v1+json",
            format!(r#"{{"manifests":[{{"digest":"{}"}}]}}"#, sha256(b"x")).into_bytes(),
            "MANIFEST_BLOB_UNKNOWN",
        ),
    ] {
        assert_eq!(code(put(kind, body).await.unwrap()).await, expected);
    }
    let response = put(MANIFEST, vec![b' '; (4 << 20) + 1]).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let path = format!("/v2/app/manifests/{}", sha256(b"other"));
    let response =
        api.request("PUT", &path).header("content-type", MANIFEST).body("{}").send().await.unwrap();
    assert_eq!(code(response).await, "DIGEST_INVALID");
    // A tag can be deleted alone.
    let delete = || api.request("DELETE", "/v2/app/manifests/v1").send();
    assert_eq!(delete().await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(code(delete().await.unwrap()).await, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn deletion_can_be_turned_off() {
    let dir = folder();
    let config = ServerConfig { delete: false, ..ServerConfig::new(dir.path().join("root")) };
    let registry = Registry::embedded(config).await;
    let image = registry.reference("app:v1");
    let (digest, layer) = push_image(&client(), &image, noise(75, 10)).await;
    let error = client().delete_manifest(&image.at_digest(digest)).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::METHOD_NOT_ALLOWED));
    assert!(client().delete_blob(image.repository(), &layer).await.is_err());
    client().manifest(&image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_requests_finish_and_ends_those_that_do_not() {
    let dir = folder();
    let config = ServerConfig { drain_seconds: 1, ..ServerConfig::new(dir.path().join("root")) };
    let registry = Registry::embedded(config).await;
    let host = registry.host();
    // A client that begins a request and never ends it.
    let mut stuck = TcpStream::connect(&host).await.unwrap();
    let head = format!(
        "POST /v2/app/blobs/uploads/?digest={} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12",
        sha256(b"")
    );
    stuck.write_all(head.as_bytes()).await.unwrap();
    let uploads = dir.path().join("root/docker/registry/v2/repositories/app/_uploads");
    let started = Instant::now();
    while !uploads.exists() {
        assert!(started.elapsed() < SOON, "the request does not arrive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let started = Instant::now();
    registry.stop().await;
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(900) && elapsed < SOON, "{elapsed:?}");
    assert!(TcpStream::connect(&host).await.is_err(), "nothing listens any more");
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, stuck.read_to_end(&mut rest)).await.expect("the connection is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_stall_are_let_go() {
    let dir = folder();
    let config = ServerConfig { idle_seconds: 1, ..ServerConfig::new(dir.path().join("root")) };
    let registry = Registry::embedded(config).await;
    let digest = client().push_blob(&registry.repository("app"), noise(76, 30_000_000)).await.unwrap();
    // One that sends half a head, one that sends half a body, one that does not read its answer.
    let requests = [
        "GET /v2/ HTTP/1.1\r\nhost".to_owned(),
        format!(
            "POST /v2/app/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12"
        ),
        format!("GET /v2/app/blobs/{digest} HTTP/1.1\r\nhost: x\r\n\r\n"),
    ];
    for request in requests {
        let mut stream = TcpStream::connect(registry.host()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        if request.starts_with("GET /v2/app/blobs") {
            let unread = |log: &[registry::server::AccessRecord]| {
                log.iter().any(|line| line.path.contains(digest.as_ref()) && line.method == "GET")
            };
            let log = registry.log_when(unread).await;
            let sent =
                log.iter().filter(|line| line.method == "GET").map(|line| line.bytes_sent).sum::<u64>();
            assert!(sent < 30_000_000, "the answer was not sent in full: {sent}");
        } else {
            let mut rest = Vec::new();
            let closed = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
            assert!(closed.is_ok(), "{request} keeps its connection");
        }
    }
}
