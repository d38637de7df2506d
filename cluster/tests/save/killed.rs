//! Saves in a process of their own, which is killed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster::lock::Lock;
use cluster::save::{Destination, SaveOptions};

use crate::{client, saved_in};

/// Where a child finds its work.
const CHILD: &str = "NYDUS_CLUSTER_TEST_SAVE";

/// What a child may take to come to the point at which it is killed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a test does that is run as a child: saves what `dir/images.lock` names to `dir/registry`. Otherwise nothing.
pub(crate) async fn save_as_a_child(options: &SaveOptions) {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let lock = Lock::read(&dir.join("images.lock")).unwrap();
    let to = Destination::Directory(dir.join("registry"));
    let _ = saved_in(&client(), &lock, &dir, &to, options).await;
}

/// Runs the test of that name as a child that saves what `lock` names, and kills it once `reached` says so.
pub(crate) async fn kill_when(test: &str, lock: &Lock, dir: &Path, reached: impl Fn() -> bool) {
    lock.write(&dir.join("images.lock")).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < PATIENCE, "the child saves nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
