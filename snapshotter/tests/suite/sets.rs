//! Image sets over the control socket.

use std::os::unix::fs::PermissionsExt as _;

use fuse_daemon::control::BootstrapSource;
use fuse_daemon::control::protocol::Request;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use registry::digest::{Digest, sha256};
use snapshotter::control::protocol::ErrorKind;
use snapshotter::control::{
    BackendSpec, Client, ClientError, ImageSet, MergedBootstrap, SetBlob, SetChain, SetImage, TreePlace,
    chain_id,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::Code;

use crate::fake_daemon::{self, Bootstrap};
use crate::harness::{Harness, code};
use crate::needs_root;
use crate::nydus::Node;

const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";

/// A set of one image with these layers, the lowest first. Blobs and bootstrap are named by their names alone.
pub(crate) fn set(name: &str, backends: Vec<BackendSpec>, layers: &[&str]) -> ImageSet {
    let mut set = ImageSet { name: name.to_owned(), backends, ..ImageSet::default() };
    let mut parent: Option<Digest> = None;
    for layer in layers {
        let (blob, diff_id) = (sha256(format!("blob {layer}").as_bytes()), sha256(layer.as_bytes()));
        let chain = chain_id(parent.as_ref(), &diff_id);
        set.blobs.push(SetBlob { blob: blob.clone(), size: 1000, toc: sha256(b"toc") });
        let tree = TreePlace { offset: 0, size: 9, digest: sha256(b"tree"), uncompressed_size: 9 };
        set.chains.push(SetChain { chain: chain.clone(), parent, diff_id, blob, tree, foreign: Vec::new() });
        parent = Some(chain);
    }
    let bootstrap = MergedBootstrap { digest: sha256(b"gzip"), size: 9, diff_id: sha256(b"tar") };
    let blobs = set.blobs.iter().map(|blob| blob.blob.clone()).collect();
    set.images.extend(parent.map(|chain| SetImage { chain, bootstrap, blobs }));
    set
}

pub(crate) fn registry() -> Vec<BackendSpec> {
    vec![BackendSpec::Registry { repository: "registry.invalid/cluster".to_owned() }]
}

pub(crate) fn client(harness: &Harness) -> Client {
    Client::new(harness.config.control_socket())
}

#[tokio::test]
async fn sets_are_put_listed_and_removed_and_outlive_a_restart() {
    let mut harness = Harness::start().await;
    let client = client(&harness);
    let mode = std::fs::metadata(client.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(client.list().await.unwrap(), []);
    let one = set("one", registry(), &["base", "nginx"]);
    assert!(client.put(&one).await.unwrap());
    assert!(!client.put(&one).await.unwrap());
    assert!(client.put(&set("another", registry(), &["base"])).await.unwrap());
    harness.restart().await;
    let sets = client.list().await.unwrap();
    let names: Vec<_> =
        sets.iter().map(|set| (set.name.as_str(), set.images, set.chains, set.layers)).collect();
    assert_eq!(names, [("another", 1, 1, 0), ("one", 1, 2, 0)]);
    assert_eq!(sets[1].backends, registry());
    assert!(client.remove("one").await.unwrap());
    assert!(!client.remove("one").await.unwrap());
    harness.restart().await;
    assert_eq!(client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_not_sound_is_refused_by_client_and_server_and_changes_nothing() {
    let harness = Harness::start().await;
    let client = client(&harness);
    let mut broken = set("one", registry(), &["base", "nginx"]);
    broken.blobs.pop();
    let refused = client.put(&broken).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Set(error) if error.problem.contains("names blob")), "{refused}");
    let call = serde_json::json!({"version": 1, "request": {"put": broken}});
    let answer = say(&client, &format!("{call}\n")).await;
    assert!(answer.contains("\"invalid\"") && answer.contains("names blob"), "{answer}");
    assert_eq!(client.list().await.unwrap(), []);
}

#[tokio::test]
async fn what_is_no_request_of_this_version_is_answered_with_the_reason() {
    let harness = Harness::start().await;
    let client = client(&harness);
    for (said, expected) in [
        ("{\"version\":1,\"request\":\"forget\"}\n", "the request is not known"),
        ("{\"version\":7,\"oldest\":6,\"request\":\"list\"}\n", "speaks 1 to 2"),
        // A client from before there were node images is answered in its own version.
        ("{\"version\":1,\"request\":\"list\"}\n", "{\"version\":1,\"answer\":{\"sets\":"),
        ("nonsense\n", "is no call"),
        ("{\"version\":7,\"oldest\":1,\"request\":\"list\"}\n", "{\"sets\":{\"sets\":[]}}"),
    ] {
        let answer = say(&client, said).await;
        assert!(answer.contains(expected), "{said}: {answer}");
    }
    let gone = Client::new(harness.dir.path().join("nowhere.sock"));
    assert!(gone.list().await.unwrap_err().is_not_running());
    let kind = serde_json::to_string(&ErrorKind::Version).unwrap();
    assert!(say(&client, "{\"version\":0,\"request\":\"list\"}\n").await.contains(&kind));
}

/// What the server answers to a line.
async fn say(client: &Client, line: &str) -> String {
    let mut stream = UnixStream::connect(client.socket()).await.unwrap();
    stream.write_all(line.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Prepares the layers of the set's chains as containerd does: each is said to be there, and found by what containerd looks for.
/// Gives the name of the uppermost.
async fn pull(harness: &Harness, set: &ImageSet) -> String {
    let mut parent = String::new();
    for SetChain { chain, .. } in &set.chains {
        let labels = [(SNAPSHOT_REF, chain.as_ref())];
        let prepared = harness.prepare_with("extract", &parent, &labels).await;
        assert_eq!(code(prepared), Code::AlreadyExists);
        assert_eq!(code(harness.stat("extract").await), Code::NotFound);
        let filter = format!("labels.\"{SNAPSHOT_REF}\"=={chain},parent==\"{parent}\"");
        let found = harness.list(&[&filter]).await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        parent.clone_from(&found[0].name);
    }
    parent
}

/// The bootstraps that the daemon was asked to make.
fn made(node: &Node) -> Vec<BootstrapSource> {
    let made = |request| match request {
        Request::MakeBootstrap(request) => {
            assert_eq!(request.backends, registry());
            Some(request.source)
        }
        _ => None,
    };
    node.requests().into_iter().filter_map(made).collect()
}

#[tokio::test]
async fn layers_of_a_set_are_said_to_be_there_and_nobody_is_asked() {
    let node = Node::start().await;
    let harness = &node.harness;
    let one = set("one", registry(), &["base", "nginx"]);
    client(harness).put(&one).await.unwrap();
    let top = pull(harness, &one).await;
    assert_eq!(top, one.chains[1].chain.as_ref());
    assert!(harness.directories().is_empty() && harness.mountpoints().is_empty());
    let ours = |request: &Request| {
        matches!(request, Request::MakeBootstrap(_) | Request::Mount(_) | Request::HandOut { .. })
    };
    assert!(!node.requests().iter().any(ours), "{:?}", node.requests());
    // What no set has is as plain as ever, also on a layer that one has.
    let labels = [(SNAPSHOT_REF, "sha256:of-something-else")];
    assert_eq!(harness.prepare_with("plain", "", &labels).await.unwrap()[0].r#type, "bind");
    assert_eq!(client(harness).list().await.unwrap()[0].layers, 2);
}

#[tokio::test]
async fn a_container_is_on_the_merged_bootstrap_which_is_made_once() {
    needs_root!();
    let node = Node::start().await;
    let harness = &node.harness;
    let one = set("one", registry(), &["base", "nginx"]);
    client(harness).put(&one).await.unwrap();
    let top = pull(harness, &one).await;
    // Nothing to make it of is an error that names it.
    let refused = harness.prepare("early", &top).await.unwrap_err();
    let name = format!("layers {} of one", one.chains[1].chain);
    assert!(refused.message().contains(&name), "{refused}");
    fake_daemon::will_make(harness.dir.path(), &node.content("nginx"));
    let mounts = harness.prepare("container", &top).await.unwrap();
    let mounted = harness.mount(&mounts, "container");
    assert_eq!(std::fs::read(mounted.path().join("hello")).unwrap(), b"nginx");
    harness.prepare("another", &top).await.unwrap();
    let bootstrap = &one.images[0].bootstrap;
    let expected = BootstrapSource::Packed {
        blob: bootstrap.digest.as_ref().parse().unwrap(),
        size: bootstrap.size,
        diff_id: bootstrap.diff_id.as_ref().parse().unwrap(),
    };
    assert_eq!(made(&node), [expected.clone(), expected]);
    assert_eq!(node.mount_requests(), 1);
}

#[tokio::test]
async fn a_plain_layer_lies_on_a_chain_that_is_no_image() {
    needs_root!();
    let node = Node::start().await;
    let harness = &node.harness;
    let mut one = set("one", registry(), &["one", "two", "three"]);
    client(harness).put(&one).await.unwrap();
    one.chains.pop();
    let below = pull(harness, &one).await;
    fake_daemon::will_make(harness.dir.path(), &node.content("below"));
    let labels = [(SNAPSHOT_REF, "sha256:outside")];
    let mounts = harness.prepare_with("outside-a", &below, &labels).await.unwrap();
    let mounted = harness.mount(&mounts, "outside-a");
    std::fs::write(mounted.path().join("own"), "own").unwrap();
    std::fs::remove_file(mounted.path().join("hello")).unwrap();
    drop(mounted);
    harness.commit_with("outside", "outside-a", &labels).await.unwrap();
    let mounts = harness.prepare("container", "outside").await.unwrap();
    let mounted = harness.mount(&mounts, "container");
    let names: Vec<_> =
        std::fs::read_dir(mounted.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["own"]);
    let [BootstrapSource::Layers { layers }] = &made(&node)[..] else { panic!("{:?}", made(&node)) };
    let blobs: Vec<_> = layers.iter().map(|layer| layer.blob.to_string()).collect();
    assert_eq!(blobs, one.chains.iter().map(|chain| chain.blob.to_string()).collect::<Vec<_>>());
    assert_eq!(node.mount_requests(), 1, "one mount for all below");
}

#[tokio::test]
async fn what_was_pulled_outlives_its_set_and_restarts() {
    needs_root!();
    let mut node = Node::start().await;
    let one = set("one", registry(), &["base", "nginx"]);
    client(&node.harness).put(&one).await.unwrap();
    let top = pull(&node.harness, &one).await;
    fake_daemon::will_make(node.harness.dir.path(), &node.content("nginx"));
    let mounts = node.harness.prepare("running", &top).await.unwrap();
    assert!(client(&node.harness).remove("one").await.unwrap());
    node.harness.restart().await;
    let harness = &node.harness;
    assert_eq!(harness.mounts("running").await.unwrap(), mounts);
    let mounts = harness.prepare("new", &top).await.unwrap();
    let mounted = harness.mount(&mounts, "new");
    assert_eq!(std::fs::read(mounted.path().join("hello")).unwrap(), b"nginx");
    assert_eq!(made(&node).len(), 1, "what was made is there");
    // A new pull is plain.
    let another = set("another", registry(), &["other"]);
    let labels = [(SNAPSHOT_REF, another.chains[0].chain.as_ref())];
    harness.prepare_with("plain", "", &labels).await.unwrap();
}

#[tokio::test]
async fn what_was_pulled_plainly_stays_so_and_a_layer_of_a_set_above_it_shows_all() {
    needs_root!();
    let node = Node::start().await;
    let harness = &node.harness;
    let one = set("one", registry(), &["base", "nginx"]);
    let labels = [(SNAPSHOT_REF, one.chains[0].chain.as_ref())];
    let mounts = harness.prepare_with("base-a", "", &labels).await.unwrap();
    std::fs::write(std::path::Path::new(&mounts[0].source).join("plain"), "plain").unwrap();
    harness.commit_with("k8s.io/1/base", "base-a", &labels).await.unwrap();
    client(harness).put(&one).await.unwrap();
    let labels = [(SNAPSHOT_REF, one.chains[1].chain.as_ref())];
    let prepared = harness.prepare_with("top-a", "k8s.io/1/base", &labels).await;
    assert_eq!(code(prepared), Code::AlreadyExists);
    fake_daemon::will_make(harness.dir.path(), &node.content("nginx"));
    for (key, parent, name) in
        [("one", one.chains[1].chain.as_ref(), "hello"), ("two", "k8s.io/1/base", "plain")]
    {
        let mounts = harness.prepare(key, parent).await.unwrap();
        let mounted = harness.mount(&mounts, key);
        let entries = std::fs::read_dir(mounted.path()).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [name]);
    }
}

/// A node with the set `one`, and a container `running` on its image; and the image's uppermost layer.
async fn running() -> (Node, ImageSet, String) {
    let node = Node::start().await;
    let harness = &node.harness;
    let one = set("one", registry(), &["base", "nginx"]);
    client(harness).put(&one).await.unwrap();
    let top = pull(harness, &one).await;
    fake_daemon::will_make(harness.dir.path(), &Bootstrap { hands_over: true, ..node.content("nginx") });
    harness.prepare("running", &top).await.unwrap();
    (node, one, top)
}

/// Such as when a package was moved to another directory.
#[tokio::test]
async fn images_that_run_are_read_from_where_their_set_is_now() {
    needs_root!();
    let (node, mut one, _) = running().await;
    let harness = &node.harness;
    one.backends = vec![BackendSpec::Directory { path: "/moved".into() }];
    assert!(client(harness).put(&one).await.unwrap());
    let expected = [one.backends, registry()].concat();
    crate::harness::eventually("the daemon is told", async || {
        let told = |request: &Request| matches!(request, Request::AddBackends { backends, .. } if *backends == expected);
        node.requests().iter().any(told).then_some(())
    })
    .await;
    // And so is the next one, before anybody reads.
    crate::harness::eventually("it is held as it is now", async || {
        let handovers =
            node.requests().iter().filter(|request| matches!(request, Request::Handover { .. })).count();
        (handovers == 2).then_some(())
    })
    .await;
    kill(Pid::from_raw(node.daemon_pid().await.try_into().unwrap()), Signal::SIGKILL).unwrap();
    crate::harness::eventually("the next daemon has the mount", async || {
        let requests = node.requests();
        let adopted = requests.iter().find_map(|request| match request {
            Request::Adopt(handover) => Some(handover.mount.backends.clone()),
            _ => None,
        })?;
        let moved = BackendSpec::Directory { path: "/moved".into() };
        assert!(adopted.contains(&moved), "{adopted:?}");
        Some(())
    })
    .await;
}

#[tokio::test]
async fn the_next_container_is_read_from_where_its_set_is_now() {
    needs_root!();
    let (node, mut one, top) = running().await;
    let harness = &node.harness;
    // The image stays mounted after its last container.
    harness.remove("running").await.unwrap();
    let moved = BackendSpec::Directory { path: "/moved".into() };
    one.backends = vec![moved.clone()];
    assert!(client(harness).put(&one).await.unwrap());
    harness.prepare("next", &top).await.unwrap();
    let told = |request: &Request| matches!(request, Request::AddBackends { backends, .. } if backends.contains(&moved));
    assert!(node.requests().iter().any(told));
}

/// Waits until the daemon is told to keep so many blobs.
async fn kept(node: &Node, count: usize) {
    crate::harness::eventually("the daemon is told what to keep", async || {
        node.harness.cleanup().await.unwrap();
        let requests = node.requests();
        let last = requests.iter().rev().find_map(|request| match request {
            Request::Keep { blobs } => Some(blobs.len()),
            _ => None,
        });
        (last == Some(count)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_cache_keeps_what_layers_of_sets_need_until_they_are_gone() {
    let mut node = Node::start().await;
    let one = set("one", registry(), &["base", "nginx"]);
    client(&node.harness).put(&one).await.unwrap();
    let top = pull(&node.harness, &one).await;
    client(&node.harness).remove("one").await.unwrap();
    node.daemon_pid().await;
    node.harness.restart().await;
    kept(&node, 2).await;
    node.harness.remove(&top).await.unwrap();
    kept(&node, 1).await;
    node.harness.remove(one.chains[0].chain.as_ref()).await.unwrap();
    kept(&node, 0).await;
}

/// containerd with the capability `rebase` names no parents, and forgets the layers below.
#[tokio::test]
async fn layers_without_their_parents_are_there_and_the_uppermost_needs_no_other() {
    needs_root!();
    let node = Node::start().await;
    let harness = &node.harness;
    let one = set("one", registry(), &["base", "nginx"]);
    client(harness).put(&one).await.unwrap();
    for SetChain { chain, parent, .. } in one.chains.iter().rev() {
        let mut labels = vec![(SNAPSHOT_REF, chain.as_ref())];
        labels.extend(parent.iter().map(|parent| (PARENT_CHAIN_ID, parent.as_ref())));
        assert_eq!(code(harness.prepare_with("extract", "", &labels).await), Code::AlreadyExists);
        let filter = format!("labels.\"{SNAPSHOT_REF}\"=={chain},parent==\"\"");
        assert_eq!(harness.list(&[&filter]).await.unwrap().len(), 1);
    }
    let (base, top) = (one.chains[0].chain.as_ref(), one.chains[1].chain.as_ref());
    harness.remove(base).await.unwrap();
    fake_daemon::will_make(harness.dir.path(), &node.content("nginx"));
    let mounts = harness.prepare("container", top).await.unwrap();
    drop(harness.mount(&mounts, "container"));
    // A plain layer that is unpacked apart is put on it.
    let labels = [(SNAPSHOT_REF, "sha256:outside"), (PARENT_CHAIN_ID, top)];
    harness.prepare_with("outside-a", "", &labels).await.unwrap();
    harness.commit_on("outside", "outside-a", top, &labels).await.unwrap();
    let mounts = harness.view("view", "outside").await.unwrap();
    let mounted = harness.mount(&mounts, "view");
    assert_eq!(std::fs::read(mounted.path().join("hello")).unwrap(), b"nginx");
}
