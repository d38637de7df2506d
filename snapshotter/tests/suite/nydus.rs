//! Layers and containers of nydus images.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use containerd_client::services::v1::snapshots::Kind;
use fuse_daemon::control::Client;
use fuse_daemon::control::protocol::Request;
use tonic::Code;

use crate::fake_daemon::{self, Bootstrap, CACHED_BYTES};
use crate::harness::{Harness, code};
use crate::needs_root;

const BLOB: (&str, &str) = ("containerd.io/snapshot/nydus-blob", "true");
const BOOTSTRAP: (&str, &str) = ("containerd.io/snapshot/nydus-bootstrap", "true");
const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";

/// A service with a daemon, and images in it.
pub(crate) struct Node {
    pub(crate) harness: Harness,
}

impl Node {
    pub(crate) async fn start() -> Self {
        // Longer than SOON, so that who waits for a mount that does not come is noticed.
        Self::start_with_timeout(180).await
    }

    pub(crate) async fn start_with_timeout(seconds: u64) -> Self {
        let harness = Harness::start_with(|dir, config| {
            config.daemon = fake_daemon::config(dir);
            config.mount_timeout_seconds = seconds;
        })
        .await;
        Self { harness }
    }

    /// Answers of the daemon, once there is one.
    pub(crate) async fn daemon_pid(&self) -> u32 {
        let client = Client::new(self.harness.config.daemon.socket.path());
        crate::harness::eventually("the daemon answers", async || {
            client.status().await.ok().map(|status| status.pid)
        })
        .await
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        fake_daemon::requests(self.harness.dir.path())
    }

    /// How many mounts of images the daemon was asked for.
    pub(crate) fn mount_requests(&self) -> usize {
        self.requests().iter().filter(|request| matches!(request, Request::Mount(_))).count()
    }

    /// Where the only image is mounted.
    pub(crate) fn mountpoint(&self) -> PathBuf {
        let [id] = &self.harness.mountpoints()[..] else { panic!("not one mount point") };
        self.harness.config.root.join("mounts").join(id)
    }

    /// A digest made of one digit.
    pub(crate) fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    /// What containerd does for an image of one data layer and a bootstrap; gives the name of the upper snapshot.
    pub(crate) async fn pull(&self, name: &str, blob: char, bootstrap: &Bootstrap) -> String {
        let digest = Self::digest(blob);
        let labels = [BLOB, (SNAPSHOT_REF, &digest), (LAYER_DIGEST, &digest), (IMAGE_REF, name)];
        let result = self.harness.prepare_with(&format!("{name}/blob-a"), "", &labels).await;
        assert_eq!(code(result), Code::AlreadyExists);
        let key = format!("{name}/boot-a");
        let chain = format!("sha256:chain-of-{name}");
        let labels = [BOOTSTRAP, (SNAPSHOT_REF, chain.as_str()), (IMAGE_REF, name)];
        let mounts = self.harness.prepare_with(&key, &digest, &labels).await.unwrap();
        assert_eq!(mounts[0].r#type, "bind");
        let image = PathBuf::from(&mounts[0].source).join("image");
        fs::create_dir(&image).unwrap();
        fs::write(image.join("image.boot"), serde_json::to_vec(bootstrap).unwrap()).unwrap();
        let upper = format!("{name}/boot");
        self.harness.commit_with(&upper, &key, &labels).await.unwrap();
        upper
    }

    /// A directory to be shown as an image.
    pub(crate) fn content(&self, name: &str) -> Bootstrap {
        let directory = self.harness.work(&format!("content-{name}"));
        fs::write(directory.join("hello"), name).unwrap();
        Bootstrap { directory, ..Bootstrap::default() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The daemon survives the service on purpose; the test must end it.
        let socket = &self.harness.config.daemon.socket;
        let Ok(stream) = std::os::unix::net::UnixStream::connect(socket) else { return };
        if let Ok(peer) = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(peer.pid()),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

#[tokio::test]
async fn data_layers_are_said_to_be_there() {
    let harness = Harness::start().await;
    let (first, second) = (Node::digest('1'), "sha256:chain".to_owned());
    for (key, parent, target) in [("a", "", &first), ("b", &first, &second)] {
        let labels = [BLOB, (SNAPSHOT_REF, target.as_str())];
        let refused = harness.prepare_with(key, parent, &labels).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);
        assert_eq!(code(harness.stat(key).await), Code::NotFound);
        // This is how containerd then looks for it.
        let filter = format!("labels.\"{SNAPSHOT_REF}\"=={target},parent==\"{parent}\"");
        let found = harness.list(&[&filter]).await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].kind, found[0].parent.as_str()), (Kind::Committed.into(), parent));
        // Another image or namespace with the same layers shares them.
        assert_eq!(code(harness.prepare_with("other", parent, &labels).await), Code::AlreadyExists);
        assert_eq!(harness.list(&[&filter]).await.unwrap().len(), 1);
    }
    // The same layer on another parent is another snapshot.
    let labels = [BLOB, (SNAPSHOT_REF, second.as_str())];
    assert_eq!(code(harness.prepare_with("c", &second, &labels).await), Code::AlreadyExists);
    let filter = format!("labels.\"{SNAPSHOT_REF}\"=={second},parent==\"{second}\"");
    assert_eq!(harness.list(&[&filter]).await.unwrap().len(), 1);
    assert_eq!(code(harness.prepare_with("d", "nowhere", &labels).await), Code::NotFound);
    assert!(harness.directories().is_empty(), "they need no directories");
}

