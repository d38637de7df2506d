//! A cluster image from its directory to a registry, into a package, and from there to another registry, by the commands.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use registry::client::{Client, ClientConfig};
use registry::{Reference, digest};
use serde_json::Value;
use test_support::{closed_pipe, noise, tar_of};

use super::registry::Serving;

/// `nydus-cluster`, with the configuration and credentials in `dir` alone.
pub(crate) fn command(dir: &Path, arguments: &[&str]) -> Command {
    let config = dir.join("config.toml");
    fs::write(&config, "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nydus-cluster"));
    command.current_dir(dir).arg("--config").arg(config).env("DOCKER_CONFIG", dir).args(arguments);
    command
}

/// What the command says, if it ends well.
pub(crate) fn said(dir: &Path, arguments: &[&str]) -> String {
    let output = command(dir, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(dir: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(dir, arguments)).unwrap()
}

#[test]
fn a_cluster_image_travels_as_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let from = Serving::start(dir, "from", &[]);
    let host = &from.address;
    for (name, content) in [("app", "an application"), ("db", "a database")] {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("file"), content).unwrap();
        said(
            dir,
            &["image", "convert", "--fresh", &format!("directory:{name}"), &format!("{host}/team/{name}:v1")],
        );
    }
    fs::create_dir_all(dir.join("root/manifests")).unwrap();
    fs::write(dir.join("root/manifests/imageList"), format!("{host}/team/app:v1\n{host}/team/db:v1\n"))
        .unwrap();
    fs::write(dir.join("root/Metadata"), r#"{"version": "v1.29.0", "arch": "amd64"}"#).unwrap();
    said(dir, &["cluster", "images", "root", "--lock", "root/images.lock"]);
    let cluster = format!("{host}/k8s:v1");
    said(dir, &["image", "convert", "--fresh", "directory:root", &cluster]);

    let online = json(dir, &["cluster", "inspect", &cluster, "--json"]);
    assert_eq!(online["components"]["version"], "v1.29.0");
    assert_eq!(online["components"]["layout"], "sealer");
    let saved = said(dir, &["cluster", "save", &cluster, "--plain", "-o", "cluster.tar"]);
    assert_eq!(saved.lines().count(), 3, "{saved}");
    drop(from);

    // From here on there is no registry that anything came from.
    let mut packed = json(dir, &["cluster", "inspect", "cluster.tar", "--json"]);
    assert_eq!(packed["images"].as_array().unwrap().len(), 2);
    packed["name"] = online["name"].clone();
    assert_eq!(packed, online);
    let text = said(dir, &["cluster", "inspect", "cluster.tar"]);
    assert!(text.contains("/team/app:v1") && text.contains("2 images"), "{text}");
    let found = json(dir, &["cluster", "images", "cluster.tar", "--json"]);
    assert_eq!(found["images"].as_array().unwrap().len(), 2);
    said(dir, &["image", "check", "package:cluster.tar"]);
    said(dir, &["image", "check", "package:cluster.tar:team/db:v1"]);
    let serving = Serving::start(dir, "none", &["--package", "cluster.tar"]);
    said(dir, &["image", "check", &format!("{}/team/app:v1", serving.address)]);
    drop(serving);

    let to = Serving::start(dir, "to", &[]);
    said(dir, &["registry", "sync", "cluster.tar", &format!("{}/mirror", to.address)]);
    for name in ["k8s:v1", "team/app:v1", "team/db:v1"] {
        said(dir, &["image", "check", &format!("{}/mirror/{name}", to.address)]);
    }
    said(dir, &["registry", "copy", "package:cluster.tar:team/db:v1", &format!("{}/db:mine", to.address)]);
    said(dir, &["image", "check", &format!("{}/db:mine", to.address)]);

    for arguments in [&["cluster", "inspect", "cluster.tar"][..], &["cluster", "images", "root", "--json"]] {
        let output = command(dir, arguments).stdout(closed_pipe()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        let status = command(dir, arguments).stdout(Stdio::null()).stderr(closed_pipe()).status().unwrap();
        assert!(status.success(), "{arguments:?}: {status}");
    }
}

/// Pushes a plain image of one layer with these files.
pub(crate) async fn push_plain(client: &Client, name: &str, files: &[(&str, Vec<u8>)]) {
    let (name, layer) = (Reference::parse(name).unwrap(), tar_of(files));
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest::sha256(&layer).to_string()]},
    });
    let config = config.to_string();
    let (layer_size, config_size) = (layer.len(), config.len());
    let layer = client.push_blob(name.repository(), layer.into()).await.unwrap().to_string();
    let config = client.push_blob(name.repository(), config.into()).await.unwrap().to_string();
    let media_type = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type("manifest.v1+json"),
        "config": {"mediaType": media_type("config.v1+json"), "digest": config, "size": config_size},
        "layers": [{"mediaType": media_type("layer.v1.tar"), "digest": layer, "size": layer_size}],
    });
    client.put_manifest(&name, &media_type("manifest.v1+json"), manifest.to_string().into()).await.unwrap();
}

