//! What is asked of mirrors, and what is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::Method;
use registry::client::{Client, ClientConfig, HostConfig};
use registry::digest::sha256;
use registry::media_types::OCI_INDEX;

use crate::support::fake::{Fake, answer};
use crate::support::{MANIFEST, config};

fn client_with_mirror(registry: &Fake, mirror: &Fake) -> Client {
    let settings = HostConfig { mirrors: vec![mirror.host.clone()], ..HostConfig::default() };
    let hosts = BTreeMap::from([(registry.host.clone(), settings)]);
    Client::new(ClientConfig { hosts, ..config() }).unwrap()
}

#[tokio::test]
async fn a_mirror_that_lacks_a_blob_is_not_asked_for_each_range_of_it() {
    for status in [404, 403] {
        let mirror = Fake::start(move |request, _| {
            if request.path.contains(sha256(b"there").as_ref()) {
                return answer(206, &[("content-range", "bytes 0-1/2")], "ok");
            }
            answer(status, &[], "")
        })
        .await;
        let registry = Fake::start(|_, _| answer(206, &[("content-range", "bytes 0-1/2")], "ok")).await;
        let client = client_with_mirror(&registry, &mirror);
        let repository = registry.repository("app");
        for _ in 0..5 {
            client.blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap();
        }
        assert_eq!((mirror.seen().len(), registry.seen().len()), (1, 5), "{status}");
        // What it has is still read from it.
        client.blob_range(&repository, &sha256(b"there"), 0, 2).await.unwrap();
        assert_eq!((mirror.seen().len(), registry.seen().len()), (2, 5), "{status}");
    }
}

#[tokio::test]
async fn what_is_asked_again_of_a_mirror_or_of_the_registry_is_counted() {
    let mirror = Fake::start(|_, _| answer(500, &[], "")).await;
    let registry = Fake::start(|_, number| match number {
        0 => answer(503, &[], ""),
        _ => answer(206, &[("content-range", "bytes 0-1/2")], "ok"),
    })
    .await;
    let (retries, others) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let client = client_with_mirror(&registry, &mirror);
    let (counted, other) =
        (client.with_retry_counter(retries.clone()), client.with_retry_counter(others.clone()));
    let repository = registry.repository("app");
    counted.blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap();
    // All that was sent but the first.
    let sent = (mirror.seen().len() + registry.seen().len()) as u64;
    assert!(sent >= 3, "{sent}");
    assert_eq!(retries.load(Ordering::Relaxed), sent - 1);
    other.blob_range(&repository, &sha256(b"ok"), 0, 2).await.unwrap();
    let sent = (mirror.seen().len() + registry.seen().len()) as u64 - sent;
    assert_eq!(others.load(Ordering::Relaxed), sent - 1, "each counts its own");
}

#[tokio::test]
async fn every_page_names_the_registry_to_the_mirror() {
    let mirror = Fake::start(|request, _| {
        let link = "</v2/app/tags/list?last=a&n=1>; rel=\"next\"";
        match request.path.contains("last=a") {
            false => answer(200, &[("link", link)], r#"{"tags":["a"]}"#),
            true => answer(200, &[], r#"{"tags":["b"]}"#),
        }
    })
    .await;
    let registry = Fake::start(|_, _| answer(500, &[], "")).await;
    let client = client_with_mirror(&registry, &mirror);
    assert_eq!(client.tags(&registry.repository("app")).await.unwrap(), ["a", "b"]);
    let ns = format!("ns={}", registry.host.replace(':', "%3A"));
    assert_eq!(mirror.seen().len(), 2);
    for seen in mirror.seen() {
        assert_eq!(seen.path.matches(&ns).count(), 1, "{}", seen.path);
    }
}

/// A list of referrers under a tag, as registries without the referrers API need it.
fn list(digests: &[&str]) -> String {
    let entries: Vec<_> = digests
        .iter()
        .map(|text| {
            serde_json::json!({"mediaType": MANIFEST, "size": 2, "digest": sha256(text.as_bytes()).to_string()})
        })
        .collect();
    let kind = "application/vnd.oci.image.index.v1+json";
    serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string()
}

#[tokio::test]
async fn the_list_that_stands_in_for_referrers_is_read_from_the_registry_itself() {
    const INDEX: (&str, &str) = ("content-type", "application/vnd.oci.image.index.v1+json");
    // The mirror has an older list, of which the registry's lost nothing.
    let mirror = Fake::start(|request, _| match request.path.contains("/manifests/sha256-") {
        true => answer(200, &[INDEX], list(&["one"])),
        false => answer(404, &[], ""),
    })
    .await;
    let registry =
        Fake::start(|request, _| match (&request.method, request.path.contains("/manifests/sha256-")) {
            (&Method::PUT, _) => answer(201, &[], ""),
            (_, true) => answer(200, &[INDEX], list(&["one", "two"])),
            _ => answer(404, &[], ""),
        })
        .await;
    let client = client_with_mirror(&registry, &mirror);
    let subject = sha256(b"subject");
    let found = client.referrers(&registry.repository("app"), &subject, None).await.unwrap();
    assert_eq!(found.len(), 2);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": "x/y", "size": 2, "digest": sha256(b"{}").to_string()},
        "subject": {"mediaType": MANIFEST, "size": 7, "digest": subject.to_string()},
    });
    let manifest = Bytes::from(manifest.to_string());
    let reference = registry.repository("app").with_digest(sha256(&manifest));
    client.put_manifest(&reference, MANIFEST, manifest.clone()).await.unwrap();
    let puts: Vec<_> = registry.seen().into_iter().filter(|one| one.method == Method::PUT).collect();
    let written: serde_json::Value = serde_json::from_slice(&puts.last().unwrap().body).unwrap();
    assert_eq!(written["manifests"].as_array().unwrap().len(), 3, "one, two and the new one");
}

#[tokio::test]
async fn a_list_of_referrers_may_be_null_wherever_it_is_and_schema_1_is_refused_by_name() {
    let fake = Fake::start(|request, _| match request.path.contains("referrers") {
        true => answer(200, &[], r#"{"schemaVersion":2,"manifests":null}"#),
        false => answer(200, &[("content-type", "application/json")], r#"{"schemaVersion":1,"fsLayers":[]}"#),
    })
    .await;
    let client = Client::new(config()).unwrap();
    let repository = fake.repository("app");
    assert_eq!(client.referrers(&repository, &sha256(b"x"), None).await.unwrap(), []);
    // The same under the tag that stands in for the list.
    let tagged = Fake::start(|request, _| match request.path.contains("/manifests/sha256-") {
        true => answer(200, &[("content-type", OCI_INDEX)], r#"{"schemaVersion":2,"manifests":null}"#),
        false => answer(404, &[], ""),
    })
    .await;
    let found = client.referrers(&tagged.repository("app"), &sha256(b"x"), None).await;
    assert_eq!(found.unwrap(), []);
    let error = client.manifest(&repository.with_tag("old").unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("schema 1") && error.contains("manifest old"), "{error}");
}
