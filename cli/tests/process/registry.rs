//! `nydus-cluster registry`: copies between registries, users and passwords.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use registry::client::{Client, ClientConfig};
use registry::media_types::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use registry::{Reference, digest};
use test_support::log::address_in;

use super::eventually;

/// `nydus-cluster registry`, with the configuration and credentials in `dir` alone.
fn command(dir: &Path) -> Command {
    let config = dir.join("config.toml");
    fs::write(&config, "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nydus-cluster"));
    command.arg("--config").arg(config).env("DOCKER_CONFIG", dir).arg("registry");
    command
}

fn run(command: &mut Command) -> (bool, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.success(), String::from_utf8(stderr).unwrap())
}

/// A registry that runs until this is dropped.
pub(crate) struct Serving {
    child: Child,
    pub(crate) address: String,
}

impl Serving {
    pub(crate) fn start(dir: &Path, name: &str, more: &[&str]) -> Self {
        let mut serve = command(dir);
        serve.current_dir(dir).args(["serve", "--listen", "127.0.0.1:0"]).args(more);
        if !more.contains(&"--package") {
            serve.arg("--root").arg(dir.join(name));
        }
        Self::of(serve, &dir.join(format!("{name}.log")))
    }

    /// Whatever serves on a port of the loopback interface that is free, and says in its log which.
    pub(crate) fn of(mut serve: Command, log: &Path) -> Self {
        let output = File::create(log).unwrap();
        serve.stdout(output.try_clone().unwrap()).stderr(output).stdin(Stdio::null());
        let child = serve.spawn().unwrap();
        // The port is any free one; the log says which.
        let address = eventually("the registry listens", || {
            let text = fs::read_to_string(log).unwrap();
            address_in(&text, "registry listens").map(|address| address.to_string())
        });
        Self { child, address }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pushes an image of one small layer, and returns its manifest's digest.
async fn push(client: &Client, name: &str, layer: &str) -> String {
    let reference = Reference::parse(name).unwrap();
    let layer_digest = client.push_blob(reference.repository(), layer.to_owned().into()).await.unwrap();
    let config = client.push_blob(reference.repository(), "{}".into()).await.unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config.to_string(), "size": 2},
        "layers": [{"mediaType": OCI_LAYER, "digest": layer_digest.to_string(),
            "size": layer.len()}],
    });
    client.put_manifest(&reference, OCI_MANIFEST, manifest.to_string().into()).await.unwrap().to_string()
}

#[tokio::test]
async fn a_registry_is_copied_to_another_and_what_fails_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (Serving::start(dir.path(), "from", &[]), Serving::start(dir.path(), "to", &[]));
    let client = Client::new(ClientConfig::default()).unwrap();
    let mut pushed = Vec::new();
    for (name, layer) in [("team/app:v1", "one"), ("team/app:v2", "two"), ("other:v1", "three")] {
        pushed.push((name, push(&client, &format!("{}/{name}", from.address), layer).await));
    }
    let sync = || run(command(dir.path()).args(["sync", &from.address, &to.address]));
    let (good, said) = sync();
    assert!(good && said.contains("3 images"), "{said}");
    for (name, digest) in &pushed {
        let copy = Reference::parse(&format!("{}/{name}", to.address)).unwrap();
        assert_eq!(client.manifest(&copy).await.unwrap().0.digest().to_string(), *digest, "{name}");
    }
    let (good, said) = sync();
    assert!(good && said.matches("there already").count() == 3 && said.contains("0 B sent"), "{said}");

    let target = format!("{}/copy/of:app", to.address);
    let (good, said) =
        run(command(dir.path()).args(["copy", &format!("{}/team/app:v1", from.address), &target]));
    assert!(good, "{said}");
    let copy = Reference::parse(&target).unwrap();
    assert_eq!(client.manifest(&copy).await.unwrap().0.digest().to_string(), pushed[0].1);

    // One image lost a layer, another one is new.
    push(&client, &format!("{}/broken:v1", from.address), "lost").await;
    push(&client, &format!("{}/new:v1", from.address), "new").await;
    let lost = digest::sha256(b"lost");
    let shelf = dir.path().join("from/docker/registry/v2/blobs/sha256").join(&lost.digest()[..2]);
    fs::remove_file(shelf.join(lost.digest()).join("data")).unwrap();
    let (good, said) = sync();
    assert!(!good && said.contains("1 of 5 images were not copied") && said.contains("/broken:v1"), "{said}");
    let copy = Reference::parse(&format!("{}/new:v1", to.address)).unwrap();
    client.manifest(&copy).await.unwrap();
}

#[tokio::test]
async fn a_user_with_a_password_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    let passwd = |arguments: &[&str], input: &[u8]| {
        let mut passwd = command(dir.path());
        passwd.arg("passwd").arg(&users).args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = passwd.spawn().unwrap();
        // One that refuses its arguments does not read.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap().status.success()
    };
    assert!(passwd(&["alice"], b"secret\n"));
    assert!(!passwd(&["bob"], b"\n"));
    let from = Serving::start(dir.path(), "from", &[]);
    let to = Serving::start(dir.path(), "to", &["--htpasswd", users.to_str().unwrap()]);
    let client = Client::new(ClientConfig::default()).unwrap();
    push(&client, &format!("{}/app:v1", from.address), "one").await;
    let sync = || run(command(dir.path()).args(["sync", &format!("{}/app", from.address), &to.address]));
    let (good, said) = sync();
    assert!(!good && said.contains("401") && said.contains("no credentials"), "{said}");
    let auths = serde_json::json!({"auths": {&to.address: {"username": "alice", "password": "secret"}}});
    fs::write(dir.path().join("config.json"), auths.to_string()).unwrap();
    let (good, said) = sync();
    assert!(good, "{said}");
    assert!(passwd(&["--remove", "alice"], b""));
    assert!(!passwd(&["--remove", "alice"], b""));
}
