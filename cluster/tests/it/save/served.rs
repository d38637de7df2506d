//! What a node answers for saved images.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use cluster::lock::Lock;
use cluster::save::{Destination, SaveOptions};
use cluster::saved::{SavedAt, SavedImages};
use cluster::serve::{KeepError, Kept, serve};
use registry::Repository;
use registry::client::Client;
use registry::digest::sha256;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{client, locked, plain, saved_in};
use crate::support::{Registry, index, layer};

/// An image for two platforms, of which one is locked, under a tag and by its digest, and another one with its digest alone.
struct World {
    from: Registry,
    index: Vec<u8>,
    amd64: Vec<u8>,
    arm64: Vec<u8>,
    other: Vec<u8>,
    lock: Lock,
    dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let from = Registry::start().await;
        let (base, own) = (layer(&[("base", b"base")]), layer(&[("app", b"app")]));
        let amd64 = from.image("team/app", "linux/amd64", &[&base, &own]).await;
        let arm64 = from.image("team/app", "linux/arm64", &[&base]).await;
        let index = index(&[&amd64, &arm64]);
        from.tag("team/app", "v1", index.clone()).await;
        let other = from.image("other", "linux/amd64", &[&base]).await;
        from.tag("other", "v1", other.content.clone()).await;
        let dir = tempfile::tempdir().unwrap();
        let list = format!("{0}/team/app:v1\n{0}/other:v1@{1}\n", from.host(), other.digest);
        let lock = locked(&dir, &list, &["linux/amd64"]).await;
        let [amd64, arm64, other] = [amd64, arm64, other].map(|image| image.content);
        Self { from, index, amd64, arm64, other, lock, dir }
    }

    async fn saved(&self, to: &Destination, options: &SaveOptions) -> SavedImages {
        let (_, failed) = saved_in(&client(), &self.lock, self.dir.path(), to, options).await;
        assert!(failed.is_empty(), "{failed:?}");
        let place = match to {
            Destination::Repository(reference) => SavedAt::Repository(reference.clone()),
            Destination::Directory(path) => SavedAt::Directory(path.clone()),
        };
        SavedImages::open(&place, &client()).await.unwrap()
    }

    /// What names of repositories on the node begin with.
    fn host(&self) -> String {
        self.from.host().replace(':', "_")
    }

    /// Everything that was saved is answered, and nothing else.
    async fn check(&self, kept: &Kept) {
        let node = Node::serve(kept).await;
        let app = format!("{}/team/app", self.host());
        let other = format!("{}/other", self.host());
        let (index, amd64) = (sha256(&self.index), sha256(&self.amd64));
        // By tag, by digest, and as containerd asks where it adds the registry as a parameter, with and without a path of its own.
        let ns = format!("?ns={}", self.from.host());
        for path in [
            format!("{app}/manifests/v1"),
            format!("{app}/manifests/{index}"),
            format!("{app}/manifests/v1{ns}"),
            format!("team/app/manifests/v1{ns}"),
        ] {
            node.answers(&path, "application/vnd.oci.image.index.v1+json", &self.index).await;
        }
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        node.answers(&format!("{app}/manifests/{amd64}"), manifest, &self.amd64).await;
        node.answers(&format!("{other}/manifests/{}", sha256(&self.other)), manifest, &self.other).await;
        let named: Value = serde_json::from_slice(&self.amd64).unwrap();
        let config = named["config"]["digest"].as_str().unwrap();
        let answer = node.ask("GET", &format!("{app}/blobs/{config}")).await;
        assert_eq!(sha256(&answer.body).to_string(), config);
        // Of a layer it is said why it is not there.
        let layer = named["layers"][0]["digest"].as_str().unwrap();
        let answer = node.ask("GET", &format!("{app}/blobs/{layer}")).await;
        assert_eq!(answer.status(), "404");
        let said: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(said["errors"][0]["code"], "BLOB_UNKNOWN");
        let detail = said["errors"][0]["detail"].as_str().unwrap();
        assert!(detail.contains(layer) && detail.contains("take it from its own registry"), "{detail}");
        // The tag of an image that was asked for by digest, a platform that is not locked, what was never saved, another registry.
        for path in [
            format!("{other}/manifests/v1"),
            format!("{app}/manifests/{}", sha256(&self.arm64)),
            format!("{app}/manifests/v2"),
            format!("{}/unknown/manifests/v1", self.host()),
            "team/app/manifests/v1?ns=registry.example".to_owned(),
        ] {
            assert_eq!(node.ask("GET", &path).await.status(), "404", "{path}");
        }
        for method in ["PUT", "DELETE"] {
            assert_eq!(node.ask(method, &format!("{app}/manifests/v1")).await.status(), "405");
        }
    }
}

/// A registry of what is kept.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
}

impl Node {
    async fn serve(kept: &Kept) -> Self {
        Self::serve_from(kept, None).await
    }

    /// The same, with blobs that are in a repository.
    pub(crate) async fn serve_from(kept: &Kept, saved: Option<(Client, Repository)>) -> Self {
        let stop = CancellationToken::new();
        let server = serve(kept, saved, ([127, 0, 0, 1], 0).into(), stop.clone()).await.unwrap();
        Self { address: server.address(), stop }
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        self.ask_with(method, path, "").await
    }

