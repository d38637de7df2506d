//! Pushes across broken connections, restarts and refusals.

use std::time::Duration;

use http::StatusCode;
use registry::client::{Client, Error, Timeouts, UploadConfig};
use registry::digest::sha256;
use registry::server::ServerConfig;
use registry::{Digest, Repository};
use tokio::time::timeout;

use crate::support::fake::{Fake, answer};
use crate::support::proxy::{Proxy, Way};
use crate::support::{Kind, Registry, client, config, folder, have, noise, read_blob};

const LEN: usize = 3_000_000;

const DEADLINE: Duration = Duration::from_secs(20);

async fn push(client: &Client, repository: &Repository, len: usize) -> Result<Digest, Error> {
    let data = noise(11, len);
    let mut upload = client.begin_upload(repository).await?;
    for start in (0..len).step_by(100_000) {
        upload.write(data.slice(start..(start + 100_000).min(len))).await?;
    }
    let digest = sha256(&data);
    upload.finish(&digest).await?;
    Ok(digest)
}

crate::with_both_registries! {
    a_cut_connection_is_taken_up_again,
    a_lost_answer_is_no_failure,
}

async fn a_cut_connection_is_taken_up_again(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    // In the first piece, in the middle of later ones, and twice in a row.
    let at = vec![100_000, 1_400_000, 1_500_000, 2_900_000];
    let proxy = Proxy::start(registry.host(), Way::ToServer, at).await;
    let repository = Repository::parse(&format!("{}/app", proxy.host)).unwrap();
    let digest = push(&client(), &repository, LEN).await.unwrap();
    assert_eq!(proxy.cuts(), 4);
    assert_eq!(read_blob(&client(), &registry.repository("app"), &digest).await, noise(11, LEN));
    if kind == Kind::Embedded {
        // Resumed, not sent again: only what the cuts lost came twice.
        let log = registry.log_when(|log| log.iter().any(|line| line.method == "PUT")).await;
        let received: u64 = log.iter().map(|line| line.bytes_received).sum();
        assert!(received < LEN as u64 + 4 * (64 << 10), "{received} bytes received");
    }
}

