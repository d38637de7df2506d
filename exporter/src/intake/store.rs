//! A content store as buildkitd sees one: containerd's content service, of which it calls `Write` alone.
//!
//! For each blob: STAT, WRITE of up to 1 MiB each, COMMIT, every one answered before the next. Children come before the
//! manifests that name them. A blob that is here already is answered with AlreadyExists and not sent.

use std::time::SystemTime;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message;
use registry::digest::Digest;

use super::Intake;
use crate::build::ingest::Ingest;
use crate::build::{BlobLock, Build, Claim, Output, OutputError};
use crate::content::{WRITE, WriteContentRequest, WriteContentResponse, action};
use crate::grpc::frame::MessageReader;
use crate::grpc::{Code, Status};
use crate::http2::pump::until_reset;
use crate::http2::respond;

/// The largest message taken. buildkitd writes 1 MiB at once; its gRPC sends 16 MiB at most.
const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// Serves one call to the store.
pub(crate) async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    intake: &Intake,
    output: &Output,
) {
    let (parts, body) = request.into_parts();
    if parts.uri.path() != WRITE {
        let message =
            format!("{}: a type=nydus-cluster output takes blobs and does nothing else", parts.uri.path());
        return respond::refuse(&mut respond, &Status::new(Code::Unimplemented, message));
    }
    let Ok(mut send) = respond.send_response(respond::head(), false) else { return };
    let reader = MessageReader::new(body, MESSAGE_LIMIT_BYTES);
    let status = tokio::select! {
        written = write(reader, &mut send, intake, output) => match written {
            Ok(()) => Status::new(Code::Ok, ""),
            Err(status) => status,
        },
        () = intake.build.over.cancelled() => Status::new(Code::Cancelled, "the build is over"),
    };
    respond::finish(&mut send, &status);
}

/// One blob, from its first STAT to its COMMIT.
async fn write(
    mut reader: MessageReader,
    send: &mut SendStream<Bytes>,
    intake: &Intake,
    output: &Output,
) -> Result<(), Status> {
    let mut blob: Option<Blob<'_>> = None;
    while let Some(message) = until_reset(send, reader.message()).await.map_err(|error| error.status())?? {
        let request = WriteContentRequest::decode(message)
            .map_err(|error| Status::new(Code::InvalidArgument, format!("WriteContentRequest: {error}")))?;
        // Boxed: it holds all that a conversion and a push need, and would be copied from call to call on the stack.
        let work = Box::pin(async {
            let mut current = match blob.take() {
                Some(blob) => blob,
                None => Blob::begin(&request, intake, output).await?,
            };
            let response = current.step(request).await?;
            Ok::<_, Status>((current, response))
        });
        let (current, response) = until_reset(send, work).await.map_err(|error| error.status())??;
        respond::message(send, &response.encode_to_vec()).await?;
        if response.action == action::COMMIT {
            return Ok(());
        }
        blob = Some(current);
    }
    // The caller left without COMMIT: what came is dropped.
    Ok(())
}

/// What the caller need not send.
fn exists(digest: &Digest) -> Status {
    Status::new(Code::AlreadyExists, format!("content {digest}: already exists"))
}

/// A blob being written.
struct Blob<'a> {
    build: &'a Build,
    expected: Digest,
    total: i64,
    started: SystemTime,
    /// None after COMMIT.
    ingest: Option<Ingest<'a>>,
    /// No other stream writes this blob into this output meanwhile.
    _lock: BlobLock<'a>,
}

impl<'a> Blob<'a> {
    async fn begin(
        request: &WriteContentRequest,
        intake: &'a Intake,
        output: &'a Output,
    ) -> Result<Self, Status> {
        let Intake { build, local } = intake;
        let invalid =
            |reason: String| Status::new(Code::InvalidArgument, format!("Write {}: {reason}", request.r#ref));
        let expected: Digest = request.expected.parse().map_err(|_| {
            invalid(format!("digest {:?}: expected one such as sha256:HEX", request.expected))
        })?;
        let total = u64::try_from(request.total)
            .map_err(|_| invalid(format!("total size {}: expected 0 or more", request.total)))?;
        // The caller tries again when told that another stream has it.
        let lock = output.lock(&expected).ok_or_else(|| {
            Status::new(Code::Unavailable, format!("ref {} locked: it is being written", request.r#ref))
        })?;
        let failed = |error: OutputError| super::fail(build, &error);
        let mut claim = output.claim(&expected).await.map_err(failed)?;
        if matches!(claim, Claim::Here) {
            tracing::debug!(build = build.reference, digest = %expected, "layer is here already");
            return Err(exists(&expected));
        }
        // What is converted already is not converted later.
        let ahead = local.as_ref().is_some_and(|local| local.is_converting(&expected, total));
        if !ahead
            && matches!(claim, Claim::Absent(_))
            && output.leaves(&expected, total).await.map_err(failed)?
        {
            return Err(exists(&expected));
        }
        if let Some(local) = local {
            let left = local.take(output, &expected, total, claim).await;
            match left.map_err(failed)? {
                Some(left) => claim = left,
                None => return Err(exists(&expected)),
            }
        }
        let ingest = Ingest::new(output, expected.clone(), total, Some(claim)).map_err(failed)?;
        let (started, ingest) = (SystemTime::now(), Some(ingest));
        Ok(Self { build, expected, total: request.total, started, ingest, _lock: lock })
    }

    /// Does what one message asks for.
    async fn step(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let committed = || Status::new(Code::FailedPrecondition, "the blob is committed");
        let mut ingest = self.ingest.take().ok_or_else(committed)?;
        let offset = i64::try_from(ingest.received()).unwrap_or(i64::MAX);
        if !request.data.is_empty() {
            if request.offset != offset {
                let message =
                    format!("{}: write at {}: expected one at {offset}", self.expected, request.offset);
                return Err(Status::new(Code::InvalidArgument, message));
            }
            ingest.write(request.data).await.map_err(|error| super::fail(self.build, &error))?;
        }
        let offset = i64::try_from(ingest.received()).unwrap_or(i64::MAX);
        let mut response = self.response(request.action, offset);
        match request.action {
            action::STAT | action::WRITE => self.ingest = Some(ingest),
            action::COMMIT => {
                let digest = ingest.commit().await.map_err(|error| super::fail(self.build, &error))?;
                response.digest = digest.to_string();
            }
            unknown => {
                let message = format!("{}: write action {unknown}: expected 0, 1 or 2", self.expected);
                return Err(Status::new(Code::InvalidArgument, message));
            }
        }
        Ok(response)
    }

    fn response(&self, action: i32, offset: i64) -> WriteContentResponse {
        WriteContentResponse {
            action,
            started_at: Some(self.started.into()),
            updated_at: Some(SystemTime::now().into()),
            offset,
            total: self.total,
            digest: String::new(),
        }
    }
}
