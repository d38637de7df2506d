//! What is known of an image is neither read nor converted again.

use std::fs;
use std::path::Path;
use std::process::Command;

use registry::client::{Client, ClientConfig};
use registry::media_types::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use registry::server::{AccessRecord, Server, ServerConfig, serve};
use registry::{Digest, Reference, digest};
use serde_json::{Value, json};
use test_support::{tar_of, text};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::lab::{Lab, expect, stderr};

/// A registry with a log of its requests, and the directory of a user.
struct World {
    lab: Lab,
    runtime: Runtime,
    stop: CancellationToken,
    server: Option<Server>,
    address: String,
    client: Client,
}

/// What a command did.
struct Ran {
    report: Value,
    requests: Vec<AccessRecord>,
}

impl World {
    fn new() -> Self {
        let (lab, runtime, stop) = (Lab::new(), Runtime::new().unwrap(), CancellationToken::new());
        let mut config = ServerConfig::new(lab.path("registry"));
        config.listen.set_port(0);
        config.access_log = Some(lab.path("access.log"));
        let server = runtime.block_on(serve(config, stop.clone())).unwrap();
        let address = server.address().to_string();
        let client = Client::new(ClientConfig::default()).unwrap();
        Self { lab, runtime, stop, server: Some(server), address, client }
    }

    /// Pushes a plain image of these layers, and returns their digests.
    fn push(&self, name: &str, layers: &[Vec<u8>]) -> Vec<Digest> {
        let reference = Reference::parse(&format!("{}/{name}", self.address)).unwrap();
        let pushed = async {
            let described = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": digest::sha256(content).as_ref(), "size": content.len()});
            for layer in layers {
                self.client.push_blob(reference.repository(), layer.clone().into()).await.unwrap();
            }
            let digests: Vec<Digest> = layers.iter().map(|layer| digest::sha256(layer)).collect();
            let diff_ids: Vec<&str> = digests.iter().map(AsRef::as_ref).collect();
            let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
            let config = config.to_string();
            let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described(OCI_CONFIG, config.as_bytes()),
                "layers": layers.iter().map(|layer| described(OCI_LAYER, layer)).collect::<Vec<_>>()});
            self.client.push_blob(reference.repository(), config.into()).await.unwrap();
            self.client.put_manifest(&reference, OCI_MANIFEST, manifest.to_string().into()).await.unwrap();
            digests
        };
        self.runtime.block_on(pushed)
    }

    fn requests(&self) -> Vec<AccessRecord> {
        let log = fs::read_to_string(self.lab.path("access.log")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn command(&self, from: &str, to: &str, cache: &str) -> Command {
        let [from, to] = [from, to].map(|name| format!("{}/{name}", self.address));
        self.lab.image(&["convert", &from, &to, "--json", "--layer-cache", cache])
    }

    fn convert(&self, from: &str, to: &str, cache: &str, more: &[&str]) -> Ran {
        let before = self.requests().len();
        let output = expect(0, self.command(from, to, cache).args(more));
        let requests = self.requests().split_off(before);
        Ran { report: serde_json::from_slice(&output.stdout).unwrap(), requests }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stopped());
        }
    }
}

impl Ran {
    fn digest(&self) -> &Value {
        &self.report["digest"]
    }

    /// How many layers there were, and how many of them were known.
    fn layers(&self) -> (u64, u64) {
        let number = |name: &str| self.report[name].as_u64().unwrap();
        (number("layers"), number("reused_layers"))
    }

    /// How often each of these blobs was read.
    fn reads(&self, blobs: &[Digest]) -> Vec<usize> {
        let reads = |blob: &Digest| {
            let reads = |record: &&AccessRecord| {
                record.method == "GET" && record.path.ends_with(&format!("/blobs/{blob}"))
            };
            self.requests.iter().filter(reads).count()
        };
        blobs.iter().map(reads).collect()
    }

    /// Bytes of blobs that were sent to the registry.
    fn pushed_bytes(&self) -> u64 {
        let blobs = self.requests.iter().filter(|record| record.path.contains("/blobs/"));
        blobs.map(|record| record.bytes_received).sum()
    }

    /// Bytes that the registry sent.
    fn read_bytes(&self) -> u64 {
        self.requests.iter().map(|record| record.bytes_sent).sum()
    }
}

/// A tar with a file that compresses a little.
fn layer(name: &str, bytes: usize) -> Vec<u8> {
    tar_of(&[(name, text(1, bytes))])
}

fn check(world: &World, name: &str) {
    expect(0, &mut world.lab.image(&["check", &format!("{}/{name}", world.address)]));
}

