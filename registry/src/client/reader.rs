//! Reading a blob, or a part of one, across broken connections.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use http::header::{CONTENT_RANGE, RANGE};
use http::{Method, StatusCode};

use super::challenge::Scopes;
use super::endpoint::Endpoint;
use super::error::{Error, Target};
use super::response::Response;
use super::retry::Retry;
use super::transport::{Exchange, Transport, header_value};
use crate::digest::{Digest, Hasher};
use crate::reference::Repository;

/// Who may answer a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFrom {
    /// Mirrors first, then the registry.
    Mirrors,
    /// The registry alone: what is written again after it was read, and what a mirror may have in an older state.
    Registry,
}

/// A read that goes from mirror to mirror to the registry, where it is retried.
pub(super) struct Reading {
    transport: Arc<Transport>,
    target: Target,
    endpoint: Endpoint,
    next: std::vec::IntoIter<Endpoint>,
    pub(super) retry: Retry,
}

impl Reading {
    pub(super) fn new(
        transport: Arc<Transport>,
        target: Target,
        from: ReadFrom,
        retry: Retry,
    ) -> Result<Self, Error> {
        let endpoints = match from {
            ReadFrom::Mirrors => transport.readers(&target)?,
            // Whoever hands out how a repository is read names the registry itself last.
            ReadFrom::Registry if transport.source.is_some() => {
                transport.readers(&target)?.pop().into_iter().collect()
            }
            ReadFrom::Registry => Vec::new(),
        };
        let mut next = endpoints.into_iter();
        let endpoint = next.next().unwrap_or_else(|| transport.origin(&target.host));
        Ok(Self { transport, target, endpoint, next, retry })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What is asked, of whom.
    pub(super) fn target(&self) -> Target {
        self.target.at(&self.endpoint.host)
    }

    /// Turns to the next mirror, or waits to ask the registry again; gives `error` back if neither helps.
    pub(super) async fn failed(&mut self, error: Error) -> Result<(), Error> {
        if !self.endpoint.is_mirror() {
            return self.retry.pause(error).await;
        }
        if error.is_not_found() {
            tracing::debug!(%error, "the mirror does not have it, asking the next");
        } else {
            tracing::warn!(%error, "mirror failed, asking the next");
        }
        self.transport.mirror_failed(&self.endpoint.host, &self.target, &error);
        self.retry.repeats();
        self.endpoint = self.next.next().unwrap_or_else(|| self.transport.origin(&self.target.host));
        Ok(())
    }
}

/// A blob's bytes as they arrive. A connection that breaks is taken up again where it broke.
pub struct BlobReader {
    reading: Reading,
    repository: Repository,
    digest: Digest,
    scopes: Scopes,
    response: Option<Response>,
    position: u64,
    /// The end of what is wanted, once known.
    end: Option<u64>,
    /// Where the wanted part starts and ends; `None`: the whole blob.
    part: Option<Range<u64>>,
    hasher: Option<Hasher>,
    done: bool,
}

impl BlobReader {
    pub(super) fn new(
        transport: Arc<Transport>,
        retry: Retry,
        repository: &Repository,
        digest: &Digest,
        part: Option<Range<u64>>,
    ) -> Result<Self, Error> {
        let hasher = if part.is_none() { Some(Hasher::like(digest)?) } else { None };
        let target = Target::blob(Method::GET, repository, digest);
        Ok(Self {
            reading: Reading::new(transport, target, ReadFrom::Mirrors, retry)?,
            repository: repository.clone(),
            digest: digest.clone(),
            scopes: Scopes::pull(repository.name()),
            response: None,
            position: part.as_ref().map_or(0, |part| part.start),
            end: part.as_ref().map(|part| part.end),
            done: part.as_ref().is_some_and(Range::is_empty),
            part,
            hasher,
        })
    }

