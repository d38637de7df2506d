//! What is fetched of a mounted image before somebody reads it. All of it gives way to readers.
//!
//! | what | when |
//! |---|---|
//! | files in the image's prefetch table | from the mount on |
//! | programs that are read nearly whole | when their first page is read |
//! | other programs of what is far, and the libraries that they need | the same: the loader would ask for one after the other |
//! | everything | if asked for, some time after the mount: from then on the image needs no registry |
//!
//! What the cache does not take is fetched once for nothing, and no more: see `NotTaken`.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use rafs::blob::ChunkIndex;
use rafs::bootstrap::Nid;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::cache::ChunkState;
use crate::describe;
use crate::front::{ChunkError, ReadError, Want};
use crate::fs::{FileSystem, FsError, StartedFile};

/// Chunks that are asked for together.
const WINDOW: usize = 8;

/// Such windows under way at once for what is needed soon: several requests, where each takes a while.
const WINDOWS: usize = 4;

/// Chunks that are looked for at once when everything is fetched.
const STRIDE: usize = 256;

/// The same of a file: enough that windows are under way nearly all the time.
const FILE_STRIDE: usize = 1024;

/// How long to wait before trying again what gave way to readers or failed; doubled each time, up to the second.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_LIMIT: Duration = Duration::from_secs(2);

/// How often it is tried.
const ATTEMPTS: u32 = 20;

/// How long to wait before looking again for what could not be fetched, when everything is to be.
const COMPLETION_PAUSE: Duration = Duration::from_secs(30);

/// How often to look whether something else was taken, where the cache did not take all of the image …
const ROOM_LOOK: Duration = Duration::from_secs(3);
/// … and after how long to try it, with one chunk.
const ROOM_PAUSE: Duration = Duration::from_secs(300);

/// Programs that wait in line.
const PROGRAMS: usize = 64;

/// Libraries that are fetched for one program at most.
const LIBRARIES: usize = 256;

/// All of a file.
const WHOLE: Range<u64> = 0..u64::MAX;

/// What is fetched ahead of readers.
#[derive(Clone, Debug)]
pub struct PrefetchConfig {
    /// Files in images' prefetch tables.
    pub table: bool,
    /// Programs, when they start: those that are read nearly whole, and where that is far others too, with their libraries.
    pub programs: bool,
    /// Everything, so long after the mount. `None`: not.
    pub complete_after: Option<Duration>,
}

/// Where a file system reports programs to, and the one who hears of them.
pub(crate) fn programs() -> (mpsc::Sender<StartedFile>, mpsc::Receiver<StartedFile>) {
    mpsc::channel(PROGRAMS)
}

/// Fetches for a mount, until it ends. `image` is what the log calls it.
pub(crate) fn start(
    runtime: &Handle,
    fs: &Arc<FileSystem>,
    programs: mpsc::Receiver<StartedFile>,
    config: &PrefetchConfig,
    image: &str,
) {
    if config.programs {
        runtime.spawn(fetch_programs(Arc::downgrade(fs), programs));
    }
    if config.table || config.complete_after.is_some() {
        runtime.spawn(fetch_ahead(Arc::downgrade(fs), config.clone(), image.to_owned()));
    }
}

async fn fetch_programs(fs: Weak<FileSystem>, mut programs: mpsc::Receiver<StartedFile>) {
    let mut seen = HashSet::new();
    // Ends with the file system, which has the other end.
    while let Some(StartedFile { file, is_read_whole }) = programs.recv().await {
        if is_read_whole {
            // Of one that finds no room, the reader has the rest brought.
            let _ = fetch_file(&fs, file, WHOLE).await;
        } else if is_far(&fs, file) {
            fetch_libraries(&fs, file, &mut seen).await;
        }
    }
}

fn is_far(fs: &Weak<FileSystem>, file: Nid) -> bool {
    fs.upgrade().is_some_and(|fs| fs.is_far(file).unwrap_or_default())
}

