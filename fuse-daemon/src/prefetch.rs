//! What is fetched of a mounted image before somebody reads it. All of it gives way to readers.
//!
//! | what | when |
//! |---|---|
//! | files in the image's prefetch table | from the mount on |
//! | programs that are read nearly whole | when their first page is read |
//! | everything | if asked for, some time after the mount: from then on the image needs no registry |

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use rafs::blob::ChunkIndex;
use rafs::bootstrap::Nid;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::describe;
use crate::front::Want;
use crate::fs::FileSystem;

/// Chunks that are asked for together.
const WINDOW: usize = 8;

/// Such windows under way at once for what is needed soon: several requests, where each takes a while.
const WINDOWS: usize = 4;

/// Chunks that are looked for at once when everything is fetched.
const STRIDE: usize = 256;

/// How long to wait before trying again what gave way to readers or failed; doubled each time, up to the second.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How often it is tried.
const ATTEMPTS: u32 = 20;

/// How long to wait before looking again for what could not be fetched, when everything is to be.
const COMPLETION_PAUSE: Duration = Duration::from_secs(30);

/// Programs that wait in line.
const PROGRAMS: usize = 64;

/// What is fetched ahead of readers.
#[derive(Clone, Debug)]
pub struct PrefetchConfig {
    /// Files in images' prefetch tables.
    pub table: bool,
    /// Programs that are read nearly whole, when they start.
    pub programs: bool,
    /// Everything, so long after the mount. `None`: not.
    pub complete_after: Option<Duration>,
}

/// Where a file system reports programs to, and the one who hears of them.
pub(crate) fn programs() -> (mpsc::Sender<Nid>, mpsc::Receiver<Nid>) {
    mpsc::channel(PROGRAMS)
}

/// Fetches for a mount, until it ends.
pub(crate) fn start(
    runtime: &Handle,
    fs: &Arc<FileSystem>,
    programs: mpsc::Receiver<Nid>,
    config: &PrefetchConfig,
) {
    if config.programs {
        runtime.spawn(fetch_programs(Arc::downgrade(fs), programs));
    }
    if config.table || config.complete_after.is_some() {
        runtime.spawn(fetch_ahead(Arc::downgrade(fs), config.clone()));
    }
}

async fn fetch_programs(fs: Weak<FileSystem>, mut programs: mpsc::Receiver<Nid>) {
    // Ends with the file system, which has the other end.
    while let Some(program) = programs.recv().await {
        fetch_file(&fs, program).await;
    }
}

async fn fetch_ahead(fs: Weak<FileSystem>, config: PrefetchConfig) {
    if config.table {
        let table = fs.upgrade().map(|fs| fs.prefetch_table()).unwrap_or_else(|| Ok(Vec::new()));
        match table {
            Ok(files) => {
                for file in files {
                    fetch_file(&fs, file).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = describe(&error), "the image's prefetch table cannot be read")
            }
        }
    }
    if let Some(after) = config.complete_after {
        tokio::time::sleep(after).await;
        complete(&fs).await;
    }
}

/// Fetches a file, several windows at a time. What is in order in the file is in order in its blob.
async fn fetch_file(fs: &Weak<FileSystem>, file: Nid) {
    let Some(mounted) = fs.upgrade() else { return };
    let missing = mounted.missing_of_file(file);
    drop(mounted);
    match missing {
        Ok(missing) => fetch(fs, missing, WINDOWS).await,
        Err(error) => tracing::debug!(file = file.0, error = describe(&error), "cannot be fetched ahead"),
    }
}

/// Fetches all of the image that is not there, one window at a time.
async fn complete(fs: &Weak<FileSystem>) {
    const START: (usize, ChunkIndex) = (0, ChunkIndex(0));
    let mut from = START;
    while let Some(mounted) = fs.upgrade() {
        let (missing, next) = mounted.missing_from(from, STRIDE);
        drop(mounted);
        fetch(fs, missing, 1).await;
        from = next.unwrap_or(START);
        if next.is_none() {
            let is_complete = |fs: Arc<FileSystem>| fs.missing_from(START, 1).0.is_empty();
            if fs.upgrade().is_none_or(is_complete) {
                return;
            }
            tokio::time::sleep(COMPLETION_PAUSE).await;
        }
    }
}

async fn fetch(fs: &Weak<FileSystem>, missing: Vec<Want>, windows: usize) {
    let windows_of = missing.chunks(WINDOW).map(<[Want]>::to_vec).collect::<Vec<_>>();
    let fetching = windows_of.into_iter().map(|window| fetch_window(fs, window));
    futures::stream::iter(fetching).buffer_unordered(windows).collect::<Vec<()>>().await;
}

/// Fetches some chunks, within some attempts: readers are told of errors, nobody waits for this.
async fn fetch_window(fs: &Weak<FileSystem>, mut window: Vec<Want>) {
    let mut pause = PAUSE;
    for _ in 0..ATTEMPTS {
        window.retain(|want| !want.blob.is_ready(want.chunk));
        // The mount is not held while waiting: it may end.
        let Some(mounted) = fs.upgrade().filter(|_| !window.is_empty()) else { return };
        let (told, done) = oneshot::channel();
        mounted.ensure_idle(window.clone(), move |result| {
            let _ = told.send(result);
        });
        drop(mounted);
        match done.await {
            Ok(Ok(())) | Err(_) => return,
            Ok(Err(error)) => tracing::trace!(error = describe(&error), "fetching ahead gives way"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
