//! Mounts that one daemon leaves to the next, each a process of its own.

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use fuse_daemon::control::{BackendSpec, BlobId, Client, MountRequest};
use nix::libc::O_DIRECT;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rafs::build::BuildOptions;
use test_support::{noise, tar_of};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::control::{config, read, until_it_answers};
use crate::image::TestImage;
use crate::{SOON, can_mount};

/// Tells the process of a daemon where it has everything.
const DIR: &str = "NYDUS_CLUSTER_TEST_DAEMON";

/// Not a test: the process of a daemon.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs as a process of its own"]
async fn serves_until_it_is_terminated() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let stop = CancellationToken::new();
    let shutdown = stop.clone();
    tokio::spawn(async move {
        terminated.recv().await;
        shutdown.cancel();
    });
    fuse_daemon::serve(config(&dir), stop).await.unwrap();
}

/// A daemon that has everything under `dir`, once it answers.
async fn start(dir: &Path) -> (Child, Client) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "handed_over::serves_until_it_is_terminated", "--ignored", "--nocapture"]);
    let process =
        command.env(DIR, dir).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let client = Client::new(config(dir).socket.path());
    until_it_answers(&client).await;
    (process, client)
}

async fn end(mut daemon: Child, with: Signal) {
    kill(Pid::from_raw(daemon.id().unwrap().cast_signed()), with).unwrap();
    tokio::time::timeout(SOON, daemon.wait()).await.expect("the daemon ends").unwrap();
}

/// Where something is mounted that is not to outlive the test.
struct Mountpoint(PathBuf);

impl Drop for Mountpoint {
    fn drop(&mut self) {
        // Nothing is there any more if the test succeeded.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// What the daemon answers, whatever the kernel has in memory.
async fn read_directly(path: PathBuf) -> std::io::Result<Vec<u8>> {
    let read = move || {
        let mut file = std::fs::File::options().read(true).custom_flags(O_DIRECT).open(path)?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok(bytes)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// A mount is read from while nobody wants to keep its blob, and is handed over: by a daemon that ends so.
async fn blob_stays_for_the_next(ending: Signal) {
    let content = noise(90, 2_500_000);
    let image = TestImage::build(&tar_of(&[("file", &content)]), &BuildOptions::default());
    let (dir, blob) = (tempfile::tempdir().unwrap(), BlobId(image.blob_ids()[0]));
    let request = MountRequest {
        id: "demo".to_owned(),
        bootstrap: image.bootstrap(),
        mountpoint: dir.path().join("mnt"),
        image: "demo".to_owned(),
        backends: vec![BackendSpec::Directory { path: image.blobs() }],
    };
    let _mountpoint = Mountpoint(request.mountpoint.clone());
    let (first, client) = start(dir.path()).await;
    client.mount(&request).await.unwrap();
    assert_eq!(read(request.mountpoint.join("file")).await.unwrap(), content);
    let (handover, descriptor) = client.handover("demo").await.unwrap();
    assert_eq!(client.keep(&[]).await.unwrap().in_use, [blob]);
    let cached = dir.path().join("cache").join(format!("{}.blob.data", blob.0));
    let inode = std::fs::metadata(&cached).unwrap().ino();
    end(first, ending).await;
    assert_eq!(std::fs::metadata(&cached).expect("the daemon that ends leaves it").ino(), inode);

    // Nobody has it any more, and nobody is told by the next daemon that it may go before the mount is taken over.
    std::fs::remove_dir_all(image.blobs()).unwrap();
    let (second, client) = start(dir.path()).await;
    assert_eq!(client.keep(&[]).await.unwrap().in_use, [blob]);
    assert_eq!(client.prune().await.unwrap().freed, []);
    assert_eq!(client.remove_blobs(&[blob]).await.unwrap().in_use, [blob]);
    client.adopt(&handover, descriptor.as_fd()).await.unwrap();
    assert_eq!(read_directly(request.mountpoint.join("file")).await.unwrap(), content);
    assert_eq!(std::fs::metadata(&cached).unwrap().ino(), inode);

    // As it was with the first, it goes with its mount.
    assert_eq!(client.keep(&[]).await.unwrap().in_use, [blob]);
    drop(descriptor);
    client.umount("demo").await.unwrap();
    assert!(!cached.exists(), "nobody wants it");
    end(second, Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mount_reads_is_there_when_the_next_daemon_takes_it_over() {
    if !can_mount() {
        return;
    }
    for ending in [Signal::SIGTERM, Signal::SIGKILL] {
        blob_stays_for_the_next(ending).await;
    }
}
