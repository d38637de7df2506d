//! Blobs that are not here, and that another repository has: whoever asks for one gets it from there.

use std::collections::HashMap;

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
            true => self.fetch(digest, part, first, len).await.map_err(|error| failure(&error))?,
            false => {
                let there = self.client.blob_size(&self.repository, digest).await;
                if there.map_err(|error| failure(&error))?.is_none() {
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
