//! The service killed in the middle of its work, again and again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest,
};
use snapshotter::{DaemonConfig, SnapshotterConfig};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::harness::eventually;

/// Names the service's directory to the process started as one.
const DIRECTORY: &str = "SNAPSHOTTER_TEST_SERVICE";
const ROUNDS: usize = 5;
const CLIENTS: usize = 4;
/// Answers after which a round's service is killed; prime, so that it hits different steps of the clients.
const ANSWERS: usize = 37;

fn config(dir: &Path) -> SnapshotterConfig {
    SnapshotterConfig {
        root: dir.join("root"),
        listen: dir.join("snapshotter.sock").try_into().unwrap(),
        daemon: DaemonConfig {
            spawn: false,
            socket: dir.join("daemon.sock").try_into().unwrap(),
            ..DaemonConfig::default()
        },
        ..SnapshotterConfig::default()
    }
}

/// The service itself. As a test among others it has nothing to do.
#[tokio::test]
async fn process() {
    let Some(dir) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    snapshotter::serve(config(&dir), CancellationToken::new()).await.unwrap();
}

struct Service(Child);

impl Service {
    async fn start(dir: &Path) -> (Self, SnapshotsClient<Channel>) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::process"])
            .env(DIRECTORY, dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let service = Self(child);
        let socket = config(dir).listen;
        let channel =
            eventually("the service answers", async || containerd_client::connect(&socket).await.ok()).await;
        (service, SnapshotsClient::new(channel))
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the clients were told.
#[derive(Default)]
struct Told {
    committed: BTreeSet<String>,
    removed: BTreeSet<String>,
    answers: usize,
}

/// Makes, commits and removes snapshots until the service is gone.
async fn work(mut client: SnapshotsClient<Channel>, name: String, told: Arc<Mutex<Told>>) {
    for number in 0.. {
        let (key, kept) = (format!("{name}/{number}-a"), format!("{name}/{number}"));
        let prepare = PrepareSnapshotRequest { key: key.clone(), ..Default::default() };
        let Ok(_) = client.prepare(prepare).await else { return };
        told.lock().unwrap().answers += 1;
        let commit = CommitSnapshotRequest { name: kept.clone(), key, ..Default::default() };
        let Ok(_) = client.commit(commit).await else { return };
        {
            let mut told = told.lock().unwrap();
            told.answers += 1;
            told.committed.insert(kept.clone());
        }
        if number % 2 == 0 {
            // Whether it was removed is not known unless there is an answer.
            told.lock().unwrap().committed.remove(&kept);
            let Ok(_) =
                client.remove(RemoveSnapshotRequest { key: kept.clone(), ..Default::default() }).await
            else {
                return;
            };
            let mut told = told.lock().unwrap();
            told.answers += 1;
            told.removed.insert(kept);
        }
    }
}

async fn list(client: &mut SnapshotsClient<Channel>) -> Vec<Info> {
    let mut stream = client.list(ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(block) = stream.message().await.unwrap() {
        all.extend(block.info);
    }
    all
}

#[tokio::test]
async fn what_was_answered_is_kept_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Told::default()));
    for round in 0..ROUNDS {
        let (mut service, client) = Service::start(dir.path()).await;
        let before = told.lock().unwrap().answers;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| tokio::spawn(work(client.clone(), format!("{round}/{number}"), Arc::clone(&told))))
            .collect();
        eventually("the clients are at work", async || {
            (told.lock().unwrap().answers >= before + ANSWERS).then_some(())
        })
        .await;
        service.kill();
        for client in clients {
            client.await.unwrap();
        }
    }
    let (_service, mut client) = Service::start(dir.path()).await;
    let all = list(&mut client).await;
    let names: BTreeSet<_> = all.iter().map(|info| info.name.clone()).collect();
    {
        let told = told.lock().unwrap();
        let lost: Vec<_> = told.committed.difference(&names).collect();
        assert!(lost.is_empty(), "committed, and not there: {lost:?}");
        let back: Vec<_> = told.removed.intersection(&names).collect();
        assert!(back.is_empty(), "removed, and there: {back:?}");
    }
    // Every record has its directory: active snapshots can be used.
    for info in all.iter().filter(|info| info.kind == i32::from(Kind::Active)) {
        let name = format!("of/{}", info.name);
        let commit = CommitSnapshotRequest { name, key: info.name.clone(), ..Default::default() };
        client.commit(commit).await.unwrap();
    }
    client.cleanup(CleanupRequest::default()).await.unwrap();
    let directories = std::fs::read_dir(config(dir.path()).root.join("snapshots")).unwrap().count();
    assert_eq!(directories, names.len(), "one directory a snapshot, and none beside");
}
