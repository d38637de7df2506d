//! Blobs that are not here, and that another repository has: whoever asks for one gets it from there.

use std::collections::HashMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};

use super::blobs::{AskedRange, BlobRequest};
use super::body::{Body, FetchedBody};
use super::error::{Code, Failure};
use super::reply::Reply;
use crate::client::{Client, Error};
use crate::digest::Digest;
use crate::reference::Repository;

/// Such blobs. Nothing of them is kept.
#[derive(Clone, Debug)]
pub struct BlobsElsewhere {
    /// By it they are fetched.
    pub client: Client,
    /// The repository that has them.
    pub repository: Repository,
    /// Their sizes in bytes, by the repositories here that they belong to.
    pub blobs: HashMap<String, HashMap<Digest, u64>>,
    /// How long it may take until one begins to come, retries and all. Then whoever asks here is told so: with less patience than that it
    /// would hear of this server alone, and have no time left to ask somebody else.
    pub patience: Duration,
}

impl BlobsElsewhere {
    /// The size of a blob of the repository `name` here, if it is one of these.
    pub(super) fn size(&self, name: &str, digest: &Digest) -> Option<u64> {
        self.blobs.get(name)?.get(digest).copied()
    }

    /// GET and HEAD of one of them. HEAD asks there as well: that is how clients find out whether they can read it.
    pub(super) async fn get(
        &self,
        request: &BlobRequest,
        digest: &Digest,
        size: u64,
    ) -> Result<Reply, Failure> {
        let (part, first, len) = request.part(size);
        let is_sent = request.send && !request.unchanged && part != AskedRange::Unsatisfiable;
        let body = match is_sent {
            true => self.in_time(digest, self.fetch(digest, part, first, len)).await?,
            false => {
                let there = self.in_time(digest, self.client.blob_size(&self.repository, digest)).await?;
                if there.is_none() {
                    return Err(Failure::new(
                        Code::BlobUnknown,
                        format!("{digest} is not in {}", self.repository),
                    ));
                }
                Body::Bytes(Default::default())
            }
        };
        Ok(request.reply(size, part, len, body))
    }

    /// Waits for what the other repository says of a blob.
    async fn in_time<T>(
        &self,
        digest: &Digest,
        said: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        let said = tokio::time::timeout(self.patience, said).await.map_err(|_| {
            let (repository, patience) = (&self.repository, self.patience);
            tracing::warn!(%repository, %digest, ?patience, "no answer for a blob that is asked for here");
            Failure::new(Code::Elsewhere, format!("{repository} did not answer within {patience:?}"))
        })?;
        said.map_err(|error| failure(&error))
    }

    /// Waits for the first bytes: until then it can be said that they do not come.
    async fn fetch(&self, digest: &Digest, part: AskedRange, first: u64, len: u64) -> Result<Body, Error> {
        let mut reader = match part {
            AskedRange::Whole => self.client.blob(&self.repository, digest)?,
            AskedRange::Range { .. } | AskedRange::Unsatisfiable => {
                self.client.blob_part(&self.repository, digest, first, len)?
            }
        };
        let begin = reader.next().await?;
        let pieces = stream::iter(begin.map(Ok)).chain(reader.into_stream()).boxed();
        Ok(Body::Fetched(FetchedBody::new(pieces, len)))
    }
}

fn failure(error: &Error) -> Failure {
    let code = match error {
        error if error.is_not_found() => Code::BlobUnknown,
        error if error.is_denied() => Code::Denied,
        _ => Code::Elsewhere,
    };
    Failure::new(code, error.to_string())
}