#[tokio::test]
async fn a_bootstrap_layer_without_its_bootstrap_is_not_committed() {
    let harness = Harness::start().await;
    let labels = [BOOTSTRAP, (SNAPSHOT_REF, "sha256:chain")];
    harness.prepare_with("boot-a", "", &labels).await.unwrap();
    let refused = harness.commit_with("boot", "boot-a", &labels).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("image/image.boot"), "{refused}");
}

/// To open them would wait for a writer that never comes, or act on a device, or read another file of the node.
#[tokio::test]
async fn a_bootstrap_that_is_no_regular_file_is_refused_and_not_opened() {
    let harness = Harness::start().await;
    let labels = [BOOTSTRAP, (SNAPSHOT_REF, "sha256:chain")];
    for (number, put) in [
        (|image: &Path| nix::unistd::mkfifo(image, nix::sys::stat::Mode::S_IRWXU).unwrap()) as fn(&Path),
        |image| std::os::unix::fs::symlink("/dev/zero", image).unwrap(),
        |image| fs::create_dir(image).unwrap(),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("boot-{number}");
        let mounts = harness.prepare_with(&key, "", &labels).await.unwrap();
        let image = PathBuf::from(&mounts[0].source).join("image");
        fs::create_dir(&image).unwrap();
        put(&image.join("image.boot"));
        let refused = harness.commit_with("boot", &key, &labels).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("regular file"), "{refused}");
    }
}