/// Blobs and their bytes.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Blobs {
    pub(crate) number: usize,
    pub(crate) bytes: u64,
}

/// What was sent to a registry, and how many blobs were mounted there, by its access log.
pub(crate) fn sent(log: &Path) -> (Blobs, usize) {
    let (mut sent, mut mounted) = (Blobs::default(), 0);
    for line in fs::read_to_string(log).unwrap().lines() {
        let request: Value = serde_json::from_str(line).unwrap();
        if !request["path"].as_str().unwrap().contains("/blobs/uploads/") {
            continue;
        }
        sent.bytes += request["bytes_received"].as_u64().unwrap_or(0);
        match (request["method"].as_str().unwrap(), request["status"].as_u64().unwrap()) {
            ("PUT", 201) => sent.number += 1,
            ("POST", 201) => mounted += 1,
            _ => {}
        }
    }
    (sent, mounted)
}

/// The blobs that the repositories below `dir` have, by their digests.
fn of_repositories(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let (entry, place) = entry.map(|entry| (entry.file_name(), entry.path())).unwrap();
        if entry == "_layers" {
            let blobs = fs::read_dir(place.join("sha256")).unwrap();
            found.extend(blobs.map(|blob| blob.unwrap().file_name().into_string().unwrap()));
        } else if place.is_dir() && !entry.to_string_lossy().starts_with('_') {
            of_repositories(&place, found);
        }
    }
}

/// What a registry stores.
fn stored(root: &Path) -> Blobs {
    let (root, mut found) = (root.join("docker/registry/v2"), BTreeSet::new());
    of_repositories(&root.join("repositories"), &mut found);
    let file = |blob: &String| root.join("blobs/sha256").join(&blob[..2]).join(blob).join("data");
    let bytes = found.iter().map(|blob| fs::metadata(file(blob)).unwrap().len()).sum();
    Blobs { number: found.len(), bytes }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_images_share_is_sent_to_a_registry_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let from = Serving::start(dir, "from", &[]);
    let (host, client) = (&from.address, Client::new(ClientConfig::default()).unwrap());
    let common = noise(1, 300_000);
    for (seed, name) in [(2, "app"), (3, "db"), (4, "web")] {
        let files = [("common", common.clone()), ("own", noise(seed, 100_000))];
        push_plain(&client, &format!("{host}/team/{name}:v1"), &files).await;
    }
    fs::create_dir_all(dir.join("root/manifests")).unwrap();
    let list = ["app", "db", "web"].map(|name| format!("{host}/team/{name}:v1\n")).concat();
    fs::write(dir.join("root/manifests/imageList"), list).unwrap();
    said(dir, &["cluster", "images", "root", "--lock", "root/images.lock"]);
    let cluster = format!("{host}/k8s:v1");
    said(dir, &["image", "convert", "--fresh", "directory:root", &cluster]);
    said(dir, &["cluster", "save", &cluster, "-o", "cluster.tar"]);
    drop(from);

    // Each image names what all share, and so does what names all of them: out of a package, and from registry to registry.
    let to = Serving::start(dir, "to", &["--access-log", "to.json"]);
    said(dir, &["registry", "sync", "cluster.tar", &format!("{}/mirror", to.address)]);
    let again = Serving::start(dir, "again", &["--access-log", "again.json"]);
    said(dir, &["registry", "sync", &to.address, &again.address]);
    for (log, registry) in [("to.json", &to), ("again.json", &again)] {
        let (sent, mounted) = sent(&dir.join(log));
        assert_eq!(sent, stored(&dir.join(log.trim_end_matches(".json"))), "{log}");
        assert!(mounted >= 6, "{log}: {mounted} mounted of {sent:?}");
        for name in ["k8s:v1", "team/app:v1", "team/db:v1", "team/web:v1"] {
            said(dir, &["image", "check", &format!("{}/mirror/{name}", registry.address)]);
        }
        let images = format!("{}/mirror/nydus-cluster/images:latest", registry.address);
        client.manifest(&Reference::parse(&images).unwrap()).await.unwrap();
    }
}
