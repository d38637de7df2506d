//! A file of the client's. A tar needs sizes before contents, so the layout is gathered on this machine first, under
//! `registry.upload.spool_dir`, and packed while it is sent. All of them together take `exporter.archive_bytes` at most.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use h2::client::SendRequest;
use image::destination::{
    BlobWriter, Destination, DiskSpace, Shape, SpoolFolder, Staging, StoreError, Storing,
};
use image::document::Stored;
use prost::Message;
use registry::digest::Digest;
use registry::media_types::{DOCKER_INDEX, OCI_INDEX};
use registry::reference::Reference;

use super::refused;
use crate::client::{BytesMessage, CLIENT, EXPORTER_ID, FILE_SEND};
use crate::http2::call::Call;

/// A file that the client opened for its output number `index`.
pub(crate) struct ClientArchive {
    /// Holds what is gathered, also if this process is killed. Removed before the room is given back.
    _folder: SpoolFolder,
    staging: Arc<Staging>,
    client: SendRequest<Bytes>,
    index: usize,
    annotations: RootAnnotations,
}

/// Annotations of the descriptor by which the archive names the image.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct RootAnnotations {
    /// Where that is a manifest.
    pub(crate) manifest: BTreeMap<String, String>,
    /// Where that is an index.
    pub(crate) index: BTreeMap<String, String>,
}

impl RootAnnotations {
    /// Those for the image `root`.
    fn for_root(&self, root: &Stored) -> &BTreeMap<String, String> {
        match [OCI_INDEX, DOCKER_INDEX].contains(&root.media_type.as_str()) {
            true => &self.index,
            false => &self.manifest,
        }
    }
}

impl std::fmt::Debug for ClientArchive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientArchive").field("index", &self.index).finish_non_exhaustive()
    }
}

impl ClientArchive {
    /// The file of output `index`, in which the image is annotated so; the layout is gathered in `space`.
    pub(crate) async fn new(
        client: SendRequest<Bytes>,
        index: usize,
        annotations: RootAnnotations,
        space: &Arc<DiskSpace>,
    ) -> Result<Self, StoreError> {
        let failed = |error| StoreError::File { doing: "write to", path: space.dir().to_owned(), error };
        let folder = SpoolFolder::new(space.dir()).await.map_err(failed)?;
        let target = folder.path().join("image.tar");
        let make = move || Staging::new(&target, Shape::OciArchive { name: None });
        // All builds go through the same few threads: a disk that is slow must not hold them.
        let staging = Arc::new(tokio::task::spawn_blocking(make).await??.within(space));
        Ok(Self { _folder: folder, staging, client, index, annotations })
    }

    async fn send(&self, names: &[Reference], root: &Stored) -> Result<(), StoreError> {
        let headers = [(EXPORTER_ID, self.index.to_string())];
        let mut call = Call::open(self.client.clone(), CLIENT, FILE_SEND, &headers).await.map_err(refused)?;
        let mut stream = self.staging.stream(names, root, self.annotations.for_root(root));
        while let Some(data) = stream.next().await? {
            if call.send(&BytesMessage { data }.encode_to_vec()).await.is_err() {
                // The answer says why.
                break;
            }
        }
        call.close();
        while call.receive().await.map_err(refused)?.is_some() {}
        Ok(())
    }
}

impl Destination for ClientArchive {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        self.staging.begin()
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool> {
        self.staging.has_blob(digest)
    }

    fn publish<'a>(&'a self, names: &'a [Reference], root: Option<&'a Stored>) -> Storing<'a, ()> {
        async move {
            match root {
                Some(root) => self.send(names, root).await,
                None => Ok(()),
            }
        }
        .boxed()
    }
}
