//! Pulls of images whose blobs the node can or cannot read.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use registry::client::Client;
use registry::digest::{Digest, sha256};
use registry::reference::Reference;
use registry::server::{Server, ServerConfig};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};

use crate::harness::{Harness, code};

const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// A registry in this process, with blobs in the repository `i`.
pub(crate) struct Registry {
    dir: tempfile::TempDir,
    address: SocketAddr,
    log: PathBuf,
    server: Option<Server>,
    stop: Option<DropGuard>,
}

impl Registry {
    pub(crate) async fn start(htpasswd: Option<&str>) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), htpasswd).await
    }

    async fn start_in(dir: tempfile::TempDir, htpasswd: Option<&str>) -> Self {
        let passwords = dir.path().join("htpasswd");
        fs::write(&passwords, htpasswd.unwrap_or_default()).unwrap();
        let config = ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            access_log: Some(dir.path().join("log")),
            htpasswd: htpasswd.map(|_| passwords),
            ..ServerConfig::new(dir.path().join("root"))
        };
        let stop = CancellationToken::new();
        let server = registry::server::serve(config, stop.clone()).await.unwrap();
        Self {
            address: server.address(),
            log: dir.path().join("log"),
            dir,
            server: Some(server),
            stop: Some(stop.drop_guard()),
        }
    }

    /// The same blobs, for those alone whom `htpasswd` names, at another address.
    pub(crate) async fn only_for(mut self, htpasswd: &str) -> Self {
        self.stop().await;
        Self::start_in(self.dir, Some(htpasswd)).await
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/i:1", self.address)
    }

    pub(crate) async fn push(&self, content: &str) -> Digest {
        let reference = Reference::parse(&self.image()).unwrap();
        let client = Client::new(registry::client::ClientConfig::default()).unwrap();
        client.push_blob(reference.repository(), content.to_owned().into()).await.unwrap();
        sha256(content.as_bytes())
    }

    /// How often it was asked whether it has a blob.
    fn asked_for(&self, blob: &Digest) -> usize {
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().filter(|line| line.contains("\"HEAD\"") && line.contains(blob.as_ref())).count()
    }

    async fn stop(&mut self) {
        drop(self.stop.take());
        self.server.take().unwrap().stopped().await;
    }
}

/// What CRI does for an image of these data layers and a bootstrap; `told` is how many layers the list names at most.
pub(crate) async fn pull(
    harness: &Harness,
    image: &str,
    blobs: &[Digest],
    told: usize,
) -> Result<(), Status> {
    let bootstrap = sha256(b"the bootstrap layer");
    let layers: Vec<&str> = blobs.iter().chain([&bootstrap]).map(|digest| digest.as_ref()).collect();
    let mut parent = String::new();
    for (number, layer) in layers.iter().enumerate() {
        let list = layers[number..].iter().take(told).copied().collect::<Vec<_>>().join(",");
        let chain = format!("{image} up to {number}");
        let kind = if number < blobs.len() { "nydus-blob" } else { "nydus-bootstrap" };
        let kind = format!("containerd.io/snapshot/{kind}");
        let labels = [
            (kind.as_str(), "true"),
            (SNAPSHOT_REF, &chain),
            ("containerd.io/snapshot/cri.image-ref", image),
            ("containerd.io/snapshot/cri.layer-digest", layer),
            ("containerd.io/snapshot/cri.image-layers", &list),
        ];
        let prepared = harness.prepare_with(&format!("{image}-{number}"), &parent, &labels).await;
        if number < blobs.len() {
            assert_eq!(code(prepared), Code::AlreadyExists);
        } else {
            prepared?;
        }
        parent = chain;
    }
    Ok(())
}

/// What CRI does for the first of an image's layers: its registry is asked then for all that the list names.
pub(crate) async fn ask(harness: &Harness, image: &str, blob: &Digest) {
    let bootstrap = sha256(b"the bootstrap layer");
    let (chain, list) = (format!("{image} up to 0"), format!("{blob},{bootstrap}"));
    let labels = [
        ("containerd.io/snapshot/nydus-blob", "true"),
        (SNAPSHOT_REF, chain.as_str()),
        ("containerd.io/snapshot/cri.image-ref", image),
        ("containerd.io/snapshot/cri.layer-digest", blob.as_ref()),
        ("containerd.io/snapshot/cri.image-layers", &list),
    ];
    assert_eq!(code(harness.prepare_with(&format!("{image}-0"), "", &labels).await), Code::AlreadyExists);
}

