//! The embedded server under many, slow, unknown and forgetful clients.

use std::path::Path;
use std::time::{Duration, Instant};

use registry::digest::sha256;
use registry::server::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::http;
use crate::support::{Kind, Registry, SOON, client, folder, noise, read_blob};

/// More than tokio has threads for work that blocks.
const SLOW_CLIENTS: usize = 600;

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !done().await {
        assert!(started.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn uploads(dir: &Path, name: &str) -> Vec<std::path::PathBuf> {
    let uploads = dir.join(format!("root/docker/registry/v2/repositories/{name}/_uploads"));
    let entries = std::fs::read_dir(uploads).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_stop_nobody_however_many_they_are() {
    let dir = folder();
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let host = registry.host();
    let digest = sha256(b"half sent");
    let head = format!(
        "POST /v2/slow/blobs/uploads/?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"
    );
    let mut slow = Vec::new();
    for _ in 0..SLOW_CLIENTS {
        let mut stream = TcpStream::connect(&host).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    // All of them have come as far as they will: what they sent is on the disk.
    until("the slow uploads arrive", async || {
        let arrived = |upload: &std::path::PathBuf| {
            std::fs::metadata(upload.join("data")).is_ok_and(|data| data.len() == 4)
        };
        uploads(dir.path(), "slow").iter().filter(|upload| arrived(upload)).count() == SLOW_CLIENTS
    })
    .await;
    let (client, repository) = (client(), registry.repository("app"));
    let pushed = async {
        let digest = client.push_blob(&repository, noise(81, 3_000_000)).await.unwrap();
        read_blob(&client, &repository, &digest).await
    };
    let pushed = tokio::time::timeout(SOON, pushed).await.expect("others are served meanwhile");
    assert_eq!(pushed, noise(81, 3_000_000));
    // And each of them may still finish.
    for stream in slow.iter_mut().take(5) {
        stream.write_all(b" sent").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 201");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_in_one_request_that_comes_to_nothing_leaves_nothing() {
    let dir = folder();
    let config = ServerConfig { idle_seconds: 3, ..ServerConfig::new(dir.path().join("root")) };
    let registry = Registry::embedded(config).await;
    let url = |digest: &str| format!("http://{}/v2/app/blobs/uploads/?digest={digest}", registry.host());
    let right = sha256(b"content");
    for (digest, range, code) in [
        ("sha256:x", "0-6", "DIGEST_INVALID"),
        ("md5:9a0364b9e99bb480dd25e1f0284c8555", "0-6", "DIGEST_INVALID"),
        ("", "0-6", "DIGEST_INVALID"),
        (sha256(b"else").as_ref(), "0-6", "DIGEST_INVALID"),
        (right.as_ref(), "1-7", "RANGE_INVALID"),
        (right.as_ref(), "0-7", "SIZE_INVALID"),
    ] {
        let request = http().post(url(digest)).header("content-range", range).body("content");
        let text = request.send().await.unwrap().text().await.unwrap();
        assert!(text.contains(code), "{digest}, {range}: {text}");
        until("its upload is removed", async || uploads(dir.path(), "app").is_empty()).await;
    }
    // Nor do one that is broken off, and one that says nothing more: nobody was told what to go on with.
    for stays in [false, true] {
        let mut stream = TcpStream::connect(registry.host()).await.unwrap();
        let head = format!(
            "POST /v2/app/blobs/uploads/?digest={right} HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\n\r\ncon"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        until("its upload begins", async || uploads(dir.path(), "app").len() == 1).await;
        let stream = stays.then_some(stream);
        until("its upload is removed", async || uploads(dir.path(), "app").is_empty()).await;
        drop(stream);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_falls_silent_in_the_middle_of_a_blob_is_let_go_and_another_may_go_on() {
    let dir = folder();
    let config = ServerConfig { idle_seconds: 3, ..ServerConfig::new(dir.path().join("root")) };
    let registry = Registry::embedded(config).await;
    let begun =
        http().post(format!("http://{}/v2/app/blobs/uploads/", registry.host())).send().await.unwrap();
    let location = begun.headers()["location"].to_str().unwrap().to_owned();
    let (data, half) = (noise(84, 4_000_000), 2_000_000);
    let digest = sha256(&data);
    let mut silent = TcpStream::connect(registry.host()).await.unwrap();
    let head =
        format!("PUT {location}?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n");
    silent.write_all(head.as_bytes()).await.unwrap();
    silent.write_all(&data[..half]).await.unwrap();
    // Others are served meanwhile.
    let (client, repository) = (client(), registry.repository("app"));
    client.push_blob(&repository, noise(85, 3_000_000)).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(SOON, silent.read_to_end(&mut answer)).await;
    ended.expect("the server ends it").unwrap();
    let text = String::from_utf8(answer).unwrap();
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("nothing came for 3s"), "{text}");
    // The upload is nobody's now, and has what came.
    let url = format!("http://{}{location}", registry.host());
    let status = http().get(&url).send().await.unwrap();
    assert_eq!(status.headers()["range"], format!("0-{}", half - 1));
    let rest = http().put(format!("{url}?digest={digest}")).body(data.slice(half..)).send().await.unwrap();
    assert_eq!(rest.status(), 201);
    assert_eq!(read_blob(&client, &repository, &digest).await, data);
    assert!(uploads(dir.path(), "app").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_let_in_is_told_before_the_body() {
    let dir = folder();
    let htpasswd = dir.path().join("htpasswd");
    std::fs::write(&htpasswd, format!("alice:{}\n", bcrypt::hash("secret", 4).unwrap())).unwrap();
    let config = ServerConfig { htpasswd: Some(htpasswd), ..ServerConfig::new(dir.path().join("root")) };
    let registry = Registry::embedded(config).await;
    for (path, expect) in [
        ("/v2/app/blobs/uploads/?digest=sha256:x", ""),
        ("/v2/app/manifests/v1", ""),
        ("/v2/app/blobs/uploads/?digest=sha256:x", "expect: 100-continue\r\n"),
    ] {
        let mut stream = TcpStream::connect(registry.host()).await.unwrap();
        let method = if path.contains("manifests") { "PUT" } else { "POST" };
        // The body is announced and does not come.
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{expect}content-length: 1000000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let read = tokio::time::timeout(SOON, stream.read_exact(&mut answer)).await;
        read.expect("the answer does not wait for the body").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 401", "{path} {expect}");
    }
    // A client that sends all of it before it reads gets to see the answer too.
    let body = noise(82, 8_000_000);
    let url = format!("http://{}/v2/app/blobs/uploads/?digest={}", registry.host(), sha256(&body));
    let response = http().post(url).body(body).send().await.unwrap();
    assert_eq!(response.status(), 401);
    assert!(uploads(dir.path(), "app").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_nobody_goes_on_with_are_removed_while_the_server_runs() {
    let dir = folder();
    let config = ServerConfig { stale_upload_seconds: 1, ..ServerConfig::new(dir.path().join("root")) };
    let registry = Registry::embedded(config).await;
    let mut upload = client().begin_upload(&registry.repository("app")).await.unwrap();
    upload.write(noise(83, 600_000)).await.unwrap();
    until("the upload begins", async || uploads(dir.path(), "app").len() == 1).await;
    until("the upload is removed", async || uploads(dir.path(), "app").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_that_come_and_go_in_the_file_come_and_go_in_the_server() {
    let dir = folder();
    let htpasswd = dir.path().join("htpasswd");
    let line = |user: &str, password: &str| format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap());
    std::fs::write(&htpasswd, line("alice", "one")).unwrap();
    let config =
        ServerConfig { htpasswd: Some(htpasswd.clone()), ..ServerConfig::new(dir.path().join("root")) };
    let registry = Registry::embedded(config).await;
    let url = format!("http://{}/v2/", registry.host());
    let (http, url) = (http(), url.as_str());
    let status = async |user: &str, password: &str| {
        http.get(url).basic_auth(user, Some(password)).send().await.unwrap().status().as_u16()
    };
    assert_eq!((status("alice", "one").await, status("bob", "two").await), (200, 401));
    std::fs::write(&htpasswd, line("alice", "changed") + &line("bob", "two")).unwrap();
    until("bob is let in", async || status("bob", "two").await == 200).await;
    assert_eq!((status("alice", "one").await, status("alice", "changed").await), (401, 200));
    std::fs::write(&htpasswd, line("alice", "changed")).unwrap();
    until("bob is let out", async || status("bob", "two").await == 401).await;
}
