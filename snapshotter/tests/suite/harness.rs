//! A service on a temporary root, a client of it, and mounts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, UsageResponse,
    ViewSnapshotRequest,
};
use containerd_client::types::Mount;
use nix::errno::Errno;
use prost_types::FieldMask;
use snapshotter::{DaemonConfig, SnapshotterConfig};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long anything may take that should come at once.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Ends the test unless it can mount.
#[macro_export]
macro_rules! needs_root {
    () => {
        test_support::needs!(test_support::Need::Root);
    };
}

/// A service and all its files. The service ends with it.
pub(crate) struct Harness {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: SnapshotterConfig,
    running: Option<Running>,
    channel: Channel,
}

/// The request to commit with the parent that containerd 2.3 has added to it.
#[derive(Clone, PartialEq, prost::Message)]
struct CommitOnParent {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "5")]
    parent: String,
}

struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), snapshotter::Error>>,
}

impl Harness {
    /// A service that has no daemon: plain images need none.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, config| config.daemon.spawn = false).await
    }

    pub(crate) async fn start_with(configure: impl FnOnce(&Path, &mut SnapshotterConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = SnapshotterConfig {
            root: dir.path().join("root"),
            listen: dir.path().join("snapshotter.sock").try_into().unwrap(),
            daemon: DaemonConfig {
                socket: dir.path().join("daemon.sock").try_into().unwrap(),
                ..DaemonConfig::default()
            },
            ..SnapshotterConfig::default()
        };
        configure(dir.path(), &mut config);
        let (running, channel) = serve(&config).await;
        Self { dir, config, running: Some(running), channel }
    }

    /// Ends the service as a signal would.
    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.shutdown.cancel();
        running.task.await.unwrap().unwrap();
    }

    /// Ends the service and starts another on the same root.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.restart_after_stop().await;
    }

    /// Starts another service on the same root.
    pub(crate) async fn restart_after_stop(&mut self) {
        let (running, channel) = serve(&self.config).await;
        (self.running, self.channel) = (Some(running), channel);
    }

    pub(crate) fn client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    /// A new directory for the test's own use.
    pub(crate) fn work(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join("work").join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, &[]).await
    }

    pub(crate) async fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<Vec<Mount>, Status> {
        let request = PrepareSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: map(labels),
            ..Default::default()
        };
        Ok(self.client().prepare(request).await?.into_inner().mounts)
    }

    pub(crate) async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.view_with(key, parent, &[]).await
    }

    pub(crate) async fn view_with(
        &self,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<Vec<Mount>, Status> {
        let request = ViewSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: map(labels),
            ..Default::default()
        };
        Ok(self.client().view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest { key: key.to_owned(), ..Default::default() };
        Ok(self.client().mounts(request).await?.into_inner().mounts)
    }

    pub(crate) async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_with(name, key, &[]).await
    }

    pub(crate) async fn commit_with(
        &self,
        name: &str,
        key: &str,
        labels: &[(&str, &str)],
    ) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            labels: map(labels),
            ..Default::default()
        };
        self.client().commit(request).await.map(drop)
    }

    /// Commits as containerd 2.3 does a snapshot that it prepared without a parent.
    pub(crate) async fn commit_on(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: &[(&str, &str)],
    ) -> Result<(), Status> {
        let request = CommitOnParent {
            name: name.to_owned(),
            key: key.to_owned(),
            labels: map(labels),
            parent: parent.to_owned(),
        };
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        let path = "/containerd.services.snapshots.v1.Snapshots/Commit".parse().unwrap();
        let codec = tonic_prost::ProstCodec::<CommitOnParent, ()>::default();
        client.unary(tonic::Request::new(request), path, codec).await.map(drop)
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { key: key.to_owned(), ..Default::default() };
        self.client().remove(request).await.map(drop)
    }

    pub(crate) async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest { key: key.to_owned(), ..Default::default() };
        Ok(self.client().stat(request).await?.into_inner().info.unwrap())
    }

    pub(crate) async fn update(&self, info: Info, paths: &[&str]) -> Result<Info, Status> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let request = UpdateSnapshotRequest {
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
            ..Default::default()
        };
        Ok(self.client().update(request).await?.into_inner().info.unwrap())
    }

    pub(crate) async fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = ListSnapshotsRequest { filters, ..Default::default() };
        let mut stream = self.client().list(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(block) = stream.message().await? {
            assert!(block.info.len() <= 100, "blocks are as small as containerd's");
            all.extend(block.info);
        }
        Ok(all)
    }

    pub(crate) async fn usage(&self, key: &str) -> Result<UsageResponse, Status> {
        let request = UsageRequest { key: key.to_owned(), ..Default::default() };
        Ok(self.client().usage(request).await?.into_inner())
    }

    pub(crate) async fn cleanup(&self) -> Result<(), Status> {
        self.client().cleanup(CleanupRequest::default()).await.map(drop)
    }

    /// The numbers of the snapshots that have directories.
    pub(crate) fn directories(&self) -> Vec<String> {
        names(&self.config.root.join("snapshots"))
    }

    /// The numbers of the snapshots that have mount points.
    pub(crate) fn mountpoints(&self) -> Vec<String> {
        names(&self.config.root.join("mounts"))
    }

    /// Mounts what containerd would mount, until the guard is dropped.
    pub(crate) fn mount(&self, mounts: &[Mount], name: &str) -> Mounted {
        mount(&self.config.root, mounts, self.work(name))
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.shutdown.cancel();
        }
        // What a test that failed left mounted would keep the directory.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours =
            |line: &&str| line.split(' ').nth(1).is_some_and(|at| Path::new(at).starts_with(self.dir.path()));
        for line in mounts.lines().rev().filter(ours) {
            let at = line.split(' ').nth(1).unwrap_or_default();
            let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

async fn serve(config: &SnapshotterConfig) -> (Running, Channel) {
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(snapshotter::serve(config.clone(), shutdown.clone()));
    let channel = eventually("the service answers", async || {
        assert!(!task.is_finished(), "the service ended");
        containerd_client::connect(config.listen.path()).await.ok()
    })
    .await;
    (Running { shutdown, task }, channel)
}

/// Polls until there is a result.
pub(crate) async fn eventually<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(result) = poll().await {
            return result;
        }
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The gRPC code of a call that has to fail.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

pub(crate) fn map(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Something mounted, until dropped.
pub(crate) struct Mounted {
    path: PathBuf,
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let deadline = Instant::now() + SOON;
        let mut unmounted = nix::mount::umount(&self.path);
        // A process that another test is just starting has open what this one has, until its program begins.
        while unmounted == Err(Errno::EBUSY) && Instant::now() < deadline && !std::thread::panicking() {
            std::thread::sleep(Duration::from_millis(10));
            unmounted = nix::mount::umount(&self.path);
        }
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

/// Mounts as containerd does: names relative to the root, since all lower directories have to fit into one page.
fn mount(root: &Path, mounts: &[Mount], at: PathBuf) -> Mounted {
    let [mount] = mounts else { panic!("expected one mount, got {mounts:?}") };
    let root = root.canonicalize().unwrap();
    let options = mount.options.join(",").replace(&format!("{}/", root.display()), "");
    let mut command = Command::new("mount");
    command.current_dir(&root);
    if mount.r#type != "bind" {
        command.args(["-t", &mount.r#type]);
    }
    let output = command.args(["-o", &options, &mount.source]).arg(&at).output().unwrap();
    assert!(output.status.success(), "{mount:?}: {}", String::from_utf8_lossy(&output.stderr));
    Mounted { path: at }
}
