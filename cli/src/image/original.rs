//! What an image was made from, for `image check --source`: built again with nothing kept of it but the tree and the digests
//! of its chunks.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use bytes::{Buf as _, Bytes};
use image::document::Role;
use image::location::Location;
use image::platform::{PlatformName, listed};
use image::source::{BlobStream, Source};
use rafs::build::{BuildOptions, build_directory, build_layer};
use rafs::merge;
use rafs::tree::{Image, Layer};
use registry::client::Client;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::progress::Task;
use super::{Context, Interrupted};

/// Builds the image at `location`, for `platform` where there are several, and merges its layers.
pub(super) async fn build(
    context: &Context,
    location: &str,
    platform: Option<&str>,
    options: BuildOptions,
) -> anyhow::Result<Image> {
    let location: Location = location.parse()?;
    let layers = match &location {
        Location::Directory(path) => vec![directory(context, path.clone(), options).await?],
        _ => image_layers(context, &location, platform, options).await?,
    };
    if context.stop.is_cancelled() {
        return Err(Interrupted.into());
    }
    tokio::task::spawn_blocking(move || merge::merge(layers))
        .await?
        .with_context(|| format!("{location}: cannot merge its layers"))
}

async fn directory(context: &Context, path: PathBuf, options: BuildOptions) -> anyhow::Result<Layer> {
    let task = context.progress.task("read source", 0);
    let stop = context.stop.clone();
    let work = move || {
        let layer = build_directory(path, Sink { task: &task, stop: &stop }, &options)?;
        task.finish();
        Ok(layer)
    };
    tokio::task::spawn_blocking(work).await?
}

/// The layers of an image that has such, each built while it comes.
async fn image_layers(
    context: &Context,
    location: &Location,
    platform: Option<&str>,
    options: BuildOptions,
) -> anyhow::Result<Vec<Layer>> {
    let platform = platform.map_or_else(|| Ok(PlatformName::host()), str::parse)?;
    let client = Client::new(context.config.registry.clone())?;
    let find = async {
        let source = Source::open(location, &client).await?;
        // An image that is not one of several is for whatever it is for.
        let mut images = match source.images(std::slice::from_ref(&platform)).await {
            Err(image::source::SourceError::NoSuchPlatform { .. }) => source.images(&[]).await?,
            images => images?,
        };
        ensure!(
            images.len() == 1,
            "{location} has no image for {platform}; it has {}",
            listed(images.iter().map(|image| &image.platform))
        );
        Ok((source, images.remove(0)))
    };
    let (source, image) = context.stop.run_until_cancelled(find).await.ok_or(Interrupted)??;
    ensure!(
        image.layers.iter().all(|layer| Role::of(layer).is_none()),
        "{location} is a nydus image itself: expected the image that it was made from"
    );
    let mut layers = Vec::with_capacity(image.layers.len());
    for (number, descriptor) in image.layers.iter().enumerate() {
        let stream = context.stop.run_until_cancelled(source.blob(descriptor)).await.ok_or(Interrupted)??;
        let name = format!("read source {}/{}", number + 1, image.layers.len());
        let task = context.progress.task(name, stream.size());
        let place = stream.place().to_owned();
        let (options, stop, runtime) = (options.clone(), context.stop.clone(), Handle::current());
        let built = tokio::task::spawn_blocking(move || {
            let mut input = LayerReader { stream, runtime, stop, task, current: Bytes::new() };
            let layer = build_layer(&mut input, io::sink(), &options)?;
            // A tar may end before its stream does, and that is verified at its end.
            io::copy(&mut input, &mut io::sink())?;
            input.task.finish();
            anyhow::Ok(layer)
        });
        layers.push(built.await?.context(place)?);
    }
    Ok(layers)
}

/// Reads a layer; blocks.
struct LayerReader {
    stream: BlobStream,
    runtime: Handle,
    stop: CancellationToken,
    task: Task,
    current: Bytes,
}

impl Read for LayerReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            let next = self.runtime.block_on(self.stop.run_until_cancelled(self.stream.next()));
            let next = next.ok_or_else(|| io::Error::other(Interrupted))?.map_err(io::Error::other)?;
            let Some(next) = next else { return Ok(0) };
            self.task.advance(next.len() as u64);
            self.current = next;
        }
        let length = out.len().min(self.current.len());
        out[..length].copy_from_slice(&self.current[..length]);
        self.current.advance(length);
        Ok(length)
    }
}

/// Keeps nothing of what is written, and tells how much that was.
struct Sink<'a> {
    task: &'a Task,
    stop: &'a CancellationToken,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other(Interrupted));
        }
        self.task.advance(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
