//! The daemon as its clients see it: control socket, registry, shutdown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{BackendSpec, BlobId, Client, ClientError, MountRequest};
use fuse_daemon::{DaemonConfig, DaemonError};
use rafs::build::BuildOptions;
use registry::Repository;
use registry::server::{Server, ServerConfig};
use test_support::{noise, tar_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::can_mount;
use crate::image::TestImage;

/// Not a test: the process of the daemon's worker.
#[test]
#[ignore = "runs as a process of its own"]
fn works_for_a_daemon() {
    fuse_daemon::process::serve(|| ()).unwrap();
}

/// A daemon with all that it has under `dir`.
pub(crate) fn config(dir: &Path) -> DaemonConfig {
    let mut config = DaemonConfig {
        socket: dir.join("run/daemon.sock").try_into().unwrap(),
        cache_dir: dir.join("cache"),
        // Which is this program.
        worker_arguments: ["--exact", "control::works_for_a_daemon", "--ignored", "--nocapture"]
            .map(ToOwned::to_owned)
            .into(),
        ..DaemonConfig::default()
    };
    // More than a busy machine needs. Who waits for the error says less.
    config.read.deadline_seconds = 20.0;
    config
}

pub(crate) async fn until_it_answers(client: &Client) {
    let answers = async {
        loop {
            match client.status().await {
                // Its worker takes a while to start where many do at once, which is not to be a read's time.
                Ok(status) if status.worker.as_ref().is_some_and(|worker| worker.pid.is_some()) => return,
                Ok(_) => {}
                Err(error) => assert!(error.is_not_running(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::SOON, answers).await.expect("the daemon starts");
}

pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) client: Client,
    stop: CancellationToken,
    task: JoinHandle<Result<(), DaemonError>>,
}

impl Daemon {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(configure: impl FnOnce(&mut DaemonConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        configure(&mut config);
        let client = Client::new(config.socket.path());
        let stop = CancellationToken::new();
        let task = tokio::spawn(fuse_daemon::serve(config, stop.clone()));
        let daemon = Self { dir, client, stop, task };
        until_it_answers(&daemon.client).await;
        daemon
    }

    pub(crate) fn request(&self, id: &str, bootstrap: &Path, image: &str) -> MountRequest {
        MountRequest {
            id: id.to_owned(),
            bootstrap: bootstrap.to_owned(),
            mountpoint: self.dir.path().join("mnt").join(id),
            image: image.to_owned(),
            backends: BackendSpec::of_image(image).into_iter().collect(),
        }
    }

    /// What a line is answered with.
    pub(crate) async fn answer_to(&self, line: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(self.client.socket()).await.unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        assert!(self.client.status().await.unwrap_err().is_not_running());
    }
}

/// A registry that has the image's blobs, and how the image is called there.
pub(crate) struct Registry {
    _server: Server,
    _dir: tempfile::TempDir,
    stop: CancellationToken,
    pub(crate) image: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) async fn registry(image: &TestImage) -> Registry {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let mut config = ServerConfig::new(dir.path());
    config.listen.set_port(0);
    let server = registry::server::serve(config, stop.clone()).await.unwrap();
    let name = format!("{}/demo", server.address());
    let client = registry::client::Client::new(registry::client::ClientConfig::default()).unwrap();
    let repository = Repository::parse(&name).unwrap();
    for id in image.blob_ids() {
        let blob = std::fs::read(image.blobs().join(id.to_string())).unwrap();
        client.push_blob(&repository, blob.into()).await.unwrap();
    }
    Registry { _server: server, _dir: dir, stop, image: format!("{name}:v1") }
}

pub(crate) async fn read(path: PathBuf) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || std::fs::read(path)).await.unwrap()
}

pub(crate) fn kind(result: Result<(), ClientError>) -> Option<ErrorKind> {
    match result {
        Err(ClientError::Reported { kind, .. }) => Some(kind),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_mounted_read_from_its_registry_and_removed() {
    if !can_mount() {
        return;
    }
    let content = noise(20, 2_500_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let (daemon, registry) = (Daemon::start().await, registry(&image).await);
    let blob = BlobId(image.blob_ids()[0]);
    let request = daemon.request("demo", &image.bootstrap(), &registry.image);

    daemon.client.mount(&request).await.unwrap();
    daemon.client.mount(&request).await.expect("a repetition changes nothing");
    assert_eq!(read(request.mountpoint.join("file")).await.unwrap(), content);

    let status = daemon.client.status().await.unwrap();
    assert_eq!((status.pid, status.mounts.len()), (std::process::id(), 1));
    assert_eq!((status.mounts[0].id.as_str(), &status.mounts[0].blobs[..]), ("demo", &[blob][..]));
    let usage = daemon.client.usage(&[blob, BlobId(rafs::digest::Digest([0; 32]))]).await.unwrap();
    assert!(usage[0] >= 2_500_000 && usage[1] == 0, "{usage:?}");

    let kept = daemon.client.remove_blobs(&[blob]).await.unwrap();
    assert_eq!((kept.in_use, kept.removed), (vec![blob], vec![]));
    daemon.client.umount("demo").await.unwrap();
    daemon.client.umount("demo").await.expect("an unknown id is no error");
    assert!(!request.mountpoint.join("file").exists());
    assert_eq!(daemon.client.remove_blobs(&[blob]).await.unwrap().removed, [blob]);
    assert_eq!(daemon.client.usage(&[blob]).await.unwrap(), [0]);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_and_by_kind() {
    if !can_mount() {
        return;
    }
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let daemon = Daemon::start().await;
    let good = daemon.request("good", &image.bootstrap(), "127.0.0.1:1/demo:v1");
    daemon.client.mount(&good).await.unwrap();

    let other = MountRequest { mountpoint: daemon.dir.path().join("mnt/other"), ..good.clone() };
    assert_eq!(kind(daemon.client.mount(&other).await), Some(ErrorKind::Conflict));
    let more = [BackendSpec::Directory { path: image.blobs() }];
    assert_eq!(kind(daemon.client.add_backends("nobody", &more).await), Some(ErrorKind::Unknown));
    let missing = daemon.request("missing", Path::new("/nonexistent/image.boot"), "127.0.0.1:1/demo:v1");
    assert_eq!(kind(daemon.client.mount(&missing).await), Some(ErrorKind::Bootstrap));
    let no_bootstrap = daemon.request("none", &image.blob_file(), "127.0.0.1:1/demo:v1");
    assert_eq!(kind(daemon.client.mount(&no_bootstrap).await), Some(ErrorKind::Bootstrap));
    for id in ["", "a/b", "a b", &"x".repeat(129)] {
        let request = MountRequest { id: id.to_owned(), ..good.clone() };
        assert_eq!(kind(daemon.client.mount(&request).await), Some(ErrorKind::Invalid), "{id:?}");
    }
    let relative = MountRequest { id: "r".to_owned(), mountpoint: "relative".into(), ..good.clone() };
    assert_eq!(kind(daemon.client.mount(&relative).await), Some(ErrorKind::Invalid));
    let no_repository = BackendSpec::Registry { repository: "NOT A REPOSITORY".to_owned() };
    let relative = BackendSpec::Directory { path: "relative".into() };
    for backends in [vec![], vec![no_repository], vec![relative]] {
        let request = MountRequest { id: "b".to_owned(), backends, ..good.clone() };
        assert_eq!(kind(daemon.client.mount(&request).await), Some(ErrorKind::Invalid), "{request:?}");
    }

    let status = daemon.client.status().await.unwrap();
    assert_eq!(status.mounts.len(), 1, "what failed leaves nothing: {status:?}");
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_registry_is_an_error_within_the_deadline_until_it_is_back() {
    if !can_mount() {
        return;
    }
    let content = noise(21, 100_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let daemon = Daemon::start_with(|config| config.read.deadline_seconds = 3.0).await;
    let registry = registry(&image).await;
    // Accepts connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_image = format!("{}/demo:v1", silent.local_addr().unwrap());
    let request = daemon.request("silent", &image.bootstrap(), &silent_image);
    daemon.client.mount(&request).await.unwrap();
    // Nothing else ends it: the registry is there, and silent, to the end of this test.
    let failed = tokio::time::timeout(crate::SOON, read(request.mountpoint.join("file")));
    let error = failed.await.expect("an error after 3 seconds").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5));
    // Another image that has the same blob, from a registry that lives.
    let request = daemon.request("living", &image.bootstrap(), &registry.image);
    daemon.client.mount(&request).await.unwrap();
    let back = async {
        while read(request.mountpoint.join("file")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::SOON, back).await.expect("the file is read once a registry has it");
    assert_eq!(read(request.mountpoint.join("file")).await.unwrap(), content);
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_the_daemon_only_when_nothing_is_in_use() {
    if !can_mount() {
        return;
    }
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let daemon = Daemon::start().await;
    let used = daemon.request("used", &image.bootstrap(), "127.0.0.1:1/demo:v1");
    let unused = daemon.request("unused", &image.bootstrap(), "127.0.0.1:1/demo:v1");
    daemon.client.mount(&used).await.unwrap();
    daemon.client.mount(&unused).await.unwrap();
    let open = std::fs::File::open(used.mountpoint.join("file")).unwrap();
    assert_eq!(daemon.client.shutdown().await.unwrap(), ["used"]);
    assert_eq!(daemon.client.status().await.unwrap().mounts.len(), 1);
    drop(open);
    // A child that another test starts has the descriptor too, until it runs its own program.
    let unused = async {
        while !daemon.client.shutdown().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::SOON, unused).await.expect("nothing is in use");
    daemon.task.await.unwrap().unwrap();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(daemon.dir.path().to_str().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_daemon_leaves_no_mount_not_even_a_busy_one() {
    if !can_mount() {
        return;
    }
    let image = TestImage::build(&tar_of(&[("file", b"content")]), &BuildOptions::default());
    let daemon = Daemon::start().await;
    let request = daemon.request("busy", &image.bootstrap(), "127.0.0.1:1/demo:v1");
    daemon.client.mount(&request).await.unwrap();
    let _open = std::fs::File::open(request.mountpoint.join("file")).unwrap();
    let dir = daemon.dir.path().to_str().unwrap().to_owned();
    daemon.end().await;
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(&dir));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_added_to_a_mounted_image_is_read_from() {
    if !can_mount() {
        return;
    }
    let (one, two) = (noise(30, 100_000), noise(31, 100_000));
    let image = TestImage::build(&tar_of(&[("one", &one), ("two", &two)]), &BuildOptions::default());
    let empty = tempfile::tempdir().unwrap();
    let daemon = Daemon::start().await;
    let nowhere = BackendSpec::Directory { path: empty.path().to_owned() };
    let mut request = daemon.request("demo", &image.bootstrap(), "127.0.0.1:1/demo:v1");
    request.backends = vec![nowhere.clone()];
    daemon.client.mount(&request).await.unwrap();
    assert!(read(request.mountpoint.join("one")).await.is_err());

    let blobs = BackendSpec::Directory { path: image.blobs() };
    daemon.client.add_backends("demo", std::slice::from_ref(&blobs)).await.unwrap();
    // By a repetition of the mount as well, which adds nothing here.
    request.backends = vec![blobs.clone()];
    daemon.client.mount(&request).await.unwrap();
    assert_eq!(daemon.client.status().await.unwrap().mounts[0].backends, [nowhere, blobs]);
    assert_eq!(read(request.mountpoint.join("two")).await.unwrap(), two);
    let back = async {
        while read(request.mountpoint.join("one")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::SOON, back).await.expect("what failed is read once somebody has it");
    daemon.end().await;
}

/// How an HTTP directory answers.
#[derive(Clone, Copy)]
pub(crate) struct HttpStyle {
    /// What the digits of a blob come after.
    path: &'static str,
    /// What it answers a request for a range with.
    status: &'static str,
    /// Whether it calls the part's size the whole's.
    part_for_whole: bool,
}

pub(crate) const FILE_SERVER: HttpStyle =
    HttpStyle { path: "/blobs/", status: "206 Partial Content", part_for_whole: false };
/// Upstream's nydus-backend-proxy.
const BACKEND_PROXY: HttpStyle =
    HttpStyle { path: "/demo/app/blobs/sha256:", status: "200 OK", part_for_whole: true };

/// Serves files of a directory over HTTP, whole (HEAD) or by range (GET), until the task is dropped.
pub(crate) async fn http_directory(dir: PathBuf, style: HttpStyle) -> (String, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}{}", listener.local_addr().unwrap(), style.path);
    let serve = async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let dir = dir.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
                let name = head.split_whitespace().nth(1).unwrap().strip_prefix(style.path).unwrap();
                let Ok(bytes) = std::fs::read(dir.join(name)) else {
                    let missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    return stream.write_all(missing).await;
                };
                let total = bytes.len();
                let range = head.split_once("range: bytes=").map(|(_, range)| range.lines().next().unwrap());
                let (status, from, to) = match range.and_then(|range| range.split_once('-')) {
                    Some((from, to)) => {
                        (style.status, from.parse().unwrap(), to.parse::<usize>().unwrap() + 1)
                    }
                    None => ("200 OK", 0, total),
                };
                let total = if style.part_for_whole { to - from } else { total };
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{total}\r\nconnection: close\r\n\r\n",
                    to - from,
                    to - 1
                );
                stream.write_all(answer.as_bytes()).await?;
                if head.starts_with("get") { stream.write_all(&bytes[from..to]).await } else { Ok(()) }
            });
        }
    };
    (url, tokio::spawn(serve))
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_read_from_a_directory_on_an_http_server() {
    if !can_mount() {
        return;
    }
    let files = crate::image::small_files();
    // With batches, so that the blob's size is asked for as well.
    let options = BuildOptions { batch_size: Some(65_536), ..BuildOptions::default() };
    let image = TestImage::build(&tar_of(&files), &options);
    for style in [FILE_SERVER, BACKEND_PROXY] {
        let (url, server) = http_directory(image.blobs(), style).await;
        let daemon = Daemon::start().await;
        let mut request = daemon.request("demo", &image.bootstrap(), "127.0.0.1:1/demo:v1");
        request.backends = vec![BackendSpec::HttpDirectory { url: "ftp://127.0.0.1/".to_owned() }];
        assert_eq!(kind(daemon.client.mount(&request).await), Some(ErrorKind::Invalid));
        request.backends = vec![BackendSpec::HttpDirectory { url }];
        daemon.client.mount(&request).await.unwrap();
        for (name, content) in &files {
            assert_eq!(read(request.mountpoint.join(name)).await.unwrap(), *content, "{name}");
        }
        daemon.end().await;
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_keeps_is_freed_and_what_is_mounted_with_its_last_mount() {
    if !can_mount() {
        return;
    }
    let content: Vec<_> = (40..43).map(|seed| noise(seed, 50_000)).collect();
    let images: Vec<_> = (content.iter())
        .map(|content| TestImage::build(&tar_of(&[("file", content)]), &BuildOptions::default()))
        .collect();
    let [kept, mounted, unwanted] = [0, 1, 2].map(|index: usize| BlobId(images[index].blob_ids()[0]));
    let daemon = Daemon::start().await;
    for (id, image) in ["kept", "mounted", "unwanted"].into_iter().zip(&images) {
        let mut request = daemon.request(id, &image.bootstrap(), "127.0.0.1:1/demo:v1");
        request.backends = vec![BackendSpec::Directory { path: image.blobs() }];
        daemon.client.mount(&request).await.unwrap();
        read(request.mountpoint.join("file")).await.unwrap();
    }
    // Each mount of its own, and one that shares a blob with another.
    let mut second = daemon.request("second", &images[1].bootstrap(), "127.0.0.1:1/demo:v1");
    second.backends = vec![BackendSpec::Directory { path: images[1].blobs() }];
    daemon.client.mount(&second).await.unwrap();
    for id in ["kept", "unwanted"] {
        daemon.client.umount(id).await.unwrap();
    }

    let outcome = daemon.client.keep(&[kept]).await.unwrap();
    assert_eq!((&outcome.freed[..], &outcome.in_use[..]), (&[unwanted][..], &[mounted][..]));
    assert!(outcome.freed_bytes >= 50_000, "{outcome:?}");
    daemon.client.umount("mounted").await.unwrap();
    let usage = daemon.client.usage(&[kept, mounted, unwanted]).await.unwrap();
    assert!(usage[0] > 0 && usage[1] > 0 && usage[2] == 0, "{usage:?}");
    daemon.client.umount("second").await.unwrap();
    assert_eq!(daemon.client.usage(&[mounted]).await.unwrap(), [0]);
    assert!(daemon.client.usage(&[kept]).await.unwrap()[0] > 0);
    daemon.end().await;
}

#[tokio::test]
async fn messages_of_another_version_or_none_are_refused_by_name() {
    let daemon = Daemon::start().await;
    for (line, kind, reason) in [
        (r#"{"version": 99, "oldest": 98, "request": "status"}"#, "version", "version 98 to 99; this daemon"),
        (r#"{"version": 1, "request": "status"}"#, "version", "version 1 to 1; this daemon speaks 2 to 2"),
        (r#"{"version": 2, "request": "dance"}"#, "invalid", "dance"),
        (r#"{"version": 2, "request": {"umount": {}}}"#, "invalid", "id"),
        ("hello", "invalid", "no call"),
    ] {
        let answer = daemon.answer_to(line).await;
        assert!(
            answer.contains(&format!(r#""kind":"{kind}""#)) && answer.contains(reason),
            "{line}: {answer}"
        );
    }
    // A client that speaks newer versions as well is answered in the newest that both do.
    let answer = daemon.answer_to(r#"{"version": 99, "oldest": 2, "request": "status"}"#).await;
    assert!(answer.contains(r#""version":2"#) && answer.contains("mounts"), "{answer}");
    daemon.end().await;
}

#[tokio::test]
async fn a_second_daemon_does_not_take_the_socket_of_a_living_one() {
    let daemon = Daemon::start().await;
    let config = DaemonConfig {
        socket: daemon.client.socket().to_owned().try_into().unwrap(),
        cache_dir: daemon.dir.path().join("other-cache"),
        ..DaemonConfig::default()
    };
    let refused = fuse_daemon::serve(config, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(refused, DaemonError::Socket { .. }), "{refused}");
    daemon.client.status().await.unwrap();
    daemon.end().await;
}
