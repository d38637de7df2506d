//! Blob uploads: begin, add, ask, finish, cancel, and mounts that need none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, LOCATION, RANGE};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};
use tokio::task::JoinHandle;

use super::error::{Code, Failure};
use super::reply::Reply;
use super::request::{Head, RequestBody};
use super::room::Placed;
use super::routes::checked_digest;
use super::storage::{Storage, UploadFile};
use super::{ServerState, blocking};
use crate::digest::{Digest, DigestAlgorithm, Hasher};
use crate::reference::is_name;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// How much of what has come all uploads together hold until it is written: as much as [`WRITERS`] write at a time, each with
/// [`WAITING_BUFFERS`]. What comes after that waits at its sender.
pub(super) const ROOM_BYTES: u32 = 64 << 20;

/// How many received buffers of a request may wait for the disk. Each is up to [`super::connections::READ_BUFFER_BYTES`].
const WAITING_BUFFERS: usize = 8;

/// How many uploads write at a time. More only queue at the disk, and would take the threads that readers need.
pub(super) const WRITERS: usize = 32;

/// How long a request waits for the one before on the same upload: a client that lost its connection comes back
/// before we have noticed.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// Uploads without a request for this long lose their running hash; the file is hashed again at the end.
const HASH_KEPT: Duration = Duration::from_secs(3600);

/// How many running hashes are kept before old ones are looked for, and how many of uploads without a request at most.
const HASHES_BEFORE_SWEEP: usize = 256;
const IDLE_HASHES_KEPT: usize = 4096;

/// The running hashes of uploads. An upload not among them, as after a restart, is hashed from its file.
#[derive(Default)]
pub(super) struct Uploads(SyncMutex<HashMap<String, Entry>>);

struct Entry {
    hash: Arc<Mutex<RunningHash>>,
    used: Instant,
}

/// The hash of an upload's first bytes. Its lock is also what keeps two requests from writing one upload.
#[derive(Default)]
struct RunningHash {
    hasher: Option<Hasher>,
    bytes: u64,
}

/// What an upload is doing: nothing, or writing what has arrived.
enum At {
    Rest(Box<Held>),
    Work(JoinHandle<Result<Box<Held>, Failure>>),
}

impl At {
    /// The upload, when its work is done; waits for ever where there is none.
    async fn done(&mut self) -> Result<Box<Held>, Failure> {
        match self {
            Self::Rest(_) => std::future::pending().await,
            Self::Work(job) => job.await.map_err(|e| Failure::Body(format!("writer: {e}")))?,
        }
    }
}

/// An upload that this request alone works on.
struct Held {
    hash: OwnedMutexGuard<RunningHash>,
    file: UploadFile,
}

impl Uploads {
    async fn hold(&self, state: &ServerState, name: &str, id: &str) -> Result<Held, Failure> {
        let hash = {
            let mut entries = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            sweep(&mut entries);
            let fresh = || Entry { hash: Arc::default(), used: Instant::now() };
            let entry = entries.entry(id.to_owned()).or_insert_with(fresh);
            entry.used = Instant::now();
            entry.hash.clone()
        };
        let locked = tokio::time::timeout(BUSY_PATIENCE, hash.lock_owned()).await;
        let hash = locked.map_err(|_| Failure::new(Code::Busy, id))?;
        let (storage, name, upload) = (state.storage.clone(), name.to_owned(), id.to_owned());
        let file = blocking(move || storage.open_upload(&name, &upload)).await?;
        let Some(file) = file else {
            self.forget(id);
            return Err(Failure::new(Code::BlobUploadUnknown, id));
        };
        Ok(Held { hash, file })
    }

    fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(id);
    }
}

/// Lets go of hashes that nobody uses: old ones, and of too many those that were used longest ago.
fn sweep(entries: &mut HashMap<String, Entry>) {
    if entries.len() <= HASHES_BEFORE_SWEEP {
        return;
    }
    let in_use = |entry: &Entry| Arc::strong_count(&entry.hash) > 1;
    entries.retain(|_, entry| entry.used.elapsed() < HASH_KEPT || in_use(entry));
    let mut idle: Vec<Instant> =
        entries.values().filter(|entry| !in_use(entry)).map(|entry| entry.used).collect();
    if idle.len() > IDLE_HASHES_KEPT {
        // Half of them, so that this is seldom.
        let (_, middle, _) = idle.select_nth_unstable(IDLE_HASHES_KEPT / 2);
        let middle = *middle;
        entries.retain(|_, entry| entry.used > middle || in_use(entry));
    }
}

