//! Registries to test with, and content to put into them.

pub(crate) mod fake;
pub(crate) mod proxy;
pub(crate) mod token;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use registry::client::{Client, ClientConfig, Retries, Timeouts, UploadConfig};
use registry::server::{AccessRecord, Server, ServerConfig};
use registry::{Digest, Reference, Repository};
use test_support::Need;
use test_support::log::distribution_address_in;
use tokio_util::sync::CancellationToken;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// How long anything may take that is expected to happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A registry that runs until this is dropped.
pub(crate) enum Registry {
    Embedded { server: Option<Server>, stop: CancellationToken, dir: PathBuf },
    Docker { child: Child, port: u16 },
}

/// What kind of registry a test is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Embedded,
    Docker,
}

impl Registry {
    /// A registry of `kind` on the content in `dir`.
    pub(crate) async fn start(kind: Kind, dir: &Path) -> Self {
        match kind {
            Kind::Embedded => Self::embedded(ServerConfig::new(dir.join("root"))).await,
            Kind::Docker => Self::docker(dir, ""),
        }
    }

    pub(crate) async fn embedded(config: ServerConfig) -> Self {
        let dir = config.root.parent().unwrap().to_owned();
        let stop = CancellationToken::new();
        let access_log = Some(dir.join("access.jsonl"));
        let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), access_log, ..config };
        let server = registry::server::serve(config, stop.clone()).await.unwrap();
        Self::Embedded { server: Some(server), stop, dir }
    }

    /// CNCF distribution's registry with `more` in its configuration.
    pub(crate) fn docker(dir: &Path, more: &str) -> Self {
        let config = docker_config(dir, more);
        let path = dir.join("docker-registry.log");
        let log = std::fs::File::create(&path).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut registry = Self::Docker { child, port: 0 };
        let started = Instant::now();
        loop {
            let log = std::fs::read_to_string(&path).unwrap();
            if let (Some(address), Self::Docker { port, .. }) = (distribution_address_in(&log), &mut registry)
            {
                *port = address.port();
                return registry;
            }
            assert!(started.elapsed() < SOON, "docker-registry does not listen: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn host(&self) -> String {
        match self {
            Self::Embedded { server, .. } => server.as_ref().unwrap().address().to_string(),
            Self::Docker { port, .. } => format!("127.0.0.1:{port}"),
        }
    }

    pub(crate) fn repository(&self, name: &str) -> Repository {
        Repository::parse(&format!("{}/{name}", self.host())).unwrap()
    }

    pub(crate) fn reference(&self, text: &str) -> Reference {
        Reference::parse(&format!("{}/{text}", self.host())).unwrap()
    }

    /// Stops it and waits until it has let go of its folder.
    pub(crate) async fn stop(mut self) {
        if let Self::Embedded { server, stop, .. } = &mut self {
            stop.cancel();
            server.take().unwrap().stopped().await;
        }
    }

    /// The embedded server's access log, once it satisfies `complete`: a line is written when its answer is
    /// out, which a client may see first.
    pub(crate) async fn log_when(&self, complete: impl Fn(&[AccessRecord]) -> bool) -> Vec<AccessRecord> {
        let Self::Embedded { dir, .. } = self else { panic!("only the embedded server has an access log") };
        let started = Instant::now();
        loop {
            let text = std::fs::read_to_string(dir.join("access.jsonl")).unwrap();
            let log: Vec<AccessRecord> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            if complete(&log) {
                return log;
            }
            assert!(started.elapsed() < SOON, "the access log does not become what it should be: {log:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        match self {
            Self::Embedded { stop, .. } => stop.cancel(),
            Self::Docker { child, .. } => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Writes the configuration of CNCF distribution's registry, which takes any port and logs which.
pub(crate) fn docker_config(dir: &Path, more: &str) -> PathBuf {
    let path = dir.join("docker-registry.yml");
    let more = if more.starts_with("http:") {
        more.to_owned()
    } else {
        format!("http: {{ addr: 127.0.0.1:0 }}\n{more}")
    };
    let text = format!(
        "version: 0.1\nlog: {{ level: info, accesslog: {{ disabled: true }} }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  \
         delete: {{ enabled: true }}\n{more}\n",
        dir.join("root").display(),
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// Whether `program` can be run; see [`test_support::has`].
pub(crate) fn have(program: &str) -> bool {
    test_support::has(&[Need::Program(program)])
}

/// A folder of the test's own.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("registry-test-").tempdir().unwrap()
}

/// Settings whose deadlines a test can wait for. No credentials of whoever runs the tests are looked at.
pub(crate) fn config() -> ClientConfig {
    ClientConfig {
        docker_config: Some(PathBuf::from("/nonexistent/docker/config.json")),
        timeouts: Timeouts {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(5),
            commit: Duration::from_secs(20),
            operation: Duration::from_secs(20),
            credential_helper: Duration::from_secs(5),
        },
        retries: Retries {
            attempts: 4,
            first_delay: Duration::from_millis(10),
            longest_delay: Duration::from_millis(100),
        },
        upload: UploadConfig { piece_bytes: 256 << 10, spool_dir: std::env::temp_dir(), spool: true },
        ..ClientConfig::default()
    }
}

pub(crate) fn client() -> Client {
    Client::new(config()).unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    test_support::noise(seed, len).into()
}

/// Pushes an image of one layer to `reference`, and returns its manifest and the layer's digest.
pub(crate) async fn push_image(client: &Client, reference: &Reference, layer: Bytes) -> (Digest, Digest) {
    let repository = reference.repository();
    let diff_id = registry::digest::sha256(&layer);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]}
    });
    let config = Bytes::from(config.to_string());
    let layer_size = layer.len();
    let layer = client.push_blob(repository, layer).await.unwrap();
    let config_digest = client.push_blob(repository, config.clone()).await.unwrap();
    let manifest = manifest(&config_digest, config.len(), &[(&layer, layer_size)]);
    let digest = client.put_manifest(reference, MANIFEST, manifest).await.unwrap();
    (digest, layer)
}

/// An image manifest.
pub(crate) fn manifest(config: &Digest, config_size: usize, layers: &[(&Digest, usize)]) -> Bytes {
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest.to_string(), "size": size
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": config_size
        }
    });
    Bytes::from(manifest.to_string())
}

/// All bytes of a blob.
pub(crate) async fn read_blob(client: &Client, repository: &Repository, digest: &Digest) -> Vec<u8> {
    let mut reader = client.blob(repository, digest).unwrap();
    let mut all = Vec::new();
    while let Some(bytes) = reader.next().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    all
}

/// Makes one test for each kind of registry out of an async function that takes the kind.
#[macro_export]
macro_rules! with_both_registries {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::support::Kind::Embedded).await;
            })+
        }
        mod docker_registry {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                if $crate::support::have("docker-registry") {
                    super::$name($crate::support::Kind::Docker).await;
                }
            })+
        }
    };
}
