//! Layers that buildkitd need not send: which flattened image they become is known when the last has been announced, and a known
//! one needs none of them. For another they are read from buildkitd's own content service, which has them as long as it exports.

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use h2::client::SendRequest;
use prost::Message;
use registry::digest::Digest;

use super::ingest::{Ingest, SNIFF_BYTES, is_document};
use super::{Claim, Output, OutputError};
use crate::content::{READ, ReadContentRequest, ReadContentResponse};
use crate::grpc::{Code, Status};
use crate::http2::call::Call;

/// What errors call the other side.
const BUILDKITD: &str = "buildkitd";

/// buildkitd's content service.
#[derive(Clone)]
pub(crate) struct KeptBlobs(SendRequest<Bytes>);

impl KeptBlobs {
    /// That of the buildkitd behind `streams`.
    pub(crate) fn new(streams: SendRequest<Bytes>) -> Self {
        Self(streams)
    }

    /// Whether buildkitd gives out the blob `digest` of `total` bytes, and it is a layer. Where that cannot be found out, it is not.
    pub(crate) async fn has_layer(&self, digest: &Digest, total: u64) -> bool {
        match self.begin_of(digest, total.min(SNIFF_BYTES as u64)).await {
            Ok(begin) => !begin.is_empty() && !is_document(&begin),
            Err(error) => {
                tracing::debug!(%error, layer = %digest, "buildkitd does not keep it for us");
                false
            }
        }
    }

    async fn begin_of(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, Status> {
        let mut reading = self.read(digest, size).await?;
        let mut begin = Vec::new();
        while let Some(data) = next(&mut reading).await? {
            begin.extend_from_slice(&data);
        }
        Ok(begin)
    }

    /// Reads the layer `digest` of `total` bytes into what `output` makes of it. A named type: what takes blobs puts images together,
    /// and what puts images together reads blobs here.
    pub(crate) fn feed<'a>(
        &'a self,
        output: &'a Output,
        digest: &'a Digest,
        total: u64,
    ) -> BoxFuture<'a, Result<(), OutputError>> {
        let failed = |status: Status| output.kept_error(digest, status);
        async move {
            let mut ingest = Ingest::new(output, digest.clone(), total, Some(Claim::Absent(None)))?;
            let mut reading = self.read(digest, total).await.map_err(failed)?;
            while let Some(data) = next(&mut reading).await.map_err(failed)? {
                ingest.write(data).await?;
            }
            ingest.commit().await?;
            Ok(())
        }
        .boxed()
    }

    async fn read(&self, digest: &Digest, size: u64) -> Result<Call, Status> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size };
        let mut reading = Call::open(self.0.clone(), BUILDKITD, READ, &[]).await?;
        reading.send(&request.encode_to_vec()).await?;
        reading.close();
        Ok(reading)
    }
}

async fn next(reading: &mut Call) -> Result<Option<Bytes>, Status> {
    let Some(message) = reading.receive().await? else { return Ok(None) };
    let malformed = |error| Status::new(Code::Internal, format!("ReadContentResponse: {error}"));
    Ok(Some(ReadContentResponse::decode(message).map_err(malformed)?.data))
}
