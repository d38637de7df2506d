//! What a daemon says of itself as a sign of life, with a worker that says nothing and a cache that cannot be looked at.

use nix::mount::{MntFlags, umount2};
use rafs::build::{BuildOptions, build_layer};
use service::control::Server;
use service::{Access, Mode};
use test_support::{Need, needs, noise, tar_of};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::control::{Client as DaemonClient, MountRequest, server};
use crate::mounts::{Engine, EngineConfig, Table};
use crate::prefetch::PrefetchConfig;

/// How often the worker was asked how backends answer.
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Lives, knows who has which blob, and does not say how backends answer.
fn secretive(mut peer: Peer) {
    peer.ready();
    while let Ok(Some(message)) = peer.receiver.next() {
        let answer = match serde_json::from_slice(&message).unwrap() {
            ToWorker::Ping { number } => FromWorker::Pong { number },
            ToWorker::Has { number, .. } => FromWorker::Has { number, outcome: Ok(()) },
            ToWorker::Sources { .. } => {
                ASKED.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            _ => continue,
        };
        peer.sender.send(&answer, None);
    }
}

pub(super) fn engine_config() -> EngineConfig {
    EngineConfig {
        fuse_threads: 1,
        read_ahead_kib: None,
        journal: None,
        exact_xattrs: true,
        prefetch: PrefetchConfig { table: false, programs: false, complete_after: None },
        front: FrontConfig {
            deadline: SOON,
            request_bytes: 1,
            ahead_bytes: 0,
            threads: 1,
            failure_memory: Duration::ZERO,
        },
    }
}

/// An image's bootstrap in `dir`, which has its blob as well.
pub(super) fn image(dir: &std::path::Path) -> std::path::PathBuf {
    let mut blob = Vec::new();
    let options = BuildOptions { chunk_size: 4096, ..BuildOptions::default() };
    let layer = build_layer(&tar_of(&[("file", &noise(71, 200_000))])[..], &mut blob, &options).unwrap();
    std::fs::write(dir.join(layer.blobs[0].id.unwrap().to_string()), blob).unwrap();
    let path = dir.join("image.boot");
    let mut file = std::fs::File::create(&path).unwrap();
    let merged = rafs::merge::merge(vec![layer]).unwrap();
    rafs::bootstrap::write(&merged, &rafs::bootstrap::WriteOptions::default(), &mut file).unwrap();
    path
}

/// Takes a mount away, also where the test fails that made it: nobody serves it any more then.
pub(super) struct UnmountOnDrop(pub(super) std::path::PathBuf);

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_FORCE);
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_sign_of_life_waits_neither_for_the_cache_nor_for_the_worker() {
    needs!(Need::Fuse);
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (launch, _) = workers(vec![secretive], false);
    let accesses = accesses();
    let worker = remote_worker(launch, SOON, &accesses, runtime.handle());
    let cache = Cache::open(dir.path().join("cache"), BootId([1; 16])).unwrap();
    let engine = Engine::new(cache.clone(), engine_config(), runtime.handle().clone(), worker).unwrap();
    let table = Arc::new(Table::new(engine, accesses, Vec::new()));
    let (socket, stop) = (dir.path().join("daemon.sock"), CancellationToken::new());
    let access = Access { mode: Mode::OWNER, group: None };
    let server = runtime.block_on(async { Server::bind(&socket, &access) }).unwrap();
    let (served, end) = (Arc::clone(&table), stop.clone());
    let serving = runtime.spawn(async move { server::serve(&server, &served, &end).await });
    let client = DaemonClient::new(&socket);
    let request = MountRequest {
        id: "i".to_owned(),
        bootstrap: image(dir.path()),
        mountpoint: dir.path().join("mnt"),
        image: "i".to_owned(),
        backends: vec![BackendSpec::Directory { path: dir.path().to_owned() }],
    };
    runtime.block_on(client.mount(&request)).unwrap();
    let _unmount = UnmountOnDrop(request.mountpoint.clone());

    let summary = || {
        let told = runtime.block_on(async { timeout(SOON, client.summary()).await });
        told.expect("nothing is waited for").unwrap()
    };
    let counting = cache.withheld(|| {
        assert_eq!(summary().mounts[0].mountpoint, request.mountpoint);
        assert_eq!(ASKED.load(Ordering::SeqCst), 0, "the worker is not asked");
        // Who has it count waits meanwhile.
        let asker = client.clone();
        let counting = runtime.spawn(async move { asker.status().await });
        let until = Instant::now() + SOON;
        while ASKED.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < until, "the worker is asked for a status");
            std::thread::yield_now();
        }
        assert_eq!(summary().mounts.len(), 1);
        assert!(!counting.is_finished(), "it waits for the cache");
        counting
    });
    let status = runtime.block_on(async { timeout(SOON, counting).await });
    let status = status.expect("it goes on").unwrap().unwrap();
    assert!(status.mounts[0].chunks.all > 1 && status.cache.is_some(), "{status:?}");
    runtime.block_on(client.umount("i")).unwrap();
    stop.cancel();
    runtime.block_on(serving).unwrap();
}
