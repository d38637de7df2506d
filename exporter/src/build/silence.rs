//! How long a registry may be silent while something is pushed to it: until then it holds slots of buildkitd's that other builds
//! need as well.
//!
//! ```text
//!   begin, has, manifests      client: `operation` for all attempts together
//!   a piece of a blob          client: `idle` without a byte for each attempt
//!   storing the blob           here: all attempts, by the blob's size, and whether anything is answered meanwhile
//! ```
//!
//! A registry that is slow is not silent: whatever moves counts. Only while it stores a blob nothing does.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::Method;
use image::destination::{BlobWriter, Destination, InRegistry, StoreError, Storing};
use image::document::Stored;
use registry::client::{Client, ClientConfig, Error, Target};
use registry::digest::{self, Digest};
use registry::reference::{Reference, Repository};
use tokio::time::{Instant, sleep, timeout};

/// The least part of the time that one attempt gets, however many there may be.
const ATTEMPTS_LIMIT: u32 = 6;

/// Registries in front of object stores copy and hash what they store at such a rate, if they are slow.
const STORED_PER_SECOND: u64 = 16 << 20;

/// What is still to be sent when a blob ends goes at such a rate, unless the blob has shown that its registry is slower.
const SENT_PER_SECOND: u64 = 64 << 10;

/// So much slower than the rest of a blob its end may be.
const SLOWER: u32 = 4;

/// `config`, with deadlines by which a registry that makes no progress is given up after about `silent`, with all attempts. Those
/// that are shorter stay.
pub(crate) fn limited(config: &ClientConfig, silent: Duration) -> ClientConfig {
    let mut config = config.clone();
    let attempts = config.retries.attempts.clamp(1, ATTEMPTS_LIMIT);
    config.timeouts.idle = config.timeouts.idle.min(silent / attempts);
    config.timeouts.operation = config.timeouts.operation.min(silent);
    config
}

/// A repository whose registry may be silent for so long.
#[derive(Clone, Debug)]
pub(crate) struct BoundedRegistry {
    inner: InRegistry,
    client: Client,
    repository: Repository,
    silent: Duration,
}

impl BoundedRegistry {
    /// `repository`, reached by `client`, which has the deadlines of [`limited`].
    pub(crate) fn new(client: Client, repository: Repository, silent: Duration) -> Self {
        Self { inner: InRegistry::new(client.clone(), repository.clone()), client, repository, silent }
    }

    /// Returns when the registry has had its time to store the blob `digest`, or answers nothing else either: an error then.
    async fn falls_silent(&self, digest: &Digest, sending: Duration, storing: Duration) -> StoreError {
        let begin = Instant::now();
        let half = self.silent / 2;
        sleep(half + storing).await;
        // Whatever it answers: it is there, and busy.
        let is_there = match timeout(half, self.client.has_blob(&self.repository, digest)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => error.status().is_some(),
            Err(_) => false,
        };
        if is_there {
            sleep((self.silent + storing + sending).saturating_sub(begin.elapsed())).await;
        }
        let target = Target {
            method: Method::PUT,
            host: self.repository.host().to_owned(),
            repository: self.repository.name().to_owned(),
            item: format!("blob {digest}"),
            redirected_to: None,
        };
        let last = match is_there {
            true => ", nor said anything of it: see exporter.registry_silent_seconds",
            false => ", nor anything else answered: see exporter.registry_silent_seconds",
        };
        let after = Duration::from_secs(begin.elapsed().as_secs().max(1));
        Error::Deadline { target: Box::new(target), after, last: last.to_owned() }.into()
    }
}

impl Destination for BoundedRegistry {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        async move {
            let writer = BoundedWriter {
                inner: self.inner.begin().await?,
                registry: self.clone(),
                pace: Pace::new(self.client.config().upload.piece_bytes as u64),
            };
            Ok(Box::new(writer) as Box<dyn BlobWriter>)
        }
        .boxed()
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool> {
        self.inner.has_blob(digest)
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> Storing<'a, Option<u64>> {
        self.inner.blob_size(digest)
    }

    fn put_blob(&self, data: Bytes) -> Storing<'_, Digest> {
        async move {
            let digest = digest::sha256(&data);
            if !self.has_blob(&digest).await? {
                let mut writer = self.begin().await?;
                writer.write(data).await?;
                writer.finish(&digest).await?;
            }
            Ok(digest)
        }
        .boxed()
    }

    fn put_manifest<'a>(&'a self, media_type: &'a str, manifest: Bytes) -> Storing<'a, Digest> {
        self.inner.put_manifest(media_type, manifest)
    }

    fn publish<'a>(&'a self, names: &'a [Reference], root: Option<&'a Stored>) -> Storing<'a, ()> {
        self.inner.publish(names, root)
    }

    fn repository(&self) -> Option<(&Client, &Repository)> {
        self.inner.repository()
    }
}

