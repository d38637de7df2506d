//! One conversion: what comes is built into a blob on a thread of its own, and the blob is uploaded while it is written.

use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rafs::build::{BuildError, BuildOptions, build_directory, build_source};
use rafs::merge::MergeError;
use rafs::share::WriteSharedError;
use rafs::source::SourceError;
use rafs::source::decompress::StreamError;
use rafs::source::tar::{Problem, TarSource};
use rafs::tree::Layer;
use registry::digest::{Digest, DigestAlgorithm};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::bridge::{InputReader, OutputWriter};
use super::plain::Plain;
use super::slot::Slot;
use crate::destination::{BlobWriter, Destination, SpooledBlob, StoreError};
use crate::options::Recipe;

/// Messages of up to 1 MiB between buildkitd and the builder.
const INPUT_QUEUE: usize = 2;
/// Pieces of 256 KiB between the builder and the upload.
const OUTPUT_QUEUE: usize = 4;

/// A header in a tar.
const TAR_BLOCK_BYTES: u64 = 512;

/// A layer as converted, its blob stored.
#[derive(Debug)]
pub struct ConvertedLayer {
    /// Tree and chunks.
    pub layer: Layer,
    /// Digest of the blob stream, by which it is stored.
    pub digest: Digest,
    /// Size of the blob stream in bytes.
    pub size: u64,
    /// Digest of the layer that it was made of; none where that is a directory.
    pub source: Option<Digest>,
    /// Digest of that layer when nothing is compressed.
    pub diff_id: Option<Digest>,
    /// Digest of the table of contents at the end of the blob stream.
    pub toc: Option<Digest>,
}

impl ConvertedLayer {
    /// Says that it was made of the layer `source`, which was found to have this digest.
    pub fn made_of(mut self, source: &Digest) -> Self {
        // What was not compressed has its digest by itself.
        let is_sha256 = *source.algorithm() == DigestAlgorithm::Sha256;
        self.diff_id = self.diff_id.or_else(|| is_sha256.then(|| source.clone()));
        self.source = Some(source.clone());
        self
    }
}

