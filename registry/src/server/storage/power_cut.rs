//! A power cut right after an answer: of folders there are the entries that they had when they were synced last, and no others.
//! What was answered with 201 is there nevertheless, whoever made it.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::client::{Client, ClientConfig};
use crate::digest::sha256;
use crate::reference::Repository;
use crate::server::manifests::{check_contents, parse};
use crate::server::{Server, ServerConfig, listen};

const SOON: Duration = Duration::from_secs(20);

type Hold = (Sender<()>, Receiver<()>);

/// A root whose folders' entries are on the disk as of their last sync.
#[derive(Clone)]
struct Disk {
    root: PathBuf,
    /// Inodes by path.
    durable: Arc<Mutex<HashMap<PathBuf, u64>>>,
    /// Who is told of the next sync, and what it waits for.
    held: Arc<Mutex<Option<Hold>>>,
}

impl Disk {
    fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), durable: Arc::default(), held: Arc::default() }
    }

    fn storage(&self) -> Storage {
        let disk = self.clone();
        Storage::synced_by(Layout::directory(&self.root), Box::new(move |folder| disk.sync(folder)))
    }

    fn sync(&self, folder: &Path) -> io::Result<()> {
        let held = self.held.lock().unwrap().take();
        if let Some((reached, go_on)) = held {
            reached.send(()).unwrap();
            go_on.recv_timeout(SOON).unwrap();
        }
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // One that was moved away meanwhile is on the disk nowhere.
            if let Some(found) = present(entry.metadata())? {
                self.durable.lock().unwrap().insert(entry.path(), found.ino());
            }
        }
        Ok(())
    }

    /// Holds up the next sync: what tells that it is reached, and what lets it go on.
    fn hold(&self) -> (Receiver<()>, Sender<()>) {
        let ((tell, reached), (go_on, wait)) = (channel(), channel());
        *self.held.lock().unwrap() = Some((tell, wait));
        (reached, go_on)
    }

    /// The first entry on the way to `path` that a power cut would take.
    fn lost(&self, path: &Path) -> Option<PathBuf> {
        let durable = self.durable.lock().unwrap();
        let way: Vec<&Path> = path.ancestors().take_while(|entry| *entry != self.root).collect();
        let is_lost = |entry: &Path| durable.get(entry) != Some(&std::fs::metadata(entry).unwrap().ino());
        way.into_iter().rev().find(|entry| is_lost(entry)).map(Path::to_owned)
    }

    fn outlives(&self, storage: &Storage, name: &str, digest: &Digest) {
        for path in [storage.paths().data(digest), storage.paths().layer(name, digest)] {
            assert_eq!(self.lost(&path), None, "on the way to {}", path.display());
        }
    }

    fn manifest_outlives(&self, storage: &Storage, name: &str, tag: &str, digest: &Digest) {
        let paths = storage.paths();
        let all = [
            paths.data(digest),
            paths.revision(name, digest),
            paths.tag_index(name, tag, digest),
            paths.tag_current(name, tag),
        ];
        for path in all {
            assert_eq!(self.lost(&path), None, "on the way to {}", path.display());
        }
    }
}

fn push(storage: &Storage, name: &str, content: &[u8]) -> Digest {
    let (id, digest) = (storage.create_upload(name).unwrap(), sha256(content));
    let mut file = storage.open_upload(name, &id).unwrap().unwrap();
    file.append(content).unwrap();
    storage.commit_upload(name, &id, file, &digest, &digest).unwrap();
    digest
}

/// Does `other` while `first`'s first sync is held up, so that all that it has made is there and nothing is on the disk.
fn meanwhile(disk: &Disk, first: impl FnOnce() + Send + 'static, other: impl FnOnce()) {
    let (reached, go_on) = disk.hold();
    let first = std::thread::spawn(first);
    reached.recv_timeout(SOON).unwrap();
    other();
    go_on.send(()).unwrap();
    first.join().unwrap();
}

