//! Images copied from one repository to another, digest for digest.

use std::collections::HashSet;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use http::Method;
use oci_spec::image::Descriptor;
use serde::Deserialize;

use super::{Client, Error, PlacedBlobs, Placing, Target};
use crate::digest::Digest;
use crate::reference::{Reference, Repository};

/// How many blobs of an image are under way at a time, each with two pieces in memory.
const PARALLEL_BLOBS: usize = 3;

/// How deep indexes may lie in indexes.
const DEPTH_LIMIT: usize = 8;

/// What a copy came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Manifests and indexes that were put.
    pub manifests: u64,
    /// Blobs that were sent.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that the registry took over from another repository of its own.
    pub mounted: u64,
    /// Manifests and blobs that were there already.
    pub present: u64,
}

impl Copied {
    /// Adds what another copy came to.
    pub fn add(&mut self, other: Self) {
        self.manifests += other.manifests;
        self.blobs += other.blobs;
        self.bytes += other.bytes;
        self.mounted += other.mounted;
        self.present += other.present;
    }
}

/// What a manifest or index names.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    /// Of an artifact manifest.
    blobs: Option<Vec<Descriptor>>,
}

impl Client {
    /// Copies the image `from` with everything that it names to `to`: what is there already is not sent, and what the
    /// registry has in `from`'s repository, or copies have put elsewhere in it, is mounted. With `referrers` what refers to it
    /// (signatures, attestations) comes along. `to` names it when all is there.
    pub async fn copy_image(
        &self,
        from: &Reference,
        to: &Reference,
        referrers: bool,
        placed: &PlacedBlobs,
    ) -> Result<Copied, Error> {
        let job = Job { client: self, from: from.repository(), to: to.repository(), placed };
        let found = self.manifest(from).await?;
        let digest = found.0.digest().clone();
        // A registry takes a manifest only with all that it names.
        let there = self.head_manifest(to).await?.is_some_and(|there| *there.digest() == digest);
        let mut copied = match there {
            true => Copied { present: 1, ..Copied::default() },
            false => job.manifest(found, to, 0).await?,
        };
        if referrers {
            copied.add(job.referrers(&digest, 0).await?);
        }
        Ok(copied)
    }
}

struct Job<'a> {
    client: &'a Client,
    from: &'a Repository,
    to: &'a Repository,
    placed: &'a PlacedBlobs,
}

impl Job<'_> {
    fn manifest<'a>(
        &'a self,
        (descriptor, content): (Descriptor, Bytes),
        name: &'a Reference,
        depth: usize,
    ) -> BoxFuture<'a, Result<Copied, Error>> {
        Box::pin(async move {
            let target = Target::new(Method::GET, self.from, format!("manifest {}", descriptor.digest()));
            if depth == DEPTH_LIMIT {
                let reason = format!("indexes lie in indexes more than {DEPTH_LIMIT} deep");
                return Err(Error::protocol(&target, reason));
            }
            let named: Named =
                serde_json::from_slice(&content).map_err(|e| Error::protocol(&target, e.to_string()))?;
            let mut copied = Copied::default();
            for child in named.manifests.iter().flatten() {
                copied.add(self.child(child.digest(), depth).await?);
            }
            let blobs = named.config.iter().chain(named.layers.iter().chain(&named.blobs).flatten());
            let mut seen = HashSet::new();
            let blobs: Vec<Digest> = blobs
                // What lies elsewhere is in no registry.
                .filter(|blob| blob.urls().as_ref().is_none_or(Vec::is_empty))
                .map(|blob| blob.digest().clone())
                .filter(|digest| seen.insert(digest.clone()))
                .collect();
            let mut blobs = futures::stream::iter(blobs.into_iter().map(|digest| self.blob(digest)))
                .buffer_unordered(PARALLEL_BLOBS);
            while let Some(blob) = blobs.next().await {
                copied.add(blob?);
            }
            let media_type = descriptor.media_type().to_string();
            self.client.put_manifest(name, &media_type, content).await?;
            copied.manifests += 1;
            Ok(copied)
        })
    }

    /// A manifest that another one names.
    async fn child(&self, digest: &Digest, depth: usize) -> Result<Copied, Error> {
        let name = self.to.with_digest(digest.clone());
        if self.client.head_manifest(&name).await?.is_some() {
            return Ok(Copied { present: 1, ..Copied::default() });
        }
        let found = self.client.manifest(&self.from.with_digest(digest.clone())).await?;
        self.manifest(found, &name, depth + 1).await
    }

    /// What refers to `digest`, and what refers to that: a signature may be signed.
    fn referrers<'a>(&'a self, digest: &'a Digest, depth: usize) -> BoxFuture<'a, Result<Copied, Error>> {
        Box::pin(async move {
            let mut copied = Copied::default();
            if depth == DEPTH_LIMIT {
                return Ok(copied);
            }
            for referrer in self.client.referrers(self.from, digest, None).await? {
                copied.add(self.child(referrer.digest(), 0).await?);
                copied.add(self.referrers(referrer.digest(), depth + 1).await?);
            }
            Ok(copied)
        })
    }

    async fn blob(&self, digest: Digest) -> Result<Copied, Error> {
        let turn = self.placed.turn(&digest).await;
        let copied = match turn.place(self.client, self.to).await? {
            Placing::Present => Copied { present: 1, ..Copied::default() },
            Placing::Mounted => Copied { mounted: 1, ..Copied::default() },
            Placing::Absent => self.bring(digest).await?,
        };
        turn.done(self.to);
        Ok(copied)
    }

    async fn bring(&self, digest: Digest) -> Result<Copied, Error> {
        if self.client.has_blob(self.to, &digest).await? {
            return Ok(Copied { present: 1, ..Copied::default() });
        }
        if self.client.mount_blob(self.to, self.from, &digest).await? {
            return Ok(Copied { mounted: 1, ..Copied::default() });
        }
        let mut reader = self.client.blob(self.from, &digest)?;
        let mut upload = self.client.begin_upload(self.to).await?;
        let sent = async {
            while let Some(bytes) = reader.next().await? {
                upload.write(bytes).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = sent.await {
            upload.cancel().await;
            return Err(error);
        }
        let bytes = upload.finish(&digest).await?;
        Ok(Copied { blobs: 1, bytes, ..Copied::default() })
    }
}
