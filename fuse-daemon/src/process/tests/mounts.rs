//! The mounts of a daemon, whose worker is never asked for a chunk.

use test_support::{Need, needs};

use super::summary::{UnmountOnDrop, engine_config, image};
use super::*;
use crate::control::MountRequest;
use crate::mounts::{Engine, Table};

#[test]
fn what_was_unmounted_while_others_looked_at_it_is_not_counted() {
    needs!(Need::Fuse);
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (launch, _) = workers(vec![honest], false);
    let accesses = accesses();
    let worker = remote_worker(launch, SOON, &accesses, runtime.handle());
    let cache = Cache::open(dir.path().join("cache"), BootId([1; 16])).unwrap();
    let engine = Engine::new(cache, engine_config(), runtime.handle().clone(), worker).unwrap();
    let table = Table::new(engine, accesses, Vec::new());
    let bootstrap = image(dir.path());
    let mount = |id: &str| {
        let request = MountRequest {
            id: id.to_owned(),
            bootstrap: bootstrap.clone(),
            mountpoint: dir.path().join("mnt").join(id),
            image: id.to_owned(),
            backends: vec![BackendSpec::Directory { path: dir.path().to_owned() }],
        };
        let prepared = runtime.block_on(table.prepare(&request)).unwrap();
        table.mount(&request, prepared).unwrap();
        UnmountOnDrop(request.mountpoint)
    };
    let (used, _unused) = (mount("used"), mount("unused"));
    assert_eq!(table.count(), 2);
    let open = std::fs::File::open(used.0.join("file")).unwrap();
    assert_eq!(table.unmount_unused(SOON), ["used"]);
    assert_eq!(table.count(), 1);
    drop(open);
    std::thread::scope(|scope| {
        let (stop, looks) = mpsc::channel::<()>();
        let table = &table;
        scope.spawn(move || {
            while looks.try_recv() == Err(mpsc::TryRecvError::Empty) {
                table.status();
            }
        });
        table.unmount("used", SOON).unwrap();
        drop(stop);
    });
    assert_eq!(table.count(), 0);
}
