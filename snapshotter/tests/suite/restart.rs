//! What outlives the service.

use std::fs;
use std::time::{Duration, Instant};

use tonic::Code;

use crate::harness::{Harness, code};
use crate::needs_root;

#[tokio::test]
async fn a_new_service_knows_everything() {
    let mut harness = Harness::start().await;
    harness.prepare_with("base-a", "", &[("l", "1")]).await.unwrap();
    harness.commit_with("base", "base-a", &[("l", "2")]).await.unwrap();
    harness.prepare("active", "base").await.unwrap();
    harness.view("view", "base").await.unwrap();
    let before = harness.list(&[]).await.unwrap();
    let mounts = harness.mounts("active").await.unwrap();
    harness.restart().await;
    assert_eq!(harness.list(&[]).await.unwrap(), before);
    assert_eq!(harness.mounts("active").await.unwrap(), mounts);
    assert_eq!(code(harness.remove("base").await), Code::FailedPrecondition);
    assert_eq!(code(harness.prepare("active", "base").await), Code::AlreadyExists);
    harness.commit("next", "active").await.unwrap();
    harness.prepare("another", "next").await.unwrap();
}

#[tokio::test]
async fn what_is_mounted_is_not_disturbed() {
    needs_root!();
    let mut harness = Harness::start().await;
    let mounts = harness.prepare("base-a", "").await.unwrap();
    fs::write(format!("{}/lower", mounts[0].source), "lower").unwrap();
    harness.commit("base", "base-a").await.unwrap();
    let mounts = harness.prepare("container", "base").await.unwrap();
    let mounted = harness.mount(&mounts, "container");
    harness.restart().await;
    assert_eq!(fs::read(mounted.path().join("lower")).unwrap(), b"lower");
    fs::write(mounted.path().join("upper"), "upper").unwrap();
    assert_eq!(harness.usage("container").await.unwrap().inodes, 2);
}

#[tokio::test]
async fn the_socket_goes_with_the_service_and_one_left_by_a_crash_is_replaced() {
    let mut harness = Harness::start().await;
    harness.stop().await;
    assert!(!harness.config.listen.path().exists());
    drop(std::os::unix::net::UnixListener::bind(harness.config.listen.path()).unwrap());
    assert!(harness.config.listen.path().exists());
    // A child that another test has just forked holds the listener until it becomes another program.
    crate::harness::eventually("nobody listens any longer", async || {
        std::os::unix::net::UnixStream::connect(harness.config.listen.path()).is_err().then_some(())
    })
    .await;
    let config = harness.config.clone();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let service = tokio::spawn(snapshotter::serve(config.clone(), shutdown.clone()));
    let channel = crate::harness::eventually("the service answers", async || {
        containerd_client::connect(config.listen.path()).await.ok()
    })
    .await;
    drop(channel);
    // A second one on the same root is told why it cannot.
    let mut second = config.clone();
    second.listen = harness.dir.path().join("second.sock").try_into().unwrap();
    let error = snapshotter::serve(second, shutdown.clone()).await.unwrap_err();
    assert!(error.to_string().contains("database"), "{error}");
    // And one on the same socket.
    let mut third = config.clone();
    third.root = harness.dir.path().join("third");
    let error = snapshotter::serve(third, shutdown.clone()).await.unwrap_err();
    assert!(error.to_string().contains("another process serves there"), "{error}");
    shutdown.cancel();
    service.await.unwrap().unwrap();
}

#[tokio::test]
async fn directories_that_a_crash_left_are_removed_and_their_numbers_not_reused() {
    let mut harness = Harness::start().await;
    harness.prepare("kept", "").await.unwrap();
    harness.stop().await;
    let orphan = harness.config.root.join("snapshots/77/fs/deep");
    fs::create_dir_all(&orphan).unwrap();
    harness.restart_after_stop().await;
    let mounts = harness.prepare("new", "").await.unwrap();
    assert!(mounts[0].source.ends_with("/snapshots/78/fs"), "{}", mounts[0].source);
    // Its content goes first, then the directory itself.
    let is_gone = async || (harness.directories() == ["1", "78"]).then_some(());
    crate::harness::eventually("the leftover is gone", is_gone).await;
    harness.stat("kept").await.unwrap();
}

#[tokio::test]
async fn it_serves_soon_after_its_start_with_1000_snapshots() {
    // Code that is not optimised takes several times as long.
    const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 200 });
    let mut harness = Harness::start().await;
    harness.prepare("base-a", "").await.unwrap();
    harness.commit("base", "base-a").await.unwrap();
    for number in 0..333 {
        let (key, name) = (format!("{number}-a"), format!("{number}"));
        harness.prepare_with(&key, "base", &[("containerd.io/gc.root", &name)]).await.unwrap();
        harness.commit_with(&name, &key, &[("containerd.io/gc.root", &name)]).await.unwrap();
        harness.prepare(&format!("{number}-b"), &name).await.unwrap();
        harness.view(&format!("{number}-c"), &name).await.unwrap();
    }
    // The first of some that is as fast, as other tests run beside this one.
    let (mut fastest, mut tries) = (Duration::MAX, 0);
    while fastest >= LIMIT && tries < 20 {
        tries += 1;
        harness.stop().await;
        let start = Instant::now();
        harness.restart_after_stop().await;
        assert_eq!(harness.stat("332-b").await.unwrap().parent, "332");
        fastest = fastest.min(start.elapsed());
    }
    assert_eq!(harness.list(&[]).await.unwrap().len(), 1000);
    assert!(fastest < LIMIT, "{fastest:?}");
}