/// Fetches a program and its libraries, and what these need: all at once that is known of.
async fn fetch_libraries(fs: &Weak<FileSystem>, program: Nid, seen: &mut HashSet<Nid>) {
    let mut next = vec![program];
    let mut count = 0;
    loop {
        next.retain(|file| seen.insert(*file));
        count += next.len();
        if next.is_empty() || count > LIBRARIES {
            return;
        }
        let fetching = next.iter().map(|file| fetch_linked(fs, *file));
        next = futures::future::join_all(fetching).await.concat();
    }
}

/// Fetches what the loader will look at in a program; the libraries that it needs.
async fn fetch_linked(fs: &Weak<FileSystem>, file: Nid) -> Vec<Nid> {
    match try_fetch_linked(fs, file).await {
        Ok(found) => found.unwrap_or_default(),
        Err(error) => {
            tracing::debug!(file = file.0, error = describe(&error), "its libraries are not known");
            Vec::new()
        }
    }
}

async fn try_fetch_linked(fs: &Weak<FileSystem>, file: Nid) -> Result<Option<Vec<Nid>>, FsError> {
    let mounted = || fs.upgrade();
    let Some(part) = mounted().map(|fs| fs.needed_part(file)).transpose()? else { return Ok(None) };
    if fetch_file(fs, file, part).await.is_err() {
        return Ok(None);
    }
    let Some(linked) = mounted().map(|fs| fs.linked(file)).transpose()?.flatten() else { return Ok(None) };
    if fetch_file(fs, file, linked.entries.clone()).await.is_err() {
        return Ok(None);
    }
    let names = mounted().map(|fs| fs.names_of_libraries(file, &linked)).transpose()?.flatten();
    let Some(names) = names else { return Ok(None) };
    if fetch_file(fs, file, names.all.clone()).await.is_err() {
        return Ok(None);
    }
    mounted().map(|fs| fs.libraries(file, &linked, &names)).transpose()
}

async fn fetch_ahead(fs: Weak<FileSystem>, config: PrefetchConfig, image: String) {
    if config.table {
        fetch_table(&fs).await;
    }
    if let Some(after) = config.complete_after {
        tokio::time::sleep(after).await;
        if complete(&fs, &image).await {
            tracing::info!(image, "all of the image is cached: it needs no registry any more");
        }
    }
}

/// Fetches the files in the image's prefetch table.
async fn fetch_table(fs: &Weak<FileSystem>) {
    let mounted = Weak::clone(fs);
    // Not on a thread that answers others: a large image takes seconds.
    let search = tokio::task::spawn_blocking(move || mounted.upgrade().map(|fs| fs.prefetch_table()));
    // Otherwise the mount ended, or the runtime did.
    let Ok(Some(table)) = search.await else { return };
    let files = table.unwrap_or_else(|error| {
        tracing::warn!(error = describe(&error), "the image's prefetch table cannot be read");
        Vec::new()
    });
    for file in files {
        if let Err(NotTaken) = fetch_file(fs, file, WHOLE).await {
            return;
        }
    }
}

/// The cache does not take what comes: it has no room, or its disk fails. What is fetched all the same is thrown away, so whoever
/// fetches ahead of readers leaves it.
struct NotTaken;

/// Fetches a part of a file, several windows at a time. What is in order in the file is in order in its blob.
async fn fetch_file(fs: &Weak<FileSystem>, file: Nid, range: Range<u64>) -> Result<(), NotTaken> {
    let mut from = Some(range.start);
    while let Some(start) = from {
        let Some(mounted) = fs.upgrade() else { return Ok(()) };
        let missing = mounted.missing_of_file(file, start..range.end, FILE_STRIDE);
        drop(mounted);
        let (missing, next) = match missing {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(file = file.0, error = describe(&error), "cannot be fetched ahead");
                return Ok(());
            }
        };
        fetch(fs, missing, WINDOWS).await?;
        // Where nothing is missing, nothing was waited for.
        tokio::task::yield_now().await;
        from = next;
    }
    Ok(())
}