#[tokio::test]
async fn data_layers_alone_are_no_file_system() {
    let harness = Harness::start().await;
    let digest = Node::digest('1');
    let labels = [BLOB, (SNAPSHOT_REF, digest.as_str())];
    assert_eq!(code(harness.prepare_with("a", "", &labels).await), Code::AlreadyExists);
    assert_eq!(code(harness.prepare("container", &digest).await), Code::FailedPrecondition);
    assert_eq!(code(harness.view("view", &digest).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn containers_of_an_image_share_one_mount() {
    needs_root!();
    let node = Node::start().await;
    let content = node.content("shared");
    fs::set_permissions(&content.directory, Permissions::from_mode(0o1751)).unwrap();
    chown(&content.directory, Some(5), Some(6)).unwrap();
    let upper = node.pull("r/shared:1", 'a', &content).await;
    let first = node.harness.prepare("c1", &upper).await.unwrap();
    let second = node.harness.prepare("c2", &upper).await.unwrap();
    assert_eq!(first[0].r#type, "overlay");
    let lower = |mounts: &[containerd_client::types::Mount]| -> String {
        mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap().to_owned()
    };
    assert_eq!(lower(&first), lower(&second));
    assert_eq!(node.mount_requests(), 1);
    let (one, two) = (node.harness.mount(&first, "c1"), node.harness.mount(&second, "c2"));
    fs::write(one.path().join("hello"), "changed").unwrap();
    assert_eq!(fs::read(one.path().join("hello")).unwrap(), b"changed");
    assert_eq!(fs::read(two.path().join("hello")).unwrap(), b"shared");
    let root = fs::metadata(two.path()).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o1751, 5, 6), "the root is the image's");
}

#[tokio::test]
async fn a_view_is_the_image_read_only() {
    needs_root!();
    let node = Node::start().await;
    let upper = node.pull("r/view:1", 'a', &node.content("view")).await;
    let mounts = node.harness.view("v", &upper).await.unwrap();
    assert_eq!(mounts[0].r#type, "bind");
    let mounted = node.harness.mount(&mounts, "v");
    assert_eq!(fs::read(mounted.path().join("hello")).unwrap(), b"view");
    assert!(fs::write(mounted.path().join("hello"), "x").is_err());
}

#[tokio::test]
async fn plain_layers_lie_on_a_nydus_image() {
    needs_root!();
    let node = Node::start().await;
    let upper = node.pull("r/base:1", 'a', &node.content("base")).await;
    let labels = [(SNAPSHOT_REF, "sha256:plain")];
    let mounts = node.harness.prepare_with("plain-a", &upper, &labels).await.unwrap();
    {
        let mounted = node.harness.mount(&mounts, "plain-a");
        assert_eq!(fs::read(mounted.path().join("hello")).unwrap(), b"base");
        fs::write(mounted.path().join("added"), "plain").unwrap();
    }
    node.harness.commit_with("plain", "plain-a", &labels).await.unwrap();
    let mounts = node.harness.prepare("container", "plain").await.unwrap();
    let mounted = node.harness.mount(&mounts, "container");
    assert_eq!(fs::read(mounted.path().join("hello")).unwrap(), b"base");
    assert_eq!(fs::read(mounted.path().join("added")).unwrap(), b"plain");
}

#[tokio::test]
async fn a_bad_or_slow_image_fails_alone_and_in_time() {
    needs_root!();
    let node = Node::start_with_timeout(8).await;
    node.daemon_pid().await;
    let bad = Bootstrap { broken: true, ..node.content("bad") };
    let slow = Bootstrap { delay_ms: 30_000, ..node.content("slow") };
    let bad = node.pull("r/bad:1", 'a', &bad).await;
    let slow = node.pull("r/slow:1", 'b', &slow).await;
    let good = node.pull("r/good:1", 'c', &node.content("good")).await;
    let ended = Mutex::new(Vec::new());
    let prepare = async |key: &'static str, parent: &str| {
        let prepared = node.harness.prepare(key, parent).await;
        ended.lock().unwrap().push(key);
        prepared
    };
    let (late, refused, served) =
        tokio::join!(prepare("of-slow", &slow), prepare("of-bad", &bad), prepare("of-good", &good));
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("r/bad:1") && refused.message().contains("no bootstrap"), "{refused}");
    served.unwrap();
    assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(ended.lock().unwrap().last(), Some(&"of-slow"), "the others waited for the slow image");
    // What failed left nothing, and may be tried again under the same key.
    assert_eq!(code(node.harness.stat("of-bad").await), Code::NotFound);
    assert_eq!(code(node.harness.stat("of-slow").await), Code::NotFound);
}

#[tokio::test]
async fn callers_that_come_together_wait_for_one_mount() {
    needs_root!();
    let node = Node::start().await;
    node.daemon_pid().await;
    let upper = node.pull("r/i:1", 'a', &Bootstrap { delay_ms: 500, ..node.content("i") }).await;
    let calls: Vec<_> = (0..8)
        .map(|number| {
            let (mut client, parent) = (node.harness.client(), upper.clone());
            tokio::spawn(async move {
                let request = containerd_client::services::v1::snapshots::PrepareSnapshotRequest {
                    key: format!("c{number}"),
                    parent,
                    ..Default::default()
                };
                client.prepare(request).await
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(node.mount_requests(), 1);
}

#[tokio::test]
async fn an_image_without_a_reference_says_so() {
    let harness = Harness::start_with(|dir, config| {
        config.daemon.spawn = false;
        config.containerd = dir.join("containerd.sock").try_into().unwrap();
    })
    .await;
    let labels = [BOOTSTRAP, (SNAPSHOT_REF, "sha256:chain")];
    let mounts = harness.prepare_with("boot-a", "", &labels).await.unwrap();
    let image = PathBuf::from(&mounts[0].source).join("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("image.boot"), "{}").unwrap();
    harness.commit_with("boot", "boot-a", &labels).await.unwrap();
    let refused = harness.prepare("container", "boot").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("cri.image-ref"), "{refused}");
    assert!(refused.message().contains("containerd.sock"), "{refused}");
}

#[tokio::test]
async fn a_data_layer_takes_what_is_cached_of_it() {
    needs_root!();
    let node = Node::start().await;
    node.daemon_pid().await;
    node.pull("r/i:1", 'a', &node.content("i")).await;
    let usage = node.harness.usage(&Node::digest('a')).await.unwrap();
    assert_eq!(usage.size, i64::try_from(CACHED_BYTES).unwrap());
}

#[tokio::test]
async fn removing_an_image_unmounts_it_and_frees_what_no_other_uses() {
    needs_root!();
    let node = Node::start().await;
    let blobs = |digits: &str| digits.chars().map(Node::digest).collect();
    let one = Bootstrap { blobs: blobs("abc"), ..node.content("one") };
    let two = Bootstrap { blobs: blobs("b"), ..node.content("two") };
    let one = node.pull("r/one:1", 'a', &one).await;
    let two = node.pull("r/two:1", 'b', &two).await;
    // Pulled, never run, but its blob is wanted.
    node.pull("r/three:1", 'c', &node.content("three")).await;
    node.harness.prepare("c1", &one).await.unwrap();
    node.harness.prepare("c2", &two).await.unwrap();
    assert_eq!(node.harness.mountpoints().len(), 2);
    node.harness.remove("c1").await.unwrap();
    node.harness.cleanup().await.unwrap();
    assert_eq!(node.harness.mountpoints().len(), 2, "the image is still there");
    node.harness.remove(&one).await.unwrap();
    node.harness.remove(&Node::digest('a')).await.unwrap();
    assert_eq!(node.harness.mountpoints().len(), 2, "removal only marks");
    node.harness.cleanup().await.unwrap();
    assert_eq!(node.harness.mountpoints().len(), 1);
    assert_eq!(kept(&node), ["b", "c"].map(|digit| Node::digest(digit.parse().unwrap())));
    let mounts = node.harness.mounts("c2").await.unwrap();
    let mounted = node.harness.mount(&mounts, "c2");
    assert_eq!(fs::read(mounted.path().join("hello")).unwrap(), b"two");
    // Nothing is left to do a second time.
    let unmounts = |node: &Node| {
        node.requests().iter().filter(|request| matches!(request, Request::Umount { .. })).count()
    };
    let before = unmounts(&node);
    node.harness.cleanup().await.unwrap();
    assert_eq!(unmounts(&node), before);
}

/// The blobs that the daemon was last told to keep.
fn kept(node: &Node) -> Vec<String> {
    let kept = node.requests().into_iter().rev().find_map(|request| match request {
        Request::Keep { blobs } => Some(blobs.iter().map(ToString::to_string).collect()),
        _ => None,
    });
    kept.expect("the daemon was told what to keep")
}

#[tokio::test]
async fn a_blob_is_kept_until_the_last_image_that_needs_it_is_gone() {
    needs_root!();
    let node = Node::start().await;
    let shared = Node::digest('a');
    let ran = Bootstrap { blobs: vec![shared.clone()], ..node.content("ran") };
    let ran = node.pull("r/ran:1", 'a', &ran).await;
    let never = node.pull("r/never:1", 'a', &node.content("never")).await;
    node.harness.prepare("c", &ran).await.unwrap();
    node.harness.remove("c").await.unwrap();
    node.harness.remove(&ran).await.unwrap();
    node.harness.cleanup().await.unwrap();
    assert_eq!(kept(&node), std::slice::from_ref(&shared), "the other image may be run");
    node.harness.remove(&never).await.unwrap();
    node.harness.remove(&shared).await.unwrap();
    node.harness.cleanup().await.unwrap();
    assert_eq!(kept(&node), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_lost_state_named_is_not_kept() {
    needs_root!();
    let mut node = Node::start().await;
    let content = Bootstrap { blobs: vec![Node::digest('a')], ..node.content("i") };
    let image = node.pull("r/i:1", 'a', &content).await;
    node.harness.prepare("c", &image).await.unwrap();
    node.harness.cleanup().await.unwrap();
    assert_eq!(kept(&node), [Node::digest('a')]);
    node.harness.stop().await;
    fs::remove_file(node.harness.config.root.join("snapshots.redb")).unwrap();
    let told = node.requests().len();
    node.harness.restart_after_stop().await;
    crate::harness::eventually("the daemon is told", async || {
        let since = node.requests().split_off(told);
        since.iter().any(|request| *request == Request::Keep { blobs: Vec::new() }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_image_that_somebody_unmounted_is_mounted_again() {
    needs_root!();
    let mut node = Node::start().await;
    let image = node.pull("r/i:1", 'a', &node.content("i")).await;
    let first = node.harness.prepare("c1", &image).await.unwrap();
    let running = node.harness.mount(&first, "c1");
    let mountpoint = node.mountpoint();
    for (number, restart) in [(2, false), (3, true)] {
        nix::mount::umount2(&mountpoint, nix::mount::MntFlags::MNT_DETACH).unwrap();
        if restart {
            node.harness.restart().await;
        }
        let key = format!("c{number}");
        let mounts = node.harness.prepare(&key, &image).await.unwrap();
        let mounted = node.harness.mount(&mounts, &key);
        assert_eq!(fs::read(mounted.path().join("hello")).unwrap(), b"i");
        assert_eq!(fs::read(running.path().join("hello")).unwrap(), b"i");
        assert_eq!(node.mount_requests(), number);
    }
}

#[tokio::test]
async fn an_image_is_mounted_again_without_a_word_to_the_disk() {
    needs_root!();
    let node = Node::start().await;
    let image = node.pull("r/i:1", 'a', &node.content("i")).await;
    node.harness.prepare("c1", &image).await.unwrap();
    let database = || fs::read(node.harness.config.root.join("snapshots.redb")).unwrap();
    let before = database();
    nix::mount::umount2(&node.mountpoint(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    node.harness.mounts("c1").await.unwrap();
    assert_eq!(node.mount_requests(), 2);
    assert!(before == database(), "the database was written to");
}

#[tokio::test]
async fn images_are_unmounted_four_at_a_time() {
    needs_root!();
    let node = Node::start().await;
    let mut keys = Vec::new();
    for number in 0..8 {
        let name = format!("r/{number}:1");
        let busy = Bootstrap { umounts_with: 4, ..node.content(&number.to_string()) };
        let image = node.pull(&name, 'a', &busy).await;
        let key = format!("c{number}");
        node.harness.prepare(&key, &image).await.unwrap();
        keys.extend([key, image]);
    }
    for key in &keys {
        node.harness.remove(key).await.unwrap();
    }
    node.harness.cleanup().await.unwrap();
    assert!(node.harness.mountpoints().is_empty());
    assert_eq!(fake_daemon::most_unmounting(node.harness.dir.path()), 4);
}

#[tokio::test]
async fn containerd_is_asked_for_names_again_if_it_was_away() {
    needs_root!();
    let mut socket = PathBuf::new();
    let harness = Harness::start_with(|dir, config| {
        socket = dir.join("containerd.sock");
        config.daemon = fake_daemon::config(dir);
        config.containerd = socket.clone().try_into().unwrap();
    })
    .await;
    let node = Node { harness };
    let image = node.pull("r/i:1", 'a', &node.content("i")).await;
    node.harness.prepare("c", &image).await.unwrap();
    let containerd = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    containerd.set_nonblocking(true).unwrap();
    let mut number = 0;
    crate::harness::eventually("containerd is asked", async || {
        number += 1;
        node.harness.prepare(&format!("c{number}"), &image).await.unwrap();
        containerd.accept().ok()
    })
    .await;
}
