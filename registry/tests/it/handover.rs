//! One folder, several registries, one after the other.

use std::process::Command;

use bytes::Bytes;
use registry::digest::sha256;

use crate::support::{
    Kind, MANIFEST, Registry, client, docker_config, folder, have, noise, push_image, read_blob,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_goes_to_cncf_distribution_and_back() {
    if !have("docker-registry") {
        return;
    }
    let dir = folder();
    let client = client();
    let kinds = [Kind::Embedded, Kind::Docker, Kind::Embedded, Kind::Docker];
    let mut pushed = Vec::new();
    for (seed, kind) in (1..).zip(kinds) {
        let registry = Registry::start(kind, dir.path()).await;
        let data = noise(seed, 600_000);
        let name = format!("team/app:v{seed}");
        let (manifest, layer) = push_image(&client, &registry.reference(&name), data.clone()).await;
        pushed.push((name, manifest, layer, data));
        // Everything that any of them took is there, by tag, by digest, in the lists.
        for (name, manifest, layer, data) in &pushed {
            let reference = registry.reference(name);
            assert_eq!(client.manifest(&reference).await.unwrap().0.digest(), manifest, "{name} by tag");
            client.manifest(&reference.at_digest(manifest.clone())).await.unwrap();
            assert_eq!(&read_blob(&client, reference.repository(), layer).await, data, "{name}");
        }
        let tags = client.tags(&registry.repository("team/app")).await.unwrap();
        assert_eq!(tags.len(), pushed.len());
        let catalog = reqwest_get(&registry, "/v2/_catalog").await;
        assert_eq!(catalog, serde_json::json!({"repositories": ["team/app"]}));
        registry.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_embedded_server_deletes_is_collected_by_cncf_distribution_and_the_rest_is_kept() {
    if !have("docker-registry") {
        return;
    }
    let dir = folder();
    let client = client();
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let (keep, drop) = (registry.reference("app:keep"), registry.reference("app:drop"));
    let (_, kept) = push_image(&client, &keep, noise(41, 1000)).await;
    let (manifest, dropped) = push_image(&client, &drop, noise(42, 1000)).await;
    client.delete_manifest(&drop.at_digest(manifest)).await.unwrap();
    registry.stop().await;
    let config = docker_config(dir.path(), "");
    let output = Command::new("docker-registry").arg("garbage-collect").arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let data =
        |hex: &str| dir.path().join(format!("root/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
    assert!(data(kept.digest()).exists() && !data(dropped.digest()).exists());
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let keep = registry.reference("app:keep");
    client.manifest(&keep).await.unwrap();
    // A link whose content is gone is no blob.
    assert!(!client.has_blob(keep.repository(), &dropped).await.unwrap());
    assert_eq!(read_blob(&client, keep.repository(), &kept).await, noise(41, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_pushed_to_another_registry_are_found() {
    if !have("docker-registry") {
        return;
    }
    let dir = folder();
    let client = client();
    let registry = Registry::start(Kind::Docker, dir.path()).await;
    let image = registry.reference("app:v1");
    let (subject, _) = push_image(&client, &image, noise(43, 1000)).await;
    let descriptor = client.manifest(&image).await.unwrap().0;
    let empty = client.push_blob(image.repository(), Bytes::from("{}")).await.unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "subject": descriptor, "layers": [],
        "config": {"mediaType": "application/vnd.test.config", "digest": empty.to_string(), "size": 2},
    });
    let manifest = Bytes::from(manifest.to_string());
    let referrer = image.at_digest(sha256(&manifest));
    client.put_manifest(&referrer, MANIFEST, manifest.clone()).await.unwrap();
    registry.stop().await;
    let registry = Registry::start(Kind::Embedded, dir.path()).await;
    let answer = reqwest_get(&registry, &format!("/v2/app/referrers/{subject}")).await;
    assert_eq!(answer["manifests"][0]["digest"], sha256(&manifest).to_string());
    assert_eq!(answer["manifests"][0]["artifactType"], "application/vnd.test.config");
    assert_eq!(answer["manifests"].as_array().unwrap().len(), 1);
}

async fn reqwest_get(registry: &Registry, path: &str) -> serde_json::Value {
    let body = crate::server::http().get(format!("http://{}{path}", registry.host())).send().await.unwrap();
    serde_json::from_slice(&body.bytes().await.unwrap()).unwrap()
}
