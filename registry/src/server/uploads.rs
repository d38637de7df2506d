//! Blob uploads: begin, add, ask, finish, cancel, and mounts that need none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, LOCATION, RANGE};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::error::{Code, Failure};
use super::reply::Reply;
use super::request::{Head, RequestBody};
use super::routes::checked_digest;
use super::storage::{Storage, UploadFile};
use super::{State, blocking};
use crate::digest::{Digest, DigestAlgorithm, Hasher};
use crate::reference::is_name;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// How many received buffers may wait for the disk. Each is up to about 400 KiB (hyper's read buffer).
const WAITING_BUFFERS: usize = 8;

/// How long a request waits for the one before on the same upload: a client that lost its connection comes back
/// before we have noticed.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);

/// Uploads without a request for this long lose their running hash; the file is hashed anew at the end.
const HASH_KEPT: Duration = Duration::from_secs(3600);

/// How many running hashes are kept before old ones are looked for.
const HASHES_BEFORE_SWEEP: usize = 256;

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

/// An upload that this request alone works on.
struct Held {
    hash: OwnedMutexGuard<RunningHash>,
    file: UploadFile,
}

impl Uploads {
    async fn hold(&self, state: &State, name: &str, id: &str) -> Result<Held, Failure> {
        let hash = {
            let mut entries = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if entries.len() > HASHES_BEFORE_SWEEP {
                entries.retain(|_, entry| {
                    entry.used.elapsed() < HASH_KEPT || Arc::strong_count(&entry.hash) > 1
                });
            }
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

impl Held {
    /// Adds the request's body. What arrives before a client goes away stays, for it to resume from.
    async fn receive(self, body: &mut RequestBody) -> Result<Self, Failure> {
        if body.is_empty() {
            return Ok(self);
        }
        let (sender, receiver) = mpsc::channel(WAITING_BUFFERS);
        // The guard goes along: a request that is dropped half-way leaves the upload locked until the disk has
        // what had arrived.
        let writer = tokio::task::spawn_blocking(move || self.write(receiver));
        let outcome = loop {
            match body.next().await {
                Ok(Some(bytes)) => {
                    // A writer that is gone has failed, and says how below.
                    if sender.send(bytes).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(failure) => break Err(failure),
            }
        };
        drop(sender);
        let held = writer.await.map_err(|e| Failure::Body(format!("writer: {e}")))?;
        outcome.and(held)
    }

    fn write(mut self, mut receiver: mpsc::Receiver<Bytes>) -> Result<Self, Failure> {
        if self.hash.bytes != self.file.size() || self.hash.hasher.is_none() {
            let hasher = (self.file.size() == 0).then(Hasher::sha256);
            *self.hash = RunningHash { hasher, bytes: 0 };
        }
        while let Some(bytes) = receiver.blocking_recv() {
            self.file.append(&bytes)?;
            if let Some(hasher) = &mut self.hash.hasher {
                hasher.update(&bytes);
                self.hash.bytes += bytes.len() as u64;
            }
        }
        Ok(self)
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
    state: &State,
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
    let (storage, repository) = (state.storage.clone(), name.clone());
    let id = blocking(move || storage.create_upload(&repository)).await?;
    if head.parameter("digest").is_some() && head.parameter("mount").is_none() {
        return finish(state, head, body, name, id).await;
    }
    Ok(progress(StatusCode::ACCEPTED, &name, &id, 0))
}

/// Links the blob into `to` if `from` has it. Without `from`, any repository may: whoever may read here may read all.
fn mount(storage: &Storage, to: &str, from: Option<&str>, digest: &Digest) -> Result<bool, Failure> {
    let there = match from {
        Some(from) => is_name(from) && storage.has_blob(from, digest)?,
        None => *digest.algorithm() == DigestAlgorithm::Sha256 && storage.has_data(digest)?,
    };
    if there {
        storage.link_blob(to, digest, digest)?;
    }
    Ok(there)
}

/// GET: how far the upload is.
pub(super) async fn status(state: &State, name: String, id: String) -> Result<Reply, Failure> {
    let held = state.uploads.hold(state, &name, &id).await?;
    Ok(progress(StatusCode::NO_CONTENT, &name, &id, held.file.size()))
}

/// PATCH: adds bytes.
pub(super) async fn append(
    state: &State,
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
    let held = held.receive(body).await?;
    Ok(progress(StatusCode::ACCEPTED, &name, &id, held.file.size()))
}

/// PUT: adds the last bytes, checks the digest, and makes the upload a blob.
pub(super) async fn finish(
    state: &State,
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
    let mut held = held.receive(body).await?;
    let (storage, repository, upload, wanted) =
        (state.storage.clone(), name.clone(), id.clone(), digest.clone());
    let committed = blocking(move || {
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
pub(super) async fn cancel(state: &State, name: String, id: String) -> Result<Reply, Failure> {
    // Waits for a request that still writes.
    let held = state.uploads.hold(state, &name, &id).await?;
    let (storage, upload) = (state.storage.clone(), id.clone());
    blocking(move || storage.remove_upload(&name, &upload)).await?;
    drop(held);
    state.uploads.forget(&id);
    Ok(Reply::empty(StatusCode::NO_CONTENT).header(UPLOAD_ID, &id))
}

/// Whether the request's `Content-Range`, if any, goes on at `size` and is as long as its body.
fn check_range(head: &Head, size: u64) -> Result<(), Failure> {
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
    if length.is_some_and(|length| length != last - first + 1) {
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