/// Fetches all of the image that is not there, one window at a time. `false`: the mount ended before.
async fn complete(fs: &Weak<FileSystem>, image: &str) -> bool {
    const START: (usize, ChunkIndex) = (0, ChunkIndex(0));
    let (mut from, mut was_refused) = (START, false);
    while let Some(mounted) = fs.upgrade() {
        let (missing, next) = mounted.missing_from(from, STRIDE);
        drop(mounted);
        if let Err(NotTaken) = fetch(fs, missing, 1).await {
            if !std::mem::replace(&mut was_refused, true) {
                tracing::info!(
                    image,
                    "the cache does not take all of the image now: the rest is fetched when it does"
                );
            }
            wait_until_taken(fs).await;
            continue;
        }
        from = next.unwrap_or(START);
        if next.is_none() {
            match fs.upgrade().map(|fs| fs.missing_from(START, 1).0.is_empty()) {
                Some(true) => return true,
                Some(false) => tokio::time::sleep(COMPLETION_PAUSE).await,
                None => return false,
            }
        }
    }
    false
}

/// Waits until the cache has taken a reader's chunk, or it is worth a try.
async fn wait_until_taken(fs: &Weak<FileSystem>) {
    let until = tokio::time::Instant::now() + ROOM_PAUSE;
    loop {
        tokio::time::sleep(ROOM_LOOK).await;
        if !is_refused(fs) || tokio::time::Instant::now() >= until {
            return;
        }
    }
}

fn is_refused(fs: &Weak<FileSystem>) -> bool {
    fs.upgrade().is_some_and(|fs| fs.is_cache_refusing())
}

async fn fetch(fs: &Weak<FileSystem>, missing: Vec<Want>, windows: usize) -> Result<(), NotTaken> {
    let needs_room = |want: &&Want| want.blob.state(want.chunk) == ChunkState::Missing;
    if let Some(first) = missing.iter().find(|want| is_refused(fs) && needs_room(want)) {
        // One chunk finds out whether it is taken.
        fetch_window(fs, vec![first.clone()]).await?;
        if is_refused(fs) {
            return Err(NotTaken);
        }
    }
    let windows_of = missing.chunks(WINDOW).map(<[Want]>::to_vec).collect::<Vec<_>>();
    let fetching = windows_of.into_iter().map(|window| fetch_window(fs, window));
    let mut fetching = futures::stream::iter(fetching).buffer_unordered(windows);
    while let Some(fetched) = fetching.next().await {
        fetched?;
    }
    Ok(())
}

/// Fetches some chunks, within some attempts: readers are told of other errors, nobody waits for this.
async fn fetch_window(fs: &Weak<FileSystem>, mut window: Vec<Want>) -> Result<(), NotTaken> {
    let mut pause = PAUSE;
    for _ in 0..ATTEMPTS {
        window.retain(|want| !want.blob.is_ready(want.chunk));
        // The mount is not held while waiting: it may end.
        let Some(mounted) = fs.upgrade().filter(|_| !window.is_empty()) else { return Ok(()) };
        let (told, done) = oneshot::channel();
        mounted.ensure_idle(window.clone(), move |result| {
            let _ = told.send(result);
        });
        drop(mounted);
        match done.await {
            Ok(Ok(())) | Err(_) => return Ok(()),
            Ok(Err(FsError::Read(ReadError::NoRoom(_)))) => return Err(NotTaken),
            // A disk that fails.
            Ok(Err(FsError::Read(ReadError::Chunk { source: ChunkError::Cache(_), .. }))) => {
                return Err(NotTaken);
            }
            Ok(Err(error)) => tracing::trace!(error = describe(&error), "fetching ahead gives way"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_LIMIT);
    }
    Ok(())
}