#[test]
fn an_unchanged_layer_is_neither_read_nor_converted_nor_pushed_again() {
    let world = World::new();
    let mut layers = vec![layer("a", 3_000_000), layer("b", 2_000_000), layer("c", 1_000_000)];
    let sources = world.push("plain:v1", &layers);
    let first = world.convert("plain:v1", "nydus:v1", "cache", &[]);
    assert_eq!((first.layers(), first.reads(&sources)), ((3, 0), vec![1; 3]));

    let again = world.convert("plain:v1", "nydus:v1", "cache", &[]);
    assert_eq!((again.layers(), again.reads(&sources)), ((3, 3), vec![0; 3]));
    assert_eq!(again.digest(), first.digest());
    assert_eq!(again.pushed_bytes(), 0, "something was pushed again: {:#?}", again.requests);
    assert!(again.read_bytes() < 20_000, "{} bytes were read", again.read_bytes());

    layers[2] = layer("changed", 1_000_000);
    let changed_sources = world.push("plain:v2", &layers);
    let changed = world.convert("plain:v2", "nydus:v1", "cache", &[]);
    assert_eq!((changed.layers(), changed.reads(&changed_sources)), ((3, 2), vec![0, 0, 1]));
    assert!((100_000..1_100_000).contains(&changed.pushed_bytes()), "{} bytes", changed.pushed_bytes());
    check(&world, "nydus:v1");

    // A machine that knows nothing makes the same image.
    let fresh = world.convert("plain:v2", "fresh:v1", "", &[]);
    assert_eq!((fresh.layers(), fresh.digest()), ((3, 0), changed.digest()));
}

#[test]
fn a_machine_that_knows_nothing_finds_layers_in_the_image_that_is_there() {
    let world = World::new();
    let sources = world.push("plain:v1", &[layer("a", 3_000_000), layer("b", 2_000_000)]);
    let first = world.convert("plain:v1", "nydus:v1", "", &[]);
    assert_eq!(first.layers(), (2, 0));
    let again = world.convert("plain:v1", "nydus:v1", "", &[]);
    assert_eq!((again.layers(), again.reads(&sources)), ((2, 2), vec![0; 2]));
    assert_eq!((again.digest(), again.pushed_bytes()), (first.digest(), 0));
    assert!(again.read_bytes() < first.read_bytes() / 10, "{} bytes were read", again.read_bytes());

    // Other options make other layers, and who may write there need not be believed.
    let other = world.convert("plain:v1", "nydus:v1", "", &["--compressor", "lz4"]);
    assert_eq!((other.layers(), other.reads(&sources)), ((2, 0), vec![1; 2]));
    fs::write(world.lab.path("config.toml"), "[exporter]\nreuse_from_registry = false\n").unwrap();
    let disbelieving =
        world.convert("plain:v1", "nydus:v1", "", &["--compressor", "lz4", "--config", "config.toml"]);
    assert_eq!((disbelieving.layers(), disbelieving.digest()), ((2, 0), other.digest()));
}

#[test]
fn what_is_flattened_is_made_once() {
    let world = World::new();
    let sources =
        world.push("plain:v1", &[layer("a", 2_000_000), layer("a", 1_000_000), layer("b", 500_000)]);
    let flatten = ["--flatten", "--prefetch", "/b"];
    let first = world.convert("plain:v1", "flat:v1", "cache", &flatten);
    assert_eq!((first.layers(), first.reads(&sources)), ((3, 0), vec![1; 3]));
    let again = world.convert("plain:v1", "flat:v1", "cache", &flatten);
    assert_eq!((again.layers(), again.reads(&sources)), ((3, 3), vec![0; 3]));
    assert_eq!((again.digest(), again.pushed_bytes()), (first.digest(), 0));
    assert_eq!(again.report["stored_bytes"], first.report["stored_bytes"]);
    check(&world, "flat:v1");
    // What comes first in the blob is another: so is the blob.
    let other = world.convert("plain:v1", "flat:v1", "cache", &["--flatten"]);
    assert_eq!((other.layers(), other.reads(&sources)), ((3, 0), vec![1; 3]));
    assert_ne!(other.digest(), first.digest());
}

#[test]
fn layers_to_flatten_take_no_more_room_than_they_may() {
    let world = World::new();
    world.push("plain:v1", &[layer("a", 2_000_000), layer("b", 1_000_000)]);
    let spool = world.lab.path("spool");
    fs::create_dir(&spool).unwrap();
    let config = |bytes: u64| {
        let config = format!(
            "[exporter]\nflatten_bytes = {bytes}\n[registry.upload]\nspool_dir = {:?}\n",
            spool.display().to_string()
        );
        fs::write(world.lab.path("config.toml"), config).unwrap();
    };
    let flatten = ["--flatten", "--config", "config.toml"];
    config(500_000);
    let refused = stderr(&expect(2, world.command("plain:v1", "flat:v1", "").args(flatten)));
    assert!(refused.contains("500000 bytes") && refused.contains("flatten_bytes"), "{refused}");
    assert!(is_empty(&spool), "something is left");
    config(4_000_000);
    world.convert("plain:v1", "flat:v1", "", &flatten);
    assert!(is_empty(&spool), "something is left");
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}