impl Held {
    /// Adds the request's body. What arrives before a client goes away stays, for it to resume from.
    ///
    /// Bytes are written in jobs of what has arrived while the job before ran: a fast client keeps a thread busy and the
    /// next bytes ready, a slow one holds neither thread nor memory while it sends nothing.
    async fn receive(self, state: &ServerState, body: &mut RequestBody) -> Result<Self, Failure> {
        // A stream, as that keeps its place in the queue for room where the disk is done first.
        let mut arriving = std::pin::pin!(stream::try_unfold(body, |body| async move {
            let Some(bytes) = body.next().await? else { return Ok(None) };
            Ok(Some((state.room.place(bytes).await?, body)))
        }));
        let mut waiting = Vec::new();
        let mut at_work = At::Rest(Box::new(self));
        let mut ended = None;
        loop {
            at_work = match at_work {
                At::Rest(held) if !waiting.is_empty() => {
                    let bytes = std::mem::take(&mut waiting);
                    At::Work(tokio::spawn(held.job(bytes, state.disk.clone())))
                }
                At::Rest(held) => match ended.take() {
                    Some(Ok(())) => return Ok(*held),
                    Some(Err(failure)) => return Err(failure),
                    None => At::Rest(held),
                },
                work => work,
            };
            let more = ended.is_none() && waiting.len() < WAITING_BUFFERS;
            tokio::select! {
                next = arriving.next(), if more => match next {
                    Some(Ok(bytes)) => waiting.push(bytes),
                    Some(Err(failure)) => ended = Some(Err(failure)),
                    None => ended = Some(Ok(())),
                },
                written = at_work.done() => at_work = At::Rest(written?),
            }
        }
    }

    /// Writes `bytes` when the disk has a place for it. The guard goes along: a request that is dropped half-way leaves
    /// the upload locked until the disk has what had arrived.
    async fn job(
        mut self: Box<Self>,
        bytes: Vec<Placed>,
        disk: Arc<Semaphore>,
    ) -> Result<Box<Self>, Failure> {
        let place = disk.acquire_owned().await.map_err(|e| Failure::Body(format!("writer: {e}")))?;
        blocking(move || {
            self.write(bytes)?;
            drop(place);
            Ok(self)
        })
        .await
    }

    fn write(&mut self, buffers: Vec<Placed>) -> Result<(), Failure> {
        if self.hash.bytes != self.file.size() || self.hash.hasher.is_none() {
            let hasher = (self.file.size() == 0).then(Hasher::sha256);
            *self.hash = RunningHash { hasher, bytes: 0 };
        }
        for bytes in buffers {
            self.file.append(&bytes)?;
            if let Some(hasher) = &mut self.hash.hasher {
                hasher.update(&bytes);
                self.hash.bytes += bytes.len() as u64;
            }
        }
        Ok(())
    }

    /// The SHA-256 digest of all that has arrived.
    fn content_digest(&mut self) -> Result<Digest, Failure> {
        match self.hash.hasher.take() {
            Some(hasher) if self.hash.bytes == self.file.size() => Ok(hasher.finish()),
            _ => {
                let mut hasher = Hasher::sha256();
                self.file.hash(&mut hasher)?;
                Ok(hasher.finish())
            }
        }
    }
}

/// POST: begins an upload, takes a whole blob (`digest`), or mounts one (`mount`).
pub(super) async fn begin(
    state: &ServerState,
    head: &Head,
    body: &mut RequestBody,
    name: String,
) -> Result<Reply, Failure> {
    if let Some(digest) = head.parameter("mount") {
        let digest = checked_digest(digest)?;
        let (storage, to, from) =
            (state.storage.clone(), name.clone(), head.parameter("from").map(str::to_owned));
        let wanted = digest.clone();
        if blocking(move || mount(&storage, &to, from.as_deref(), &wanted)).await? {
            return Ok(created(&name, &digest));
        }
    }
    let digest = head.parameter("digest").filter(|_| head.parameter("mount").is_none());
    if let Some(digest) = digest {
        // Refused before there is anything to be removed.
        checked_digest(digest)?;
        check_range(head, 0)?;
    }
    let (storage, repository) = (state.storage.clone(), name.clone());
    let id = blocking(move || storage.create_upload(&repository)).await?;
    if digest.is_none() {
        return Ok(progress(StatusCode::ACCEPTED, &name, &id, 0));
    }
    let mut upload = Unnamed(Some((state.storage.clone(), name.clone(), id.clone())));
    let finished = finish(state, head, body, name, id.clone()).await;
    match &finished {
        Ok(_) => upload.0 = None,
        Err(_) => state.uploads.forget(&id),
    }
    finished
}

/// Repository and id of an upload that no client was told of: what there is of it when this is dropped is good for nobody.
struct Unnamed(Option<(Storage, String, String)>);

impl Drop for Unnamed {
    fn drop(&mut self) {
        let (Some((storage, name, id)), Ok(runtime)) = (self.0.take(), Handle::try_current()) else { return };
        runtime.spawn_blocking(move || {
            if let Err(error) = storage.remove_upload(&name, &id) {
                tracing::warn!(%error, "an upload that was broken off is left until it is stale");
            }
        });
    }
}

/// Links the blob into `to` if `from` has it. Without `from`, any repository may: whoever may read here may read all.
fn mount(storage: &Storage, to: &str, from: Option<&str>, digest: &Digest) -> Result<bool, Failure> {
    // Stored under its SHA-256, whatever digest it goes by.
    let content = match from {
        Some(from) if is_name(from) => storage.layout.content_of(from, digest)?,
        None if *digest.algorithm() == DigestAlgorithm::Sha256 && storage.layout.has_data(digest)? => {
            Some(digest.clone())
        }
        _ => None,
    };
    if let Some(content) = &content {
        storage.mount_blob(to, digest, content)?;
    }
    Ok(content.is_some())
}

