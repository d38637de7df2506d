use registry::digest::{Digest, sha256};
use serde_json::{Value, json};

use super::*;

/// A layout of an image of two layers and a bootstrap, of which the config says `diff_ids`; what it is called.
fn layout(dir: &Path, diff_ids: &[Digest]) -> String {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let write = |media_type: &str, content: &[u8], annotations: &Value| {
        let digest = sha256(content);
        std::fs::write(blobs.join(digest.digest()), content).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": content.len(), "annotations": annotations})
    };
    let host = PlatformName::host().to_string();
    let (os, architecture) = host.split_once('/').unwrap();
    let architecture = architecture.split('/').next().unwrap();
    let config =
        json!({"os": os, "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let blob = json!({"containerd.io/snapshot/nydus-blob": "true"});
    let bootstrap = json!({"containerd.io/snapshot/nydus-bootstrap": "true"});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": write("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes(), &json!({})),
        "layers": [
            write("application/vnd.oci.image.layer.nydus.blob.v1", b"one", &blob),
            write("application/vnd.oci.image.layer.nydus.blob.v1", b"two", &blob),
            write("application/vnd.oci.image.layer.v1.tar+gzip", b"bootstrap", &bootstrap),
        ],
    });
    let manifest =
        write("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes(), &json!({}));
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    format!("oci:{}", dir.display())
}

#[tokio::test]
async fn an_image_is_described_by_its_bootstrap_and_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let diff_ids = [sha256(b"1"), sha256(b"2"), sha256(b"tar")];
    let source = layout(dir.path(), &diff_ids);
    let image = described(&source, &ClientConfig::default()).await.unwrap();
    let expected = NodeImage {
        name: source,
        backends: vec![BackendSpec::Directory { path: dir.path().join("blobs/sha256") }],
        bootstrap: MergedBootstrap { digest: sha256(b"bootstrap"), size: 9, diff_id: sha256(b"tar") },
        blobs: vec![sha256(b"one"), sha256(b"two")],
    };
    assert_eq!(image, expected);
    assert_eq!(image.check(), Ok(()));
}

#[tokio::test]
async fn what_cannot_be_verified_is_not_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let source = layout(dir.path(), &[sha256(b"1")]);
    let error = described(&source, &ClientConfig::default()).await.unwrap_err();
    assert_eq!(error, "its config has no diff id of its bootstrap");
}

#[test]
fn the_unit_waits_for_the_snapshotter_and_others_for_it() {
    let unit = unit(Path::new("/d"), Path::new("/d/nydus"), "r.example/c@sha256:0");
    let has = |line: &str| assert!(unit.lines().any(|found| found == line), "no line {line}:\n{unit}");
    has("After=nydus-cluster-snapshotter.service local-fs.target");
    has("Before=containerd.service kubelet.service");
    has("ExecStart=/d/nydus cluster tree r.example/c@sha256:0 --dir /d");
}
