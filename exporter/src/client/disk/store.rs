//! A directory of the client's, which it serves as a content store. The client itself writes the index of what is there, by
//! what the answer to Solve says of the image.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use h2::client::SendRequest;
use image::destination::{BlobWriter, Destination, StoreError, Storing};
use image::document::Stored;
use prost::Message;
use registry::digest::Digest;
use registry::reference::Reference;

use super::refused;
use crate::client::{CLIENT, EXPORT_STORE, STORE_ID};
use crate::content::{
    ABORT, AbortRequest, INFO, InfoRequest, WRITE, WriteContentRequest, WriteContentResponse, action,
};
use crate::grpc::{Code, Status};
use crate::http2::call::{Call, unary};

/// The most that is sent in one message; clients take 16 MiB.
const PIECE_BYTES: usize = 1 << 20;

/// The content store of the client for its outputs.
pub(crate) struct ClientStore {
    client: SendRequest<Bytes>,
    /// What the names of blobs under way begin with: those of a build that broke off may still be there.
    prefix: String,
    next: AtomicU64,
}

impl std::fmt::Debug for ClientStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A blob on its way there. Dropped on the way, it is given up as well as that is possible: what came of it would stay with the
/// client.
struct ClientBlob {
    client: SendRequest<Bytes>,
    /// `None` once it is there, or given up.
    call: Option<Call>,
    reference: String,
    offset: u64,
}

impl ClientStore {
    /// That of the client which `client` opens streams to, for the build called `build`.
    pub(crate) fn new(client: SendRequest<Bytes>, build: &str) -> Self {
        Self { client, prefix: format!("nydus-cluster-{build}"), next: AtomicU64::new(0) }
    }
}

fn headers() -> [(&'static str, String); 1] {
    [(STORE_ID, EXPORT_STORE.to_owned())]
}

impl Destination for ClientStore {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        async move {
            let reference = format!("{}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed));
            let client = self.client.clone();
            let call = Call::open(client.clone(), CLIENT, WRITE, &headers()).await.map_err(refused)?;
            let mut blob = ClientBlob { client, call: Some(call), reference, offset: 0 };
            blob.exchange(action::STAT, Bytes::new(), None).await.map_err(refused)?;
            Ok(Box::new(blob) as Box<dyn BlobWriter>)
        }
        .boxed()
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool> {
        async move {
            let request = InfoRequest { digest: digest.to_string() };
            match unary(self.client.clone(), CLIENT, INFO, &headers(), &request.encode_to_vec()).await {
                Ok(_) => Ok(true),
                Err(status) if status.code == Code::NotFound => Ok(false),
                Err(status) => Err(refused(status)),
            }
        }
        .boxed()
    }

    fn publish<'a>(&'a self, _names: &'a [Reference], _root: Option<&'a Stored>) -> Storing<'a, ()> {
        ready(Ok(())).boxed()
    }
}

impl ClientBlob {
    /// Sends one message and takes its answer.
    async fn exchange(&mut self, what: i32, data: Bytes, digest: Option<&Digest>) -> Result<(), Status> {
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let size = data.len() as u64;
        let request = WriteContentRequest {
            action: what,
            r#ref: self.reference.clone(),
            total: digest.map_or(0, |_| number(self.offset)),
            expected: digest.map(ToString::to_string).unwrap_or_default(),
            offset: number(self.offset),
            data,
        };
        let ended = || Status::new(Code::Internal, format!("{CLIENT} ended the write of a blob"));
        let call = self.call.as_mut().ok_or_else(ended)?;
        // Where that fails, the answer says why.
        let _ = call.send(&request.encode_to_vec()).await;
        let answer = call.receive().await?.ok_or_else(ended)?;
        let answer = WriteContentResponse::decode(answer);
        let answer = answer.map_err(|error| Status::new(Code::Internal, format!("{CLIENT}: {error}")))?;
        self.offset += size;
        if what == action::WRITE && answer.offset != number(self.offset) {
            let message = format!("{CLIENT} has {} of {} bytes of a blob", answer.offset, self.offset);
            return Err(Status::new(Code::DataLoss, message));
        }
        Ok(())
    }
}

impl BlobWriter for ClientBlob {
    fn write(&mut self, mut data: Bytes) -> Storing<'_, ()> {
        async move {
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(PIECE_BYTES));
                self.exchange(action::WRITE, piece, None).await.map_err(refused)?;
            }
            Ok(())
        }
        .boxed()
    }

    /// The client checks the digest.
    fn finish<'a>(mut self: Box<Self>, digest: &'a Digest) -> Storing<'a, u64> {
        async move {
            match self.exchange(action::COMMIT, Bytes::new(), Some(digest)).await {
                // Another layer gave the same blob.
                Ok(()) => {}
                Err(status) if status.code == Code::AlreadyExists => {}
                Err(status) => return Err(refused(status)),
            }
            self.call = None;
            Ok::<_, StoreError>(self.offset)
        }
        .boxed()
    }

    fn cancel(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        // The client locks what is written until the stream has ended.
        drop(self.call.take());
        give_up(self.client.clone(), std::mem::take(&mut self.reference)).boxed()
    }
}

impl Drop for ClientBlob {
    fn drop(&mut self) {
        let Some(call) = self.call.take() else { return };
        drop(call);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(give_up(self.client.clone(), std::mem::take(&mut self.reference)));
        }
    }
}

/// Has the client forget what came of a blob.
async fn give_up(client: SendRequest<Bytes>, reference: String) {
    let request = AbortRequest { r#ref: reference };
    if let Err(error) = unary(client, CLIENT, ABORT, &headers(), &request.encode_to_vec()).await {
        tracing::debug!(%error, "blob not given up at the client");
    }
}
