//! Converting layers before buildkitd announces them, while it still makes them.
//!
//! buildkitd makes the blob of a new layer on one core and hands it over when it is complete. Here the file is followed
//! while it grows. Which blob it is shows only in the end: by the file's identity when the blob is announced, and by the digest
//! of what was read. Until then its blob stays on this machine: it may be of another client's build.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use futures::future::join_all;
use registry::digest::Hasher;

use super::reader::{BlobReader, Writing};
use super::watch::Watch;
use super::{Conversion, FileId, LocalStore, open_regular};
use crate::build::ingest::{SNIFF_BYTES, is_tar};
use crate::build::{Build, Builds};

/// Converts the layers of `build` as buildkitd makes them in `store`, until the build is over.
pub(crate) async fn convert_ahead(store: Arc<LocalStore>, build: Arc<Build>, builds: Arc<Builds>) {
    match build.over.run_until_cancelled(follow_store(&store, &build, &builds)).await {
        None | Some(Ok(())) => {}
        Some(Err(error)) => {
            let dir = store.dir.display();
            tracing::warn!(%error, %dir, "cannot watch buildkitd's content store; layers are taken when they are complete");
            build.over.cancelled().await;
        }
    }
    // Those that were never announced; readers fail once the build is over.
    let ahead = std::mem::take(&mut *store.ahead());
    join_all(ahead.into_values().map(|ahead| ahead.conversion.cancel())).await;
}

/// Looks for blobs that buildkitd begins to write.
async fn follow_store(store: &Arc<LocalStore>, build: &Arc<Build>, builds: &Arc<Builds>) -> io::Result<()> {
    let ingest = store.dir.join("ingest");
    let mut watch = Watch::new(&store.dir)?;
    // Those that are being written already are not this build's.
    let mut known = entries(&ingest)?;
    loop {
        match watch.add(&ingest) {
            Ok(()) => {}
            // buildkitd makes it when it first needs it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let present = entries(&ingest)?;
        for name in present.difference(&known) {
            let (store, build, builds) = (Arc::clone(store), Arc::clone(build), Arc::clone(builds));
            let path = ingest.join(name);
            tokio::spawn(async move {
                let over = build.over.clone();
                match over.run_until_cancelled(follow_blob(&path, &store, &build, &builds)).await {
                    None | Some(Ok(())) => {}
                    Some(Err(error)) => {
                        tracing::debug!(%error, path = %path.display(), "not converted ahead")
                    }
                }
            });
        }
        known = present;
        watch.changed().await?;
    }
}

fn entries(dir: &Path) -> io::Result<HashSet<OsString>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(error),
    }
}

/// Begins to convert the blob that is written in the directory `dir`, if it is a plain tar: what comes from a registry is
/// compressed, and need not be part of the result.
async fn follow_blob(dir: &Path, store: &LocalStore, build: &Build, builds: &Builds) -> io::Result<()> {
    let mut watch = Watch::new(dir)?;
    let path = dir.join("data");
    let Some(file) = begin_of_tar(&store.dir, &path, &mut watch).await? else { return Ok(()) };
    // The layers of two builds cannot be told apart before they are announced.
    let (Some(output), true) = (build.store_output(), builds.is_alone()) else { return Ok(()) };
    // Layers that are stored as they are, too, have to be known for that, and are compressed anyway.
    if output.keeps_plain() {
        return Ok(());
    }
    if store.space.left() == 0 {
        return Ok(());
    }
    let id = FileId::of(&file.metadata()?);
    let writing = Writing::new(path, id, watch);
    let reader = BlobReader::new(file, writing, Hasher::sha256(), build.over.clone());
    tracing::info!(build = build.reference, blob = %dir.display(), "converting ahead what buildkitd writes");
    let conversion = Conversion::start_ahead(output, reader, &store.space).await.map_err(io::Error::other)?;
    store.ahead().insert(id, conversion);
    Ok(())
}

/// Waits until the file at `path`, below `store`, has begun, and opens it if that is the begin of a tar.
async fn begin_of_tar(store: &Path, path: &Path, watch: &mut Watch) -> io::Result<Option<File>> {
    let name = path.strip_prefix(store).map_err(io::Error::other)?;
    loop {
        match open_regular(store, name)? {
            Some(file) => {
                let mut begin = [0; SNIFF_BYTES];
                if file.read_at(&mut begin, 0)? == SNIFF_BYTES {
                    return Ok(is_tar(&begin).then_some(file));
                }
            }
            None if !path.parent().is_some_and(Path::exists) => return Ok(None),
            None => {}
        }
        watch.changed().await?;
    }
}