async fn a_lost_answer_is_no_failure(kind: Kind) {
    let dir = folder();
    let registry = Registry::start(kind, dir.path()).await;
    let through = async |cuts: Vec<u64>, name: &str| {
        let proxy = Proxy::start(registry.host(), Way::ToClient, cuts).await;
        let repository = Repository::parse(&format!("{}/{name}", proxy.host)).unwrap();
        let digest = push(&client(), &repository, 600_000).await.unwrap();
        assert_eq!(
            read_blob(&client(), &registry.repository(name), &digest).await,
            noise(11, 600_000),
            "{name}"
        );
        proxy
    };
    let total = through(vec![], "uncut").await.passed();
    // Wherever the answers are cut: those to the beginning, to pieces, to the closing request.
    for part in 1..=12 {
        let proxy = through(vec![total * part / 13], &format!("cut-{part}")).await;
        assert_eq!(proxy.cuts(), 1, "part {part}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_resume_without_a_spool_is_a_clear_error() {
    if !have("docker-registry") {
        return;
    }
    let dir = folder();
    let registry = Registry::start(Kind::Docker, dir.path()).await;
    let proxy = Proxy::start(registry.host(), Way::ToServer, vec![1_400_000]).await;
    let repository = Repository::parse(&format!("{}/app", proxy.host)).unwrap();
    let upload = UploadConfig { spool: false, ..config().upload };
    let client = Client::new(registry::client::ClientConfig { upload, ..config() }).unwrap();
    let error = push(&client, &repository, LEN).await.unwrap_err();
    assert!(matches!(error, Error::UploadLost { .. }), "{error}");
    assert!(error.to_string().contains("upload.spool"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_needs_no_room_on_the_disk_where_no_connection_breaks() {
    if !have("docker-registry") {
        return;
    }
    let dir = folder();
    let registry = Registry::start(Kind::Docker, dir.path()).await;
    let upload = UploadConfig { spool_dir: dir.path().join("missing"), ..config().upload };
    let client = Client::new(registry::client::ClientConfig { upload, ..config() }).unwrap();
    let digest = push(&client, &registry.repository("app"), LEN).await.unwrap();
    assert_eq!(read_blob(&client, &registry.repository("app"), &digest).await, noise(11, LEN));
    // Where one breaks, the error says what is missing.
    let proxy = Proxy::start(registry.host(), Way::ToServer, vec![1_400_000]).await;
    let repository = Repository::parse(&format!("{}/other", proxy.host)).unwrap();
    let error = push(&client, &repository, LEN).await.unwrap_err();
    assert!(matches!(error, Error::UploadLost { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_outlives_a_restart_of_the_registry() {
    let dir = folder();
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let host = registry.host();
    let (client, repository) = (client(), registry.repository("app"));
    let data = noise(12, 2_000_000);
    let mut upload = client.begin_upload(&repository).await.unwrap();
    upload.write(data.slice(..1_000_000)).await.unwrap();
    registry.stop().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let config = ServerConfig { listen: host.parse().unwrap(), ..ServerConfig::new(dir.path().join("root")) };
    let server = registry::server::serve(config, stop.clone()).await.unwrap();
    upload.write(data.slice(1_000_000..)).await.unwrap();
    upload.finish(&sha256(&data)).await.unwrap();
    assert_eq!(read_blob(&client, &repository, &sha256(&data)).await, data);
    stop.cancel();
    server.stopped().await;
}

#[tokio::test]
async fn a_registry_that_loses_acknowledged_bytes_is_an_error() {
    // It takes pieces, then refuses, and on being asked has less than it had said.
    let fake = Fake::start(|request, _| {
        let location = ("location", "/v2/app/blobs/uploads/1?x=y");
        match request.method.as_str() {
            "POST" => answer(202, &[location], ""),
            "PATCH" if request.header("content-range").unwrap().starts_with("0-") => {
                answer(202, &[location, ("range", "0-262143")], "")
            }
            "PATCH" => answer(416, &[location, ("range", "0-99")], ""),
            "GET" => answer(204, &[location, ("range", "0-99")], ""),
            _ => answer(404, &[], ""),
        }
    })
    .await;
    let error = push(&client(), &fake.repository("app"), 1_000_000).await.unwrap_err();
    assert!(matches!(error, Error::UploadLost { acknowledged: 262_144, .. }), "{error}");
    assert!(fake.seen().iter().all(|seen| seen.method == "POST" || seen.path.contains("?x=y")), "query kept");
}

#[tokio::test]
async fn a_refused_push_is_reported_at_once_with_the_registrys_reason() {
    for (status, code) in [(401, "UNAUTHORIZED"), (403, "DENIED")] {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"no push for you"}}]}}"#);
        let fake = Fake::start(move |_, _| answer(status, &[], body.clone())).await;
        let error = push(&client(), &fake.repository("app"), 1000).await.unwrap_err();
        assert_eq!(error.status().unwrap().as_u16(), status);
        assert!(error.is_denied() && error.to_string().contains("no push for you"), "{error}");
        assert_eq!(fake.seen().len(), 1, "not retried");
    }
}

#[tokio::test]
async fn a_failing_registry_is_retried_and_then_an_error() {
    let fake = Fake::start(|request, _| match request.method.as_str() {
        "POST" => answer(202, &[("location", "/v2/app/blobs/uploads/1")], ""),
        "HEAD" => answer(404, &[], ""),
        "GET" => answer(204, &[("range", "0-0")], ""),
        _ => answer(500, &[], "disk full"),
    })
    .await;
    let error = push(&client(), &fake.repository("app"), 1000).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::INTERNAL_SERVER_ERROR));
    assert!(error.to_string().contains("disk full"), "{error}");
    let puts = fake.seen().iter().filter(|seen| seen.method == "PUT").count();
    assert_eq!(puts, 4, "as often as configured");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_dropped_is_given_up_at_the_registry() {
    let fake = Fake::start(|seen, _| match seen.method.as_str() {
        "POST" => answer(202, &[("location", "/v2/app/blobs/uploads/1")], ""),
        "PATCH" => answer(202, &[("location", "/v2/app/blobs/uploads/2"), ("range", "0-99999")], ""),
        _ => answer(204, &[], ""),
    })
    .await;
    let upload = UploadConfig { piece_bytes: 100_000, ..config().upload };
    let client = Client::new(registry::client::ClientConfig { upload, ..config() }).unwrap();
    let mut upload = client.begin_upload(&fake.repository("app")).await.unwrap();
    upload.write(noise(11, 150_000)).await.unwrap();
    drop(upload);
    // As a process does before it ends.
    timeout(DEADLINE, client.uploads_ended()).await.expect("the upload is given up");
    let given_up = fake.seen().iter().filter(|seen| seen.method == "DELETE").count();
    assert_eq!(given_up, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_an_upload_ends_though_the_registry_does_not_answer() {
    let begun = b"HTTP/1.1 202 Ok\r\nLocation: /v2/app/blobs/uploads/1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let fake = Fake::raw(vec![begun.to_vec()]).await;
    let timeouts = Timeouts { idle: Duration::from_millis(200), ..config().timeouts };
    let client = Client::new(registry::client::ClientConfig { timeouts, ..config() }).unwrap();
    let upload = client.begin_upload(&fake.repository("app")).await.unwrap();
    timeout(DEADLINE, upload.cancel()).await.expect("it is cancelled");
    assert_eq!(fake.seen().last().unwrap().method, "DELETE");
    timeout(DEADLINE, client.uploads_ended()).await.expect("nothing is left");
}
