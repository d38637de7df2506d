//! Blobs: whole, in parts, pushed, mounted, deleted.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderValue, Method, StatusCode};

use super::challenge::Scopes;
use super::endpoint::Endpoint;
use super::reader::{BlobReader, ReadFrom, Reading, content_range};
use super::retry::Retry;
use super::transport::Exchange;
use super::{Client, Error, Target};
use crate::digest::{self, Digest};
use crate::reference::Repository;

impl Client {
    /// The blob's size, `None` if the repository does not have it.
    pub async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<Option<u64>, Error> {
        self.size_from(repository, digest, ReadFrom::Mirrors, &Scopes::pull(repository.name())).await
    }

    /// Whether the registry itself, not a mirror, has the blob in `repository`: what a push must know.
    pub async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        // The token that the push needs anyway.
        let scopes = Scopes::push(repository.name());
        Ok(self.size_from(repository, digest, ReadFrom::Registry, &scopes).await?.is_some())
    }

    async fn size_from(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: ReadFrom,
        scopes: &Scopes,
    ) -> Result<Option<u64>, Error> {
        let target = Target::blob(Method::HEAD, repository, digest);
        let retry = self.attempts(&target, Some(self.config().timeouts.operation));
        let mut reading = Reading::new(self.transport.clone(), target, from, retry)?;
        loop {
            let attempt = self.size_at(reading.endpoint(), reading.target(), repository, digest, scopes);
            match reading.retry.bound(attempt).await {
                Ok(size) => return Ok(Some(size)),
                Err(error) if error.is_not_found() && !reading.endpoint().is_mirror() => return Ok(None),
                Err(error) => reading.failed(error).await?,
            }
        }
    }

    /// The blob's size as `endpoint` tells it: by HEAD, or where that is refused by a GET of one byte. Stores behind
    /// redirects refuse HEAD to URLs that were signed for GET.
    async fn size_at(
        &self,
        endpoint: &Endpoint,
        target: Target,
        repository: &Repository,
        digest: &Digest,
        scopes: &Scopes,
    ) -> Result<u64, Error> {
        let url = endpoint.url(&target, repository, &format!("blobs/{digest}"))?;
        let head = Exchange::new(Method::HEAD, url.clone());
        match self.transport.call_expecting(&target, endpoint, scopes, head, &[StatusCode::OK]).await {
            Ok(response) => {
                if let Some(size) = response.content_length() {
                    return Ok(size);
                }
            }
            Err(error) if !is_refused_method(&error) => return Err(error),
            Err(error) => tracing::debug!(%error, "HEAD is refused: asking for the first byte"),
        }
        let target = Target { method: Method::GET, ..target };
        let mut first = Exchange::new(Method::GET, url);
        first.headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let good = [StatusCode::OK, StatusCode::PARTIAL_CONTENT, StatusCode::RANGE_NOT_SATISFIABLE];
        let response = self.transport.call_expecting(&target, endpoint, scopes, first, &good).await?;
        let text = response.header(CONTENT_RANGE).unwrap_or_default();
        let size = match response.status() {
            // No range support: everything is announced, and left unread.
            StatusCode::OK => response.content_length(),
            // A blob of no bytes has no first one: `bytes */0`.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                text.rsplit_once('/').and_then(|(_, total)| total.parse().ok())
            }
            _ => content_range(text).and_then(|(_, _, total)| total),
        };
        size.ok_or_else(|| {
            Error::protocol(&target, "neither Content-Length nor Content-Range says how large the blob is")
        })
    }

    /// The blob's bytes as they arrive, verified against `digest` at the end.
    pub fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobReader, Error> {
        let retry = self.attempts(&Target::blob(Method::GET, repository, digest), None);
        BlobReader::new(self.transport.clone(), retry, repository, digest, None)
    }

    /// `len` bytes of the blob from `offset` on, as they arrive. Not verified: the digest is the whole blob's.
    pub fn blob_part(
        &self,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
        len: u64,
    ) -> Result<BlobReader, Error> {
        let retry = self.attempts(&Target::blob(Method::GET, repository, digest), None);
        self.part(retry, repository, digest, offset, len)
    }

    /// `len` bytes of the blob from `offset` on, all of them, within the deadline of small operations. Not
    /// verified: the digest is the whole blob's.
    pub async fn blob_range(
        &self,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, Error> {
        let target = Target::blob(Method::GET, repository, digest);
        let retry = self.attempts(&target, Some(self.config().timeouts.operation));
        self.part(retry, repository, digest, offset, len)?.collect().await
    }

    /// Attempts at reading what `target` names, counted for whoever wants to know; all together end `after` from now, if that is said.
    fn attempts(&self, target: &Target, after: Option<Duration>) -> Retry {
        let limits = &self.config().retries;
        let retry = match after {
            Some(after) => Retry::within(limits, target, after),
            None => Retry::new(limits, target),
        };
        retry.counted(self.retries.as_ref())
    }

    fn part(
        &self,
        retry: Retry,
        repository: &Repository,
        digest: &Digest,
        offset: u64,
        len: u64,
    ) -> Result<BlobReader, Error> {
        let end = offset.checked_add(len).ok_or_else(|| {
            let target = Target::blob(Method::GET, repository, digest);
            Error::protocol(&target, format!("a range of {len} bytes at {offset} has no end"))
        })?;
        BlobReader::new(self.transport.clone(), retry, repository, digest, Some(offset..end))
    }

    /// Pushes `data` unless the repository has it, and returns its digest.
    pub async fn push_blob(&self, repository: &Repository, data: Bytes) -> Result<Digest, Error> {
        let digest = digest::sha256(&data);
        if !self.has_blob(repository, &digest).await? {
            let mut upload = self.begin_upload(repository).await?;
            upload.write(data).await?;
            upload.finish(&digest).await?;
        }
        Ok(digest)
    }

    /// Makes the blob of the same registry's repository `from` part of `repository`. `false`: the registry did
    /// not, push it. Who may push here need not be allowed to read there.
    pub async fn mount_blob(
        &self,
        repository: &Repository,
        from: &Repository,
        digest: &Digest,
    ) -> Result<bool, Error> {
        if repository.host() != from.host() {
            return Ok(false);
        }
        let target =
            Target::new(Method::POST, repository, format!("mount of blob {digest} from {}", from.name()));
        let scopes = Scopes::push(repository.name()).and(&Scopes::pull(from.name()));
        let good = [StatusCode::CREATED, StatusCode::ACCEPTED];
        let call = self.small(&target, &scopes, &good, |endpoint| {
            let mut url = endpoint.url(&target, repository, "blobs/uploads/")?;
            url.query_pairs_mut().append_pair("mount", digest.as_ref()).append_pair("from", from.name());
            Ok(Exchange::new(Method::POST, url))
        });
        let response = match call.await {
            Err(error) if error.is_denied() || error.is_not_found() => {
                tracing::debug!(%error, %from, "blob not mounted");
                return Ok(false);
            }
            response => response?,
        };
        if response.status() == StatusCode::CREATED {
            return Ok(true);
        }
        // The registry began an upload instead.
        if let Ok(location) = response.location() {
            self.abandon_upload(repository, location).await;
        }
        Ok(false)
    }

    /// Deletes the blob from the repository.
    pub async fn delete_blob(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let target = Target::blob(Method::DELETE, repository, digest);
        let scopes = Scopes::delete(repository.name());
        let good = [StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NO_CONTENT];
        let call = self.small(&target, &scopes, &good, |endpoint| {
            Ok(Exchange::new(Method::DELETE, endpoint.url(&target, repository, &format!("blobs/{digest}"))?))
        });
        call.await.map(drop)
    }
}

/// Whether `error` may mean that HEAD alone is refused.
fn is_refused_method(error: &Error) -> bool {
    match error.status() {
        Some(StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) => true,
        Some(StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            error.redirected_to().is_some()
        }
        _ => false,
    }
}