    /// The same, with lines more in the head.
    pub(crate) async fn ask_with(&self, method: &str, path: &str, lines: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("{method} /v2/{path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{lines}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        let body = answer.split_off(end);
        Answer { head: String::from_utf8(answer).unwrap(), body }
    }

    /// GET and HEAD of a document.
    async fn answers(&self, path: &str, media_type: &str, content: &[u8]) {
        for method in ["GET", "HEAD"] {
            let answer = self.ask(method, path).await;
            assert_eq!(answer.status(), "200", "{path}");
            assert_eq!(answer.header("content-type"), media_type);
            assert_eq!(answer.header("docker-content-digest"), sha256(content).to_string());
            assert_eq!(answer.header("content-length"), content.len().to_string());
            let expected = if method == "GET" { content } else { b"" };
            assert_eq!(answer.body, expected, "{path}");
        }
    }
}

pub(crate) struct Answer {
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| *found == name).unwrap().1
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn root(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("documents")
}

/// What is in the directory of `dir` but the documents.
fn beside(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "documents").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_images_are_answered_word_for_word_also_when_their_repository_is_gone() {
    let (world, to) = (World::new().await, Registry::start().await);
    let name = to.repository("team/cluster").with_tag("images").unwrap();
    let saved = world.saved(&Destination::Repository(name), &SaveOptions::default()).await;
    let node = tempfile::tempdir().unwrap();
    Kept::keep(&root(&node), &saved).await.unwrap();
    assert!(beside(node.path()).is_empty());
    drop(to);
    let kept = Kept::open(&root(&node)).unwrap().unwrap();
    assert_eq!(kept.images(), saved.digest());
    world.check(&kept).await;
    // Kept once, they are not asked for again.
    Kept::keep(&root(&node), &saved).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_were_saved_to_a_directory_are_answered_too() {
    let (world, node) = (World::new().await, tempfile::tempdir().unwrap());
    let to = Destination::Directory(world.dir.path().join("registry"));
    let saved = world.saved(&to, &SaveOptions::default()).await;
    world.check(&Kept::keep(&root(&node), &saved).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_stays_until_all_of_the_next_is_there() {
    let (mut world, to) = (World::new().await, Registry::start().await);
    let repository = to.repository("team/cluster");
    let save = |tag: &str| Destination::Repository(repository.with_tag(tag).unwrap());
    let node = tempfile::tempdir().unwrap();
    let first = world.saved(&save("v1"), &SaveOptions::default()).await;
    Kept::keep(&root(&node), &first).await.unwrap();
    // Of the next images a document is not what it should be.
    let own = layer(&[("app", b"newer")]);
    let newer = world.from.image("team/app", "linux/amd64", &[&own]).await;
    world.from.tag("team/app", "v1", newer.content.clone()).await;
    let list = format!("{}/team/app:v1\n", world.from.host());
    let before = std::mem::replace(&mut world.lock, locked(&world.dir, &list, &[]).await);
    let second = world.saved(&save("v2"), &SaveOptions::default()).await;
    let manifest = to.data(&newer.digest.parse().unwrap());
    let content = fs::read(&manifest).unwrap();
    fs::write(&manifest, vec![b' '; content.len()]).unwrap();
    let error = Kept::keep(&root(&node), &second).await.unwrap_err().to_string();
    assert!(error.contains("team/app:v1") && error.contains(&newer.digest), "{error}");
    world.lock = before;
    world.check(&Kept::open(&root(&node)).unwrap().unwrap()).await;
    // Once it is, they take the place of the first.
    fs::write(&manifest, content).unwrap();
    Kept::keep(&root(&node), &second).await.unwrap();
    let kept = Kept::open(&root(&node)).unwrap().unwrap();
    assert_eq!(kept.images(), second.digest());
    assert!(beside(node.path()).is_empty());
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let path = format!("{}/team/app/manifests/v1", world.host());
    Node::serve(&kept).await.answers(&path, manifest, &newer.content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_can_only_be_pulled_whole_are_refused() {
    let (world, to) = (World::new().await, Registry::start().await);
    let name = to.repository("team/cluster").with_tag("images").unwrap();
    let saved = world.saved(&Destination::Repository(name), &plain()).await;
    let node = tempfile::tempdir().unwrap();
    let error = Kept::keep(&root(&node), &saved).await.unwrap_err();
    assert!(matches!(error, KeepError::Plain), "{error}");
    assert!(Kept::open(&root(&node)).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_told_of_the_images_that_the_lock_has_and_of_no_others() {
    let (world, to) = (World::new().await, Registry::start().await);
    let repository = to.repository("team/cluster");
    let name = repository.with_tag("images").unwrap();
    let saved = world.saved(&Destination::Repository(name), &SaveOptions::default()).await;
    let told = cluster::launch::images(&saved, &repository, Some(&world.lock)).unwrap();
    assert_eq!((&told.digest, told.hosts.len()), (saved.digest(), 1));
    // The cluster image has the next version of one in its lock.
    let newer = world.from.image("team/app", "linux/amd64", &[&layer(&[("app", b"newer")])]).await;
    world.from.tag("team/app", "v1", newer.content.clone()).await;
    let lock = locked(&world.dir, &format!("{}/team/app:v1\n", world.from.host()), &[]).await;
    let error = cluster::launch::images(&saved, &repository, Some(&lock)).unwrap_err().to_string();
    let (image, found) = (format!("{}/team/app:v1", world.from.host()), sha256(&world.index));
    let expected = format!("{image} was saved as {found}: expected {}", newer.digest);
    assert!(error.contains(&expected), "{error}");
}