/// Why a layer was not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The layer cannot be built.
    #[error("cannot convert: {0}")]
    Build(#[from] BuildError),
    /// What was converted cannot be written as the blobs that layers share.
    #[error("cannot write a blob: {0}")]
    Share(#[from] WriteSharedError),
    /// The layers do not go together.
    #[error("cannot merge the layers: {0}")]
    Merge(#[from] MergeError),
    /// The blob cannot be stored.
    #[error("cannot store its blob: {0}")]
    Push(#[from] StoreError),
    /// What follows the layer's tar cannot be read.
    #[error("cannot read to the end: {0}")]
    Read(#[from] io::Error),
    /// The thread that builds is gone.
    #[error("the conversion ended unexpectedly: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    /// The builder did not say what its blob's digest is.
    #[error("the builder left its blob without a digest")]
    NoDigest,
}

impl ConvertError {
    /// Whether what was to be converted is no tar at all, compressed or not: not even its first header is one.
    pub fn is_no_tar(&self) -> bool {
        let Self::Build(BuildError::Source(SourceError::Tar(error))) = self else { return false };
        let is_of_content = match &error.problem {
            Problem::Io(error) => error.get_ref().is_some_and(|inner| inner.is::<StreamError>()),
            _ => true,
        };
        is_of_content && error.entry.is_none() && error.offset < TAR_BLOCK_BYTES
    }
}

/// A conversion under way; dropping it cancels it.
pub struct LayerConversion {
    input: Option<mpsc::Sender<Bytes>>,
    task: AbortOnDropHandle<Result<ConvertedLayer, ConvertError>>,
}

impl LayerConversion {
    pub(super) fn start(
        recipe: Arc<Recipe>,
        slots: Arc<Semaphore>,
        destination: Arc<dyn Destination>,
    ) -> Self {
        let (input, receiver) = mpsc::channel(INPUT_QUEUE);
        let task = tokio::spawn(async move {
            let slot = Slot::take(slots).await;
            let build =
                move |output| build(recipe.build(), InputReader::new(receiver), OutputWriter::new(output));
            build_blob(destination.as_ref(), Some(slot), build).await?.store(destination.as_ref()).await
        });
        Self { input: Some(input), task: AbortOnDropHandle::new(task) }
    }

    /// Takes the layer's next bytes, waiting while the conversion is behind. When it has failed, that is the error.
    pub async fn write(&mut self, data: Bytes) -> Result<(), ConvertError> {
        // An empty message would be the end.
        if data.is_empty() {
            return Ok(());
        }
        match &self.input {
            Some(input) if input.send(data).await.is_ok() => Ok(()),
            _ => Err(self.failure().await),
        }
    }

    /// The layer is complete: waits until its blob is stored.
    pub async fn finish(mut self) -> Result<ConvertedLayer, ConvertError> {
        self.end().await
    }

    /// As [`LayerConversion::finish`]; whoever stops waiting for it calls [`LayerConversion::abort`].
    pub async fn end(&mut self) -> Result<ConvertedLayer, ConvertError> {
        if let Some(input) = self.input.take() {
            // Where nobody takes it any more, the task has ended and says why.
            let _ = input.send(Bytes::new()).await;
        }
        (&mut self.task).await?
    }

    /// The layer will not be complete: waits until what was stored of it is given up.
    pub async fn cancel(mut self) {
        // Without the end mark this is no end: the builder fails, and that ends the upload.
        self.input = None;
        if let Err(error) = (&mut self.task).await {
            tracing::debug!(%error, "cancelled conversion");
        }
    }

    /// Ends the conversion at once, and returns when it has let go of the destination.
    pub async fn abort(mut self) {
        self.task.abort();
        if let Err(error) = (&mut self.task).await {
            tracing::debug!(%error, "aborted conversion");
        }
    }

    /// Why the conversion does not take any more.
    async fn failure(&mut self) -> ConvertError {
        self.input = None;
        match (&mut self.task).await {
            Ok(Ok(_)) => ConvertError::Read(io::Error::other("data after the layer's end")),
            Ok(Err(error)) => error,
            Err(error) => error.into(),
        }
    }
}

/// A conversion under way of what is read rather than sent; dropping it cancels it.
pub struct ReadConversion<R> {
    task: AbortOnDropHandle<Result<BuiltLayer<R>, ConvertError>>,
}

impl<R: Read + Send + 'static> ReadConversion<R> {
    pub(super) fn start(
        recipe: Arc<Recipe>,
        slots: Arc<Semaphore>,
        destination: Arc<dyn Destination>,
        input: R,
    ) -> Self {
        let task = tokio::spawn(async move {
            let slot = Slot::take(slots).await;
            let build = move |output| build(recipe.build(), input, OutputWriter::new(output));
            build_blob(destination.as_ref(), Some(slot), build).await
        });
        Self { task: AbortOnDropHandle::new(task) }
    }

    /// Waits until the input has ended.
    pub async fn built(self) -> Result<BuiltLayer<R>, ConvertError> {
        self.task.await?
    }
}

/// A layer as converted, its blob sent or spooled, but not yet one of the destination's.
pub struct BuiltLayer<R> {
    pub(super) blob: MadeBlob,
    pub(super) built: Built<R>,
}

/// A blob that was made.
pub(super) enum MadeBlob {
    /// It is at a destination, without its name.
    Sent(Box<dyn BlobWriter>),
    /// It is on this machine.
    Spooled(SpooledBlob),
}

/// A layer as built.
pub(super) struct Built<R> {
    pub(super) layer: Layer,
    pub(super) input: R,
    /// Digest of the input without its compression, if it had one.
    pub(super) diff_id: Option<Digest>,
}

impl<R> BuiltLayer<R> {
    /// What it was made of, read to its end.
    pub fn input(&self) -> &R {
        &self.built.input
    }

    /// Digest of what it was made of without compression, if it was compressed.
    pub(super) fn diff_id(&self) -> Option<&Digest> {
        self.built.diff_id.as_ref()
    }

    /// Has the blob stored at `destination`, which is the one that it was made for if there was one.
    pub async fn store(self, destination: &dyn Destination) -> Result<ConvertedLayer, ConvertError> {
        let Self { blob, built: Built { layer, diff_id, .. } } = self;
        let own = layer.blobs.first();
        let id = own.and_then(|blob| blob.id).ok_or(ConvertError::NoDigest)?;
        let (digest, toc) =
            (sha256_digest(id), own.and_then(|blob| blob.toc).map(|(toc, _)| sha256_digest(toc)));
        let size = match blob {
            MadeBlob::Sent(writer) => writer.finish(&digest).await?,
            MadeBlob::Spooled(blob) => blob.store(destination, &digest).await?,
        };
        Ok(ConvertedLayer { layer, digest, size, source: None, diff_id, toc })
    }

    /// Gives up what was sent.
    pub async fn cancel(self) {
        if let MadeBlob::Sent(writer) = self.blob {
            writer.cancel().await;
        }
    }
}

/// A digest of the image format as registries have it.
pub(super) fn sha256_digest(digest: rafs::digest::Digest) -> Digest {
    format!("sha256:{digest}").parse().expect("64 hexadecimal digits behind sha256: are a digest")
}

/// Converts the files of a directory, as a layer of their own. Once `stop` is cancelled it fails, after what was stored is
/// given up.
pub(super) async fn convert_directory(
    recipe: Arc<Recipe>,
    path: PathBuf,
    destination: &Arc<dyn Destination>,
    stop: CancellationToken,
) -> Result<ConvertedLayer, ConvertError> {
    let build = move |output| {
        let mut output = Stoppable { inner: OutputWriter::new(output), stop };
        let layer = build_directory(&path, &mut output, recipe.build())?;
        output.flush()?;
        Ok(Built { layer, input: (), diff_id: None })
    };
    build_blob(destination.as_ref(), None, build).await?.store(destination.as_ref()).await
}

/// Output that is refused when nobody wants it any more.
struct Stoppable {
    inner: OutputWriter,
    stop: CancellationToken,
}

impl io::Write for Stoppable {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the conversion was cancelled"));
        }
        self.inner.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Has a blob stored at `destination` while `write`, on a thread that may block, writes it.
pub async fn store_written(
    destination: &Arc<dyn Destination>,
    write: impl FnOnce(&mut dyn io::Write) -> Result<Layer, WriteSharedError> + Send + 'static,
) -> Result<ConvertedLayer, ConvertError> {
    let build = move |output| {
        let mut output = OutputWriter::new(output);
        let layer = write(&mut output)?;
        output.flush()?;
        Ok(Built { layer, input: (), diff_id: None })
    };
    build_blob(destination.as_ref(), None, build).await?.store(destination.as_ref()).await
}

/// Has a blob built on a thread that may block, and sends it meanwhile. That takes `slot`, where there are so many and no more,
/// until the blob is built and sent.
pub(super) async fn build_blob<R: Send + 'static>(
    destination: &dyn Destination,
    mut slot: Option<Slot>,
    build: impl FnOnce(mpsc::Sender<Bytes>) -> Result<Built<R>, ConvertError> + Send + 'static,
) -> Result<BuiltLayer<R>, ConvertError> {
    // Before anything is converted: a registry that refuses does so at once.
    let writer = unless_stalled(&mut slot, destination.begin()).await?;
    let (sender, pieces) = mpsc::channel(OUTPUT_QUEUE);
    let building = tokio::task::spawn_blocking(move || build(sender));
    let (uploaded, built) = tokio::join!(upload(writer, pieces, &mut slot), building);
    // The builder fails as well when the upload does; the upload's reason is the one.
    let writer = uploaded?;
    match built.map_err(ConvertError::from).and_then(|built| built) {
        Ok(built) => Ok(BuiltLayer { blob: MadeBlob::Sent(writer), built }),
        Err(error) => {
            writer.cancel().await;
            Err(error)
        }
    }
}

/// Builds the layer; runs on a thread that may block.
pub(super) fn build<R: Read + Send>(
    options: &BuildOptions,
    mut input: R,
    mut output: impl io::Write + Send,
) -> Result<Built<R>, ConvertError> {
    let mut plain = Plain::new(&mut input);
    let layer = build_source(&mut TarSource::plain(&mut plain), &mut output, options)?;
    output.flush()?;
    // A tar may end before its stream does.
    io::copy(&mut plain, &mut io::sink())?;
    let diff_id = plain.diff_id();
    io::copy(&mut input, &mut io::sink())?;
    Ok(Built { layer, input, diff_id })
}

async fn upload(
    mut writer: Box<dyn BlobWriter>,
    mut pieces: mpsc::Receiver<Bytes>,
    slot: &mut Option<Slot>,
) -> Result<Box<dyn BlobWriter>, StoreError> {
    while let Some(piece) = pieces.recv().await {
        unless_stalled(slot, writer.write(piece)).await?;
    }
    Ok(writer)
}

/// Waits for `work` of the destination's, without the slot when that stands still.
async fn unless_stalled<T>(slot: &mut Option<Slot>, work: impl Future<Output = T>) -> T {
    match slot {
        Some(slot) => slot.lend(work).await,
        None => work.await,
    }
}

#[cfg(test)]
mod tests {
    use test_support::tar_of;

    use super::*;
    use crate::layer::watched::WatchedDestination;
    use crate::layer::{Converter, LayerCache};

    /// On one thread, on which all three would begin before the test goes on.
    #[tokio::test]
    async fn so_many_layers_are_converted_at_once_as_are_allowed() {
        let converter = Converter::new(Recipe::default(), 2, LayerCache::new(0));
        let watched = WatchedDestination::new();
        let mut arrived = watched.watch();
        let destination: Arc<dyn Destination> = Arc::new(watched);
        let mut conversions: Vec<LayerConversion> = (0..3).map(|_| converter.convert(&destination)).collect();
        for conversion in &mut conversions {
            conversion.write(tar_of(&[("file", b"content")]).into()).await.unwrap();
        }
        assert_eq!(arrived.wait_for(|arrived| arrived.begun >= 2).await.unwrap().begun, 2);
        conversions.remove(0).finish().await.unwrap();
        arrived.wait_for(|arrived| arrived.begun == 3).await.unwrap();
        for conversion in conversions {
            conversion.finish().await.unwrap();
        }
    }
}
