//! A registry in this process, and images made of a few bytes.

pub(crate) mod held;
pub(crate) mod images;
pub(crate) mod killed;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use registry::client::{Client, ClientConfig};
use registry::server::htpasswd::set_password;
use registry::server::{Server, ServerConfig, serve};
use registry::{Repository, digest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) struct Registry {
    server: Server,
    shutdown: CancellationToken,
    client: Client,
    /// What it stores goes with it.
    dir: TempDir,
}

/// A manifest that was stored.
pub(crate) struct Stored {
    pub(crate) digest: String,
    pub(crate) content: Vec<u8>,
    platform: String,
    /// Of config and layers.
    pub(crate) bytes: u64,
}

/// A client that nobody's credentials matter to.
pub(crate) fn config() -> ClientConfig {
    ClientConfig { docker_config: Some("/nowhere/config.json".into()), ..ClientConfig::default() }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_on(dir, None, self::config()).await
    }

    /// One that answers nobody but this user.
    pub(crate) async fn start_for(user: &str, password: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let users = dir.path().join("htpasswd");
        set_password(&users, user, password).unwrap();
        let mut registry = Self::start_on(dir, Some(users), self::config()).await;
        let path = registry.dir.path().join("config.json");
        let login = json!({"username": user, "password": password});
        std::fs::write(&path, json!({"auths": {registry.host(): login}}).to_string()).unwrap();
        registry.client = Client::new(ClientConfig { docker_config: Some(path), ..self::config() }).unwrap();
        registry
    }

    async fn start_on(dir: TempDir, htpasswd: Option<PathBuf>, client: ClientConfig) -> Self {
        let shutdown = CancellationToken::new();
        let listen = ([127, 0, 0, 1], 0).into();
        let config = ServerConfig { listen, htpasswd, ..ServerConfig::new(dir.path().join("root")) };
        let server = serve(config, shutdown.clone()).await.unwrap();
        Self { server, shutdown, client: Client::new(client).unwrap(), dir }
    }

    pub(crate) fn host(&self) -> String {
        self.server.address().to_string()
    }

    pub(crate) fn repository(&self, name: &str) -> Repository {
        Repository::parse(&format!("{}/{name}", self.host())).unwrap()
    }

    /// The file that holds the content of this digest.
    pub(crate) fn data(&self, digest: &registry::Digest) -> std::path::PathBuf {
        let hex = digest.digest();
        self.dir.path().join("root/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Stores a blob; returns its descriptor without a media type.
    pub(crate) async fn blob(&self, repository: &str, content: &[u8]) -> Value {
        let content = Bytes::copy_from_slice(content);
        let size = content.len();
        let digest = self.client.push_blob(&self.repository(repository), content).await.unwrap();
        json!({"digest": digest.to_string(), "size": size})
    }

    /// Stores an image of these layers under its digest.
    pub(crate) async fn image(&self, repository: &str, platform: &str, layers: &[&[u8]]) -> Stored {
        let mut stored = Vec::new();
        let mut bytes = 0;
        for layer in layers {
            stored.push(self.blob(repository, layer).await);
            bytes += layer.len() as u64;
        }
        let config = image_config(platform, layers);
        bytes += config.len() as u64;
        let config = self.blob(repository, &config).await;
        let content = manifest(&config, CONFIG, &stored);
        let digest = self.put(repository, None, &content).await;
        Stored { digest, content, platform: platform.to_owned(), bytes }
    }

    /// Stores an image whose config says that its layers have these diff ids.
    pub(crate) async fn image_with(
        &self,
        repository: &str,
        layers: &[&[u8]],
        diff_ids: &[registry::Digest],
    ) -> Stored {
        let mut stored = Vec::new();
        for layer in layers {
            stored.push(self.blob(repository, layer).await);
        }
        let diff_ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.blob(repository, config.to_string().as_bytes()).await;
        let content = manifest(&config, CONFIG, &stored);
        let digest = self.put(repository, None, &content).await;
        Stored { digest, content, platform: "linux/amd64".to_owned(), bytes: 0 }
    }

    /// Makes an image of one repository known in another.
    pub(crate) async fn copy(&self, from: &str, to: &str, image: &Stored) {
        let value: Value = serde_json::from_slice(&image.content).unwrap();
        for blob in [&value["config"]].into_iter().chain(value["layers"].as_array().unwrap()) {
            let digest = blob["digest"].as_str().unwrap().parse().unwrap();
            let mounted = self.client.mount_blob(&self.repository(to), &self.repository(from), &digest).await;
            assert!(mounted.unwrap());
        }
        self.put(to, None, &image.content).await;
    }

    /// Stores a manifest or index under a tag; returns its digest.
    pub(crate) async fn tag(&self, repository: &str, tag: &str, content: Vec<u8>) -> String {
        self.put(repository, Some(tag), &content).await
    }

    async fn put(&self, repository: &str, tag: Option<&str>, content: &[u8]) -> String {
        let digest = digest::sha256(content);
        let repository = self.repository(repository);
        let reference = match tag {
            Some(tag) => repository.with_tag(tag).unwrap(),
            None => repository.with_digest(digest.clone()),
        };
        let value: Value = serde_json::from_slice(content).unwrap();
        let media_type = value["mediaType"].as_str().unwrap();
        self.client.put_manifest(&reference, media_type, Bytes::copy_from_slice(content)).await.unwrap();
        digest.to_string()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn image_config(platform: &str, layers: &[&[u8]]) -> Vec<u8> {
    let (os, architecture) = platform.split_once('/').unwrap();
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest::sha256(layer).to_string()).collect();
    let config =
        json!({"os": os, "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    serde_json::to_vec(&config).unwrap()
}

/// A manifest of what was stored.
pub(crate) fn manifest(config: &Value, config_type: &str, layers: &[Value]) -> Vec<u8> {
    let typed = |value: &Value, media_type: &str| {
        let mut value = value.clone();
        value["mediaType"] = media_type.into();
        value
    };
    let layers: Vec<Value> = layers.iter().map(|layer| typed(layer, LAYER)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": typed(config, config_type), "layers": layers});
    serde_json::to_vec(&manifest).unwrap()
}

/// An index of images.
pub(crate) fn index(images: &[&Stored]) -> Vec<u8> {
    let entry = |image: &&Stored| {
        let (os, architecture) = image.platform.split_once('/').unwrap();
        let platform = json!({"os": os, "architecture": architecture});
        json!({"mediaType": MANIFEST, "digest": image.digest, "size": image.content.len(), "platform": platform})
    };
    let manifests: Vec<Value> = images.iter().map(entry).collect();
    serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})).unwrap()
}

/// A layer: a tar of these files.
pub(crate) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    test_support::tar_of(files)
}

/// Writes an OCI layout in a tar with one image of that name; returns its manifest's digest.
pub(crate) fn oci_archive(path: &Path, name: &str) -> String {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content).unwrap();
    };
    let mut blob = |content: &[u8]| {
        let digest = digest::sha256(content);
        add(&format!("blobs/sha256/{}", digest.digest()), content);
        json!({"digest": digest.to_string(), "size": content.len()})
    };
    let layer = blob(b"layer");
    let config = blob(&image_config("linux/amd64", &[b"layer"]));
    let mut root = blob(&manifest(&config, CONFIG, &[layer]));
    let digest = root["digest"].as_str().unwrap().to_owned();
    root["mediaType"] = MANIFEST.into();
    root["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    add("index.json", json!({"schemaVersion": 2, "manifests": [root]}).to_string().as_bytes());
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    tar.finish().unwrap();
    digest
}
