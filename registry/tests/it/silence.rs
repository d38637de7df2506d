//! Registries that fall silent in the middle of a push: the client gives up when it says it does, and says on whom.

use std::time::{Duration, Instant};

use bytes::Bytes;
use registry::Repository;
use registry::client::{Client, ClientConfig, Error, Retries, SilenceLimit, Timeouts, UploadConfig};
use registry::digest::sha256;

use crate::support::fake::{Fake, Seen, answer};
use crate::support::proxy::slow;
use crate::support::{Kind, MANIFEST, Registry, config, folder, noise, read_blob};

const LOCATION: (&str, &str) = ("location", "/v2/app/blobs/uploads/1");

/// What a machine that is busy may add to a deadline.
const SLACK: Duration = Duration::from_secs(5);

fn client(timeouts: Timeouts, piece_bytes: usize) -> Client {
    let upload = UploadConfig { piece_bytes, ..config().upload };
    Client::new(ClientConfig { timeouts, upload, ..config() }).unwrap()
}

/// Deadlines that can be told apart by how long something took.
fn timeouts() -> Timeouts {
    Timeouts {
        idle: Duration::from_millis(300),
        commit: Duration::from_millis(600),
        operation: Duration::from_secs(1),
        ..config().timeouts
    }
}

async fn push(client: &Client, fake: &Fake, data: Bytes) -> Error {
    let mut upload = client.begin_upload(&fake.repository("app")).await.unwrap();
    let pushed = async {
        upload.write(data.clone()).await?;
        upload.finish(&sha256(&data)).await
    };
    pushed.await.unwrap_err()
}

fn names_the_registry(error: &Error, fake: &Fake) {
    let text = error.to_string();
    assert!(text.contains(&format!("registry {}, repository app", fake.host)), "{text}");
    assert!(error.is_transient(), "{text}");
}

#[tokio::test]
async fn the_deadline_of_an_answer_begins_with_the_last_byte_of_its_request() {
    let fake = Fake::silent(|_, _| None).await;
    let idle = Duration::from_secs(5);
    let timeouts = Timeouts { idle, ..config().timeouts };
    let retries = Retries { attempts: 1, ..config().retries };
    let client = Client::new(ClientConfig { timeouts, retries, ..config() }).unwrap();
    let reference = fake.repository("app").with_tag("v1").unwrap();
    let started = Instant::now();
    let error = client.put_manifest(&reference, MANIFEST, noise(1, 1000)).await.unwrap_err();
    let elapsed = started.elapsed();
    assert!(matches!(error, Error::Stalled { after, .. } if after == idle), "{error}");
    names_the_registry(&error, &fake);
    assert_eq!(fake.seen()[0].body.len(), 1000, "the registry had all of it");
    assert!(elapsed >= idle && elapsed < 2 * idle, "{elapsed:?}");
}

#[tokio::test]
async fn a_registry_that_takes_a_piece_and_falls_silent_is_given_up() {
    let fake =
        Fake::silent(|seen: &Seen, _| (seen.method == "POST").then(|| answer(202, &[LOCATION], ""))).await;
    let started = Instant::now();
    let error = push(&client(timeouts(), 100_000), &fake, noise(2, 250_000)).await;
    let Timeouts { idle, operation, .. } = timeouts();
    assert!(started.elapsed() < idle + operation + SLACK, "{:?}", started.elapsed());
    names_the_registry(&error, &fake);
    assert!(fake.seen().iter().any(|seen| seen.method == "PATCH" && seen.body.len() == 100_000));
}

#[tokio::test]
async fn a_registry_that_falls_silent_with_the_whole_blob_has_the_time_of_a_commit_and_no_more() {
    let fake = Fake::silent(|seen: &Seen, _| match seen.method.as_str() {
        "POST" => Some(answer(202, &[LOCATION], "")),
        "PATCH" => Some(answer(202, &[LOCATION], "")),
        _ => None,
    })
    .await;
    for (len, pieces) in [(50_000, 0), (100_000, 1)] {
        let started = Instant::now();
        let error = push(&client(timeouts(), 100_000), &fake, noise(3, len)).await;
        let Timeouts { commit, operation, .. } = timeouts();
        let elapsed = started.elapsed();
        assert!(elapsed >= commit && elapsed < commit + operation + SLACK, "{elapsed:?}");
        names_the_registry(&error, &fake);
        let patched = fake.seen().iter().filter(|seen| seen.method == "PATCH").count();
        assert_eq!(patched, pieces);
    }
}