/// A blob on its way to such a repository.
struct BoundedWriter {
    inner: Box<dyn BlobWriter>,
    registry: BoundedRegistry,
    pace: Pace,
}

impl BlobWriter for BoundedWriter {
    fn write(&mut self, data: Bytes) -> Storing<'_, ()> {
        async move {
            let (bytes, begin) = (data.len() as u64, Instant::now());
            let written = self.inner.write(data).await;
            self.pace.written(bytes, begin.elapsed());
            written
        }
        .boxed()
    }

    fn finish<'a>(self: Box<Self>, digest: &'a Digest) -> Storing<'a, u64> {
        async move {
            let Self { inner, registry, pace } = *self;
            let (sending, storing) = (pace.sending(), pace.storing());
            tokio::select! {
                stored = inner.finish(digest) => stored,
                error = registry.falls_silent(digest, sending, storing) => Err(error),
            }
        }
        .boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        self.inner.cancel()
    }
}

/// How a blob's bytes have gone so far, as far as that shows: a piece is waited for when the one after the next is full.
#[derive(Debug)]
struct Pace {
    piece_bytes: u64,
    written: u64,
    /// Since the blob was begun.
    begun: Instant,
    /// The part of that in which its bytes waited for the registry.
    waited: Duration,
}

impl Pace {
    fn new(piece_bytes: u64) -> Self {
        Self { piece_bytes: piece_bytes.max(1), written: 0, begun: Instant::now(), waited: Duration::ZERO }
    }

    fn written(&mut self, bytes: u64, waited: Duration) {
        self.written += bytes;
        self.waited += waited;
    }

    /// How long the registry may take to store it.
    fn storing(&self) -> Duration {
        Duration::from_secs(self.written / STORED_PER_SECOND)
    }

    /// How long it may take until all of it is sent.
    fn sending(&self) -> Duration {
        self.sending_after(self.begun.elapsed())
    }

    fn sending_after(&self, elapsed: Duration) -> Duration {
        let arrived = (self.written / self.piece_bytes).saturating_sub(1) * self.piece_bytes;
        let left = self.written - arrived;
        let unknown = Duration::from_secs(left / SENT_PER_SECOND);
        if arrived == 0 {
            return unknown;
        }
        // The bytes may have come slowly from where they are made: that is the registry's pace only as far as they waited for it.
        let alike = |time: Duration| (time * SLOWER).mul_f64(left as f64 / arrived as f64);
        alike(self.waited).max(alike(elapsed).min(unknown))
    }
}

#[cfg(test)]
mod tests {
    use registry::client::{Retries, Timeouts};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn all_attempts_together_fit_and_what_is_shorter_stays() {
        let limited = |attempts, silent| {
            let retries = Retries { attempts, ..Retries::default() };
            let config = ClientConfig { retries, ..ClientConfig::default() };
            limited(&config, seconds(silent)).timeouts
        };
        let default = Timeouts::default();
        assert_eq!((limited(5, 60).idle, limited(5, 60).operation), (seconds(12), seconds(60)));
        // Many attempts are no reason to give each no time.
        assert_eq!((limited(1000, 60).idle, limited(0, 60).idle), (seconds(10), default.idle));
        assert_eq!(limited(5, 3600), default);
    }

    #[test]
    fn the_end_of_a_blob_gets_the_time_that_its_registry_takes_for_so_much() {
        let sending = |written, waited, elapsed| {
            let mut pace = Pace::new(8 * MIB);
            pace.written(written, seconds(waited));
            pace.sending_after(seconds(elapsed))
        };
        // Nothing is known of the registry.
        assert_eq!(sending(MIB, 0, 1), seconds(16));
        assert_eq!(sending(15 * MIB, 0, 1000), seconds(240));
        // A fast one; one that is slow itself; and one that got slowly what it took.
        assert_eq!(sending(72 * MIB, 2, 8), seconds(4));
        assert_eq!(sending(24 * MIB, 4000, 4000), seconds(8000));
        assert_eq!(sending(32 * MIB, 0, 4000), seconds(128));
    }
}