/// GET: how far the upload is.
pub(super) async fn status(state: &ServerState, name: String, id: String) -> Result<Reply, Failure> {
    let held = state.uploads.hold(state, &name, &id).await?;
    Ok(progress(StatusCode::NO_CONTENT, &name, &id, held.file.size()))
}

/// PATCH: adds bytes.
pub(super) async fn append(
    state: &ServerState,
    head: &Head,
    body: &mut RequestBody,
    name: String,
    id: String,
) -> Result<Reply, Failure> {
    let held = state.uploads.hold(state, &name, &id).await?;
    if let Err(failure) = check_range(head, held.file.size()) {
        let reply = Reply::failure(&failure);
        let (size, range) = (held.file.size(), failure.code() == Code::RangeInvalid);
        return if range { Ok(located(reply, &name, &id, size)) } else { Err(failure) };
    }
    let held = held.receive(state, body).await?;
    Ok(progress(StatusCode::ACCEPTED, &name, &id, held.file.size()))
}

/// PUT: adds the last bytes, checks the digest, and makes the upload a blob.
pub(super) async fn finish(
    state: &ServerState,
    head: &Head,
    body: &mut RequestBody,
    name: String,
    id: String,
) -> Result<Reply, Failure> {
    let digest =
        head.parameter("digest").ok_or_else(|| Failure::new(Code::DigestInvalid, "no digest parameter"));
    let digest = checked_digest(digest?)?;
    let held = state.uploads.hold(state, &name, &id).await?;
    check_range(head, held.file.size())?;
    let mut held = held.receive(state, body).await?;
    let (storage, repository, upload, wanted) =
        (state.storage.clone(), name.clone(), id.clone(), digest.clone());
    let committed = blocking(move || {
        // Files are named by SHA-256 whatever the client names the blob by: so they are laid out on disk.
        let content = held.content_digest()?;
        let actual = match wanted.algorithm() {
            DigestAlgorithm::Sha256 => content.clone(),
            _ => {
                let mut hasher =
                    Hasher::like(&wanted).map_err(|e| Failure::new(Code::DigestInvalid, e.to_string()))?;
                held.file.hash(&mut hasher)?;
                hasher.finish()
            }
        };
        if actual != wanted {
            // What was received is no good for anything: a client that goes on with it would fail in the same way.
            storage.remove_upload(&repository, &upload)?;
            let detail = format!("expected {wanted}, the {} bytes received have {actual}", held.file.size());
            return Err(Failure::new(Code::DigestInvalid, detail));
        }
        storage.commit_upload(&repository, &upload, held.file, &content, &wanted)
    });
    let committed = committed.await;
    state.uploads.forget(&id);
    committed.map(|()| created(&name, &digest))
}

/// DELETE: forgets the upload.
pub(super) async fn cancel(state: &ServerState, name: String, id: String) -> Result<Reply, Failure> {
    // Waits for a request that still writes.
    let held = state.uploads.hold(state, &name, &id).await?;
    let (storage, upload) = (state.storage.clone(), id.clone());
    blocking(move || storage.remove_upload(&name, &upload)).await?;
    drop(held);
    state.uploads.forget(&id);
    Ok(Reply::empty(StatusCode::NO_CONTENT).header(UPLOAD_ID, &id))
}

/// Whether the request's `Content-Range`, if any, goes on at `size` and is as long as its body.
pub(super) fn check_range(head: &Head, size: u64) -> Result<(), Failure> {
    let Some(text) = head.header(CONTENT_RANGE) else { return Ok(()) };
    let invalid =
        || Failure::new(Code::RangeInvalid, format!("Content-Range {text}: the upload has {size} bytes"));
    let range = text.strip_prefix("bytes ").unwrap_or(text);
    let range = range.split('/').next().unwrap_or(range);
    let (first, last) = range.split_once('-').ok_or_else(invalid)?;
    let first: u64 = first.parse().map_err(|_| invalid())?;
    let last: u64 = last.parse().map_err(|_| invalid())?;
    if first != size || last < first {
        return Err(invalid());
    }
    let length = head.header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| (last - first).checked_add(1) != Some(length)) {
        return Err(Failure::new(
            Code::SizeInvalid,
            format!("Content-Range {text} and Content-Length differ"),
        ));
    }
    Ok(())
}

fn progress(status: StatusCode, name: &str, id: &str, size: u64) -> Reply {
    located(Reply::empty(status), name, id, size)
}

fn located(reply: Reply, name: &str, id: &str, size: u64) -> Reply {
    reply
        .header(LOCATION, &format!("/v2/{name}/blobs/uploads/{id}"))
        // There is no form for nothing: CNCF distribution says 0-0 too.
        .header(RANGE, &format!("0-{}", size.saturating_sub(1)))
        .header(UPLOAD_ID, id)
}

fn created(name: &str, digest: &Digest) -> Reply {
    Reply::empty(StatusCode::CREATED).header(LOCATION, &format!("/v2/{name}/blobs/{digest}")).digest(digest)
}