#[tokio::test]
async fn a_registry_that_stops_reading_a_blob_has_no_time_to_store_it() {
    let begun = b"HTTP/1.1 202 Ok\r\nLocation: /v2/app/blobs/uploads/1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let fake = Fake::raw(vec![begun.to_vec()]).await;
    let timeouts = Timeouts { commit: Duration::from_secs(600), ..timeouts() };
    let started = Instant::now();
    // More than the system takes in for a process that does not read.
    let error = push(&client(timeouts.clone(), 64 << 20), &fake, noise(4, 32 << 20)).await;
    let Timeouts { idle, operation, .. } = timeouts;
    assert!(started.elapsed() < idle + operation + SLACK, "{:?}", started.elapsed());
    names_the_registry(&error, &fake);
    assert_eq!(fake.seen()[1].method, "PUT");
}

#[tokio::test]
async fn a_slow_line_is_no_silence_also_when_the_kernel_has_taken_the_whole_request() {
    let dir = folder();
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let host = slow(registry.host(), 8 << 10).await;
    let repository = Repository::parse(&format!("{host}/slow")).unwrap();
    let limit = SilenceLimit { after: Duration::from_secs(2), setting: "push.silent_seconds" };
    let timeouts = Timeouts { idle: limit.after, commit: limit.after, ..config().timeouts };
    let retries = Retries { attempts: 1, ..config().retries };
    let settings = ClientConfig { timeouts, retries, ..config() };
    // In one request, and in pieces of which each takes longer than nothing may move.
    for (seed, piece_bytes) in [(5, 1 << 20), (6, 24 << 10)] {
        let upload = UploadConfig { piece_bytes, ..config().upload };
        let client = Client::new(ClientConfig { upload, ..settings.clone() }).unwrap();
        let client = client.with_silence_limit(limit);
        let (data, started) = (noise(seed, 56 << 10), Instant::now());
        let digest = client.push_blob(&repository, data.clone()).await.unwrap();
        assert!(started.elapsed() > 2 * limit.after, "{:?}", started.elapsed());
        assert_eq!(read_blob(&client, &registry.repository("slow"), &digest).await, data);
    }
}

#[tokio::test]
async fn a_registry_that_is_silent_is_given_up_when_all_attempts_together_have_waited_for_so_long() {
    let fake =
        Fake::silent(|seen: &Seen, _| (seen.method == "POST").then(|| answer(202, &[LOCATION], ""))).await;
    let limit = SilenceLimit { after: Duration::from_secs(2), setting: "push.silent_seconds" };
    let patient = Duration::from_secs(600);
    let timeouts = Timeouts { idle: patient, commit: patient, operation: patient, ..config().timeouts };
    for piece_bytes in [100_000, 1_000_000] {
        let client = client(timeouts.clone(), piece_bytes).with_silence_limit(limit);
        let started = Instant::now();
        let error = push(&client, &fake, noise(7, 250_000)).await;
        let elapsed = started.elapsed();
        assert!(elapsed >= limit.after && elapsed < limit.after + SLACK, "{elapsed:?}");
        assert!(matches!(error, Error::Silent { after, .. } if after == limit.after), "{error}");
        names_the_registry(&error, &fake);
        assert!(error.to_string().contains(limit.setting), "{error}");
    }
}

#[tokio::test]
async fn a_registry_that_asks_to_come_again_later_is_not_silent_meanwhile() {
    let fake = Fake::start(|seen: &Seen, number| match seen.method.as_str() {
        "POST" => answer(202, &[LOCATION], ""),
        "GET" => answer(204, &[LOCATION, ("range", "0-0")], ""),
        "PUT" if number < 2 => answer(503, &[("retry-after", "2")], ""),
        "PUT" => answer(201, &[], ""),
        _ => answer(404, &[], ""),
    })
    .await;
    let limit = SilenceLimit { after: Duration::from_secs(1), setting: "push.silent_seconds" };
    let retries = Retries { longest_delay: Duration::from_secs(20), ..config().retries };
    let client = Client::new(ClientConfig { retries, ..config() }).unwrap().with_silence_limit(limit);
    let (data, started) = (noise(8, 1000), Instant::now());
    let mut upload = client.begin_upload(&fake.repository("app")).await.unwrap();
    upload.write(data.clone()).await.unwrap();
    assert_eq!(upload.finish(&sha256(&data)).await.unwrap(), 1000);
    assert!(started.elapsed() >= 2 * limit.after, "{:?}", started.elapsed());
}
