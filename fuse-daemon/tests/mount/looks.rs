//! Many who look at the daemon at once: each sees all that it serves.

use fuse_daemon::control::BackendSpec;
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};

use crate::can_mount;
use crate::control::Daemon;
use crate::image::TestImage;

/// Mounts, who look, and how often each does.
const MOUNTS: usize = 3;
const LOOKERS: usize = 8;
const LOOKS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_at_the_mounts_hides_none_from_others_who_do() {
    if !can_mount() {
        return;
    }
    let content = noise(60, 20_000_000);
    // So many chunks that counting those that are there takes a while.
    let options = BuildOptions { chunk_size: 4096, ..BuildOptions::default() };
    let image = TestImage::build(&tar_of(&[("file", &content)]), &options);
    let daemon = Daemon::start().await;
    let ids: Vec<String> = (0..MOUNTS).map(|number| format!("i{number}")).collect();
    for id in &ids {
        let mut request = daemon.request(id, &image.bootstrap(), "127.0.0.1:1/demo:v1");
        request.backends = vec![BackendSpec::Directory { path: image.blobs() }];
        daemon.client.mount(&request).await.unwrap();
    }
    let lookers = (0..LOOKERS).map(|_| {
        let (client, ids) = (daemon.client.clone(), ids.clone());
        tokio::spawn(async move {
            for _ in 0..LOOKS {
                let mounts = client.status().await.unwrap().mounts;
                assert!(mounts.iter().map(|mount| &mount.id).eq(&ids), "{mounts:?}");
            }
        })
    });
    for looker in lookers.collect::<Vec<_>>() {
        looker.await.unwrap();
    }
    daemon.end().await;
}
