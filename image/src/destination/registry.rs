//! A repository of a registry.

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use registry::client::{Client, Upload};
use registry::digest::{self, Digest};
use registry::reference::{Reference, Repository};

use super::{BlobWriter, Destination, Storing};
use crate::document::Stored;

/// A repository of a registry.
#[derive(Clone, Debug)]
pub struct InRegistry {
    client: Client,
    repository: Repository,
}

impl InRegistry {
    /// `repository`, reached by `client`.
    pub fn new(client: Client, repository: Repository) -> Self {
        Self { client, repository }
    }
}

impl Destination for InRegistry {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        async move { Ok(Box::new(self.client.begin_upload(&self.repository).await?) as Box<dyn BlobWriter>) }
            .boxed()
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool> {
        async move { Ok(self.client.has_blob(&self.repository, digest).await?) }.boxed()
    }

    fn blob_size<'a>(&'a self, digest: &'a Digest) -> Storing<'a, Option<u64>> {
        async move { Ok(self.client.blob_size(&self.repository, digest).await?) }.boxed()
    }

    fn put_blob(&self, data: Bytes) -> Storing<'_, Digest> {
        async move { Ok(self.client.push_blob(&self.repository, data).await?) }.boxed()
    }

    fn put_manifest<'a>(&'a self, media_type: &'a str, manifest: Bytes) -> Storing<'a, Digest> {
        async move {
            let digest = digest::sha256(&manifest);
            let reference = self.repository.with_digest(digest.clone());
            self.client.put_manifest(&reference, media_type, manifest).await?;
            Ok(digest)
        }
        .boxed()
    }

    fn publish<'a>(&'a self, names: &'a [Reference], root: Option<&'a Stored>) -> Storing<'a, ()> {
        async move {
            for (name, root) in names.iter().zip(root.into_iter().cycle()) {
                self.client.put_manifest(name, &root.media_type, root.content.clone()).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn repository(&self) -> Option<(&Client, &Repository)> {
        Some((&self.client, &self.repository))
    }
}

impl BlobWriter for Upload {
    fn write(&mut self, data: Bytes) -> Storing<'_, ()> {
        async move { Ok(Self::write(self, data).await?) }.boxed()
    }

    fn finish<'a>(self: Box<Self>, digest: &'a Digest) -> Storing<'a, u64> {
        async move { Ok(Self::finish(*self, digest).await?) }.boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        Self::cancel(*self).boxed()
    }
}