#[tokio::test]
async fn every_blob_is_asked_for_once_also_those_that_the_list_leaves_out() {
    let registry = Registry::start(None).await;
    let harness = Harness::start().await;
    let mut blobs = Vec::new();
    for content in ["one", "two", "three"] {
        blobs.push(registry.push(content).await);
    }
    // The pushes asked too.
    let before: Vec<_> = blobs.iter().map(|blob| registry.asked_for(blob)).collect();
    pull(&harness, &registry.image(), &blobs, 1).await.unwrap();
    let asked: Vec<_> = blobs.iter().map(|blob| registry.asked_for(blob)).collect();
    assert_eq!(asked, before.iter().map(|times| times + 1).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_pull_is_refused_if_the_registry_does_not_give_a_blob() {
    let registry = Registry::start(None).await;
    let harness = Harness::start().await;
    let blobs = [registry.push("one").await, sha256(b"never pushed")];
    let refused = pull(&harness, &registry.image(), &blobs, 3).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("404") && refused.message().contains(blobs[1].as_ref()), "{refused}");
    assert!(refused.message().contains(&registry.image()), "{refused}");
}

#[tokio::test]
async fn a_pull_is_refused_if_credentials_are_missing() {
    // Nobody shows a password.
    let registry =
        Registry::start(Some("user:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n")).await;
    let harness = Harness::start().await;
    let refused = pull(&harness, &registry.image(), &[sha256(b"any")], 2).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("401") && refused.message().contains("no credentials"), "{refused}");
}

/// It may be back when a container reads.
#[tokio::test]
async fn a_registry_that_is_away_refuses_nothing() {
    let mut registry = Registry::start(None).await;
    let harness = Harness::start_with(|_, config| {
        config.daemon.spawn = false;
        config.registry.retries.attempts = 1;
    })
    .await;
    let blob = registry.push("one").await;
    registry.stop().await;
    pull(&harness, &registry.image(), &[blob], 2).await.unwrap();
}

/// However many of its blobs are asked for.
#[tokio::test]
async fn a_registry_that_does_not_answer_keeps_no_other_from_being_asked() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/i:1", silent.local_addr().unwrap());
    let registry = Registry::start(None).await;
    let harness = Harness::start().await;
    let many: Vec<_> = (0..40).map(|number| sha256(format!("layer {number}").as_bytes())).collect();
    let waiting = pull(&harness, &image, &many, many.len() + 1);
    let others = async {
        // It goes on to listen, and others connect to it as well.
        let connected = tokio::task::spawn_blocking(move || (silent.accept().unwrap(), silent));
        let _silent = connected.await.unwrap();
        pull(&harness, &registry.image(), &[sha256(b"never pushed")], 2).await.unwrap_err()
    };
    tokio::select! {
        biased;
        pulled = waiting => panic!("the pull did not wait: {pulled:?}"),
        refused = others => assert!(refused.message().contains("404"), "{refused}"),
    }
}

/// It is asked in the background, and holds up nobody but its own image.
#[tokio::test]
async fn a_registry_that_does_not_answer_holds_up_nobody_else() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let harness = Harness::start().await;
    let image = format!("{address}/i:1");
    let blobs = [sha256(b"one")];
    let waiting = pull(&harness, &image, &blobs, 2);
    let others = async {
        let mut connected = tokio::task::spawn_blocking(move || silent.accept().unwrap());
        // The registry has been asked, and does not answer: from here on the pull waits.
        let _connection = (&mut connected).await.unwrap();
        harness.prepare("plain", "").await.unwrap();
        harness.commit("committed", "plain").await.unwrap();
        harness.stat("committed").await.unwrap();
        harness.cleanup().await.unwrap();
        harness.remove("committed").await.unwrap();
    };
    tokio::select! {
        biased;
        pulled = waiting => panic!("the pull did not wait: {pulled:?}"),
        () = others => {}
    }
}