#[test]
fn a_blob_that_another_push_has_just_stored_is_on_the_disk_for_both() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path());
    let storage = disk.storage();
    let first = storage.clone();
    let pushed = move || {
        push(&first, "app", b"layer");
    };
    meanwhile(&disk, pushed, || {
        let digest = push(&storage, "other", b"layer");
        disk.outlives(&storage, "other", &digest);
        storage.mount_blob("mounted", &digest, &digest).unwrap();
        disk.outlives(&storage, "mounted", &digest);
    });
    disk.outlives(&storage, "app", &sha256(b"layer"));
}

#[test]
fn folders_that_another_push_has_just_made_are_on_the_disk_for_both() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path());
    let storage = disk.storage();
    let first = storage.clone();
    let pushed = move || {
        push(&first, "new/app", b"layer");
    };
    meanwhile(&disk, pushed, || {
        let digest = push(&storage, "new/app", b"other layer");
        disk.outlives(&storage, "new/app", &digest);
    });
}

#[test]
fn what_a_manifest_names_is_on_the_disk_with_it_though_another_push_is_not_answered_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path());
    let storage = disk.storage();
    // Its data is stored, and of its link the sync is held up.
    let digest = push(&storage, "elsewhere", b"config");
    let (first, wanted) = (storage.clone(), digest.clone());
    let linked = move || first.link_blob("app", &wanted, &wanted).unwrap();
    meanwhile(&disk, linked, || {
        assert!(storage.layout.blob("app", &digest).unwrap().is_some(), "clients are told that it is there");
        let image = serde_json::json!({"config": {"mediaType": "x/y", "digest": digest.to_string()}});
        check_contents(&storage, "app", &parse(image.to_string().as_bytes(), None).unwrap()).unwrap();
        disk.outlives(&storage, "app", &digest);
    });
    let (first, manifest) = (storage.clone(), sha256(b"{}"));
    let put = move || first.put_manifest("app", Some("one"), &sha256(b"{}"), b"{}").unwrap();
    meanwhile(&disk, put, || {
        storage.put_manifest("app", Some("two"), &manifest, b"{}").unwrap();
        disk.manifest_outlives(&storage, "app", "two", &manifest);
    });
}

async fn server(disk: &Disk, stop: &CancellationToken) -> Server {
    let config = ServerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ServerConfig::new(&disk.root) };
    listen(config, disk.storage(), None, stop.clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_with_201_outlives_a_loss_of_power() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, stop) = (Disk::new(dir.path()), CancellationToken::new());
    let storage = Storage::new(Layout::directory(dir.path()));
    let mut pushed = Vec::new();
    // The second time by a server that knows nothing of what the first has brought to the disk, and with all folders there.
    for round in 0..2 {
        let server = server(&disk, &stop).await;
        let client = Client::new(ClientConfig::default()).unwrap();
        let repository = |name| Repository::parse(&format!("{}/{name}", server.address())).unwrap();
        let (app, other) = (repository("team/app"), repository("team/other"));
        for blob in 0..3 {
            let content = format!("round {round}, blob {blob}");
            let digest = client.push_blob(&app, content.into()).await.unwrap();
            disk.outlives(&storage, "team/app", &digest);
            assert!(client.mount_blob(&other, &app, &digest).await.unwrap());
            disk.outlives(&storage, "team/other", &digest);
            pushed.push(digest);
        }
        let kind = crate::media_types::OCI_MANIFEST;
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": kind,
            "config": {"mediaType": "x/y", "digest": pushed[0].to_string(), "size": 16},
            "layers": pushed[1..].iter().map(|layer| {
                serde_json::json!({"mediaType": "x/y", "digest": layer.to_string(), "size": 16})
            }).collect::<Vec<_>>(),
        });
        // The tag is moved in the second round.
        let name = app.with_tag("v1").unwrap();
        let digest = client.put_manifest(&name, kind, manifest.to_string().into()).await.unwrap();
        disk.manifest_outlives(&storage, "team/app", "v1", &digest);
    }
    stop.cancel();
}
