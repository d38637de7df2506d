//! One layer of many: what the final file system shows, and nothing that is deleted or overwritten.
//!
//! Layers are first converted as always, quickly compressed, to files of this machine (`Scratch`). When all are there it is
//! known what the image shows: that is built again from there, with the options that were asked for, the files that are
//! fetched first in front. Memory holds the trees and what a conversion takes; the disk holds the layers meanwhile.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, ready};
use io::Write as _;
use rafs::blob::source::BlobDirectory;
use rafs::build::build_source;
use rafs::merge::merge;
use rafs::source::image::ImageSource;
use registry::digest::Digest;
use registry::reference::Reference;
use tempfile::TempDir;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::bridge::OutputWriter;
use super::conversion::{Built, ConvertError, ConvertedLayer, Sink, build_blob};
use crate::destination::{BlobWriter, Destination, StoreError, Storing};
use crate::document::Stored;
use crate::options::{Recipe, expand};

/// Blobs of this machine that are gone with this: each a file under its digest.
#[derive(Debug)]
pub struct Scratch(TempDir);

struct ScratchBlob {
    file: File,
    scratch: Scratched,
    /// Its name until it has its digest.
    name: tempfile::TempPath,
    size: u64,
}

/// Where blobs of a scratch are, for errors and names.
type Scratched = std::path::PathBuf;

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::File { doing, path, error }
}

impl Scratch {
    /// An empty one in a folder of its own in `dir`.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub fn new(dir: &Path) -> Result<Self, StoreError> {
        tempfile::Builder::new().prefix("flatten-").tempdir_in(dir).map(Self).map_err(failed("write to", dir))
    }
}

impl Destination for Scratch {
    fn begin(&self) -> Storing<'_, Box<dyn BlobWriter>> {
        let scratch = self.0.path().to_owned();
        async move {
            let folder = scratch.clone();
            let file = tokio::task::spawn_blocking(move || tempfile::NamedTempFile::new_in(folder)).await?;
            let (file, name) = file.map_err(failed("write to", &scratch))?.into_parts();
            Ok(Box::new(ScratchBlob { file: File::from_std(file), scratch, name, size: 0 })
                as Box<dyn BlobWriter>)
        }
        .boxed()
    }

    fn has_blob<'a>(&'a self, digest: &'a Digest) -> Storing<'a, bool> {
        ready(Ok(self.0.path().join(digest.digest()).exists())).boxed()
    }

    /// Nobody finds anything here by a name.
    fn publish<'a>(&'a self, _names: &'a [Reference], _root: Option<&'a Stored>) -> Storing<'a, ()> {
        ready(Ok(())).boxed()
    }
}

impl BlobWriter for ScratchBlob {
    fn write(&mut self, data: Bytes) -> Storing<'_, ()> {
        async move {
            self.size += data.len() as u64;
            self.file.write_all(&data).await.map_err(failed("write to", &self.scratch))
        }
        .boxed()
    }

    /// Not synchronised: after a crash nobody looks for it.
    fn finish<'a>(mut self: Box<Self>, digest: &'a Digest) -> Storing<'a, u64> {
        async move {
            self.file.flush().await.map_err(failed("write to", &self.scratch))?;
            let target = self.scratch.join(digest.digest());
            let kept = self.name.persist(&target).map_err(|error| error.error);
            kept.map_err(failed("rename a blob to", &target))?;
            Ok(self.size)
        }
        .boxed()
    }

    fn cancel(self: Box<Self>) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

/// Makes one layer of `layers`, whose blobs are in `scratch`, the lowest first; its blob goes to `destination`.
pub(super) async fn flatten(
    recipe: Arc<Recipe>,
    layers: Vec<Arc<ConvertedLayer>>,
    scratch: Arc<Scratch>,
    destination: &Arc<dyn Destination>,
) -> Result<ConvertedLayer, ConvertError> {
    let build = move |output| {
        let mut output = OutputWriter::new(output);
        let image = merge(layers.iter().map(|layer| layer.layer.clone()).collect())?;
        let blobs = BlobDirectory::new(scratch.0.path());
        let first = expand(&recipe.options().prefetch, &image.tree);
        let mut source = ImageSource::new(&image, &blobs, &first);
        let layer = build_source(&mut source, &mut output, recipe.build())?;
        output.flush()?;
        Ok(Built { layer, input: (), diff_id: None })
    };
    build_blob(&Sink::At(Arc::clone(destination)), build).await?.store(destination.as_ref()).await
}