    /// The next bytes; `None` at the end, when all have come and, for a whole blob, have the blob's digest.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.done {
            match self.step().await {
                Ok(Some(bytes)) => {
                    self.reading.retry.progressed();
                    return Ok(Some(bytes));
                }
                Ok(None) => {
                    self.done = true;
                    self.verify()?;
                }
                Err(error) => {
                    self.response = None;
                    self.reading.failed(error).await?;
                }
            }
        }
        Ok(None)
    }

    /// The size of the blob or part, if known yet: after the first [`BlobReader::next`] at the latest, unless the
    /// registry does not say.
    pub fn size(&self) -> Option<u64> {
        self.end.map(|end| end - self.part.as_ref().map_or(0, |part| part.start))
    }

    /// All bytes as one stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        futures::stream::try_unfold(self, async |mut reader| {
            Ok(reader.next().await?.map(|bytes| (bytes, reader)))
        })
    }

    /// All bytes that are left, in memory.
    pub(super) async fn collect(mut self) -> Result<Bytes, Error> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        // Only what was asked for is set aside: the size is the caller's own, not the registry's.
        let wanted = self.part.as_ref().map_or(0, |part| part.end - part.start);
        if first.len() as u64 == wanted {
            return Ok(first);
        }
        let mut all = Vec::with_capacity(usize::try_from(wanted).unwrap_or(0));
        all.extend_from_slice(&first);
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all.into())
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Error> {
        if self.response.is_none() {
            self.response = Some(self.reading.retry.bound(self.open()).await?);
            if self.end.is_none() {
                self.end = self.response.as_ref().and_then(Response::content_length);
            }
        }
        let Some(response) = &mut self.response else { return Ok(None) };
        let left = self.end.map(|end| end - self.position);
        if left == Some(0) {
            return Ok(None);
        }
        match self.reading.retry.bound(response.chunk()).await? {
            Some(mut bytes) => {
                if let Some(left) = left
                    && bytes.len() as u64 > left
                {
                    // More than asked for, as from a registry that sends the whole blob: the rest is left unread.
                    bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                }
                self.position += bytes.len() as u64;
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&bytes);
                }
                Ok(Some(bytes))
            }
            None => match self.end {
                Some(end) => Err(self.short(end)),
                None => Ok(None),
            },
        }
    }

    fn short(&self, end: u64) -> Error {
        let start = self.part.as_ref().map_or(0, |part| part.start);
        let (expected, received) = (end - start, self.position - start);
        Error::Length { target: Box::new(self.reading.target()), expected, received }
    }

    /// Asks for everything from the position on.
    async fn open(&self) -> Result<Response, Error> {
        let (endpoint, target) = (self.reading.endpoint(), self.reading.target());
        let url = endpoint.url(&target, &self.repository, &format!("blobs/{}", self.digest))?;
        let mut exchange = Exchange::new(Method::GET, url);
        let ranged = self.position > 0 || self.part.is_some();
        if ranged {
            let last = self.end.map(|end| (end - 1).to_string()).unwrap_or_default();
            let range = format!("bytes={}-{last}", self.position);
            exchange.headers.insert(RANGE, header_value(&target, &range)?);
        }
        let good = [StatusCode::OK, StatusCode::PARTIAL_CONTENT];
        let transport = &self.reading.transport;
        let mut response = transport.call_expecting(&target, endpoint, &self.scopes, exchange, &good).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if ranged => self.check_range(&target, &response)?,
            StatusCode::PARTIAL_CONTENT => {
                return Err(Error::protocol(&target, "206 to a request for everything"));
            }
            // The registry knows no ranges and sends everything: what comes before is skipped.
            _ if ranged => self.skip(&target, &mut response).await?,
            _ => {}
        }
        Ok(response)
    }

    fn check_range(&self, target: &Target, response: &Response) -> Result<(), Error> {
        let text = response.header(CONTENT_RANGE).unwrap_or_default();
        let (first, last, total) = content_range(text)
            .ok_or_else(|| Error::protocol(target, format!("206 with Content-Range {text:?}")))?;
        if let (Some(part), Some(total)) = (&self.part, total)
            && part.end > total
        {
            let reason = format!("asked for bytes {} to {} of a blob of {total} bytes", part.start, part.end);
            return Err(Error::protocol(target, reason));
        }
        if first != self.position || self.end.is_some_and(|end| last.checked_add(1) != Some(end)) {
            let reason =
                format!("asked for bytes from {} on, was sent Content-Range {text:?}", self.position);
            return Err(Error::protocol(target, reason));
        }
        Ok(())
    }

    async fn skip(&self, target: &Target, response: &mut Response) -> Result<(), Error> {
        tracing::debug!(%target, position = self.position, "no range support: skipping what comes before");
        let mut left = self.position;
        while left > 0 {
            let Some(bytes) = response.chunk().await? else {
                let (expected, received) = (self.position, self.position - left);
                return Err(Error::Length { target: Box::new(target.clone()), expected, received });
            };
            let size = bytes.len() as u64;
            if size > left {
                response.unread(bytes.slice(usize::try_from(left).unwrap_or(bytes.len())..));
                return Ok(());
            }
            left -= size;
        }
        Ok(())
    }

    fn verify(&mut self) -> Result<(), Error> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let actual = hasher.finish();
        if actual == self.digest {
            return Ok(());
        }
        let target = Box::new(self.reading.target());
        Err(Error::Digest { target, expected: self.digest.clone(), actual })
    }
}

/// First and last byte and, if given, the total of `bytes FIRST-LAST/TOTAL`.
pub(super) fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_parsed_strictly() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0, 9, Some(100))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 5, None)));
        for text in ["", "bytes", "bytes 1-2", "bytes */5", "items 0-1/2", "bytes a-b/c", "bytes 1/2"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
