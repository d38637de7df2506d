//! Work in a process of its own, which is killed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where a child finds its work.
const CHILD: &str = "NYDUS_CLUSTER_TEST_SAVE";

/// What a child may take to come to the point at which it is killed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The directory with the work of a test that is run as a child. Otherwise nothing.
pub(crate) fn work() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Runs the test of that name as a child whose work is in `dir`, and kills it once `reached` says so.
pub(crate) async fn kill_when(test: &str, dir: &Path, reached: impl Fn() -> bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(CHILD, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < PATIENCE, "the child does not come so far");
        assert!(child.try_wait().unwrap().is_none(), "the child ended before it came so far");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
