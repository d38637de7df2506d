//! `image unpack`: an image back into files.

use std::io::{self, BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use rafs::blob::source::load_chunk_info;
use rafs::unpack::{Unpack, content_size};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::blobs::Blobs;
use super::output::OutputFile;
use super::progress::Progress;
use super::source::Located;
use crate::args::Source;
use crate::stdout::Stdout;

/// Writes to standard output are gathered to this many bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// Unpacks to a tar at `destination` (`-`: standard output), or to the directory of that name.
pub(super) async fn run(
    context: &Context,
    source: &Source,
    destination: PathBuf,
    directory: bool,
) -> anyhow::Result<ExitCode> {
    // Before anything is transferred for it.
    refuse_destination(&destination, directory)?;
    let located = context.locate(source).await?;
    let (progress, stop) = (context.progress.clone(), context.stop.clone());
    let work = move || unpack(&located, &destination, directory, &progress, &stop);
    tokio::task::spawn_blocking(work).await??;
    Ok(ExitCode::SUCCESS)
}

/// Refuses where nothing can be unpacked to.
fn refuse_destination(destination: &Path, directory: bool) -> anyhow::Result<()> {
    let shown = destination.display();
    if !directory {
        ensure!(!destination.is_dir(), "{shown} is a directory: add --directory to unpack the image into it");
        return Ok(());
    }
    match destination.read_dir() {
        Ok(mut entries) => ensure!(entries.next().is_none(), "{shown} is not empty"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot unpack into {shown}")),
    }
    Ok(())
}

fn unpack(
    located: &Located,
    destination: &Path,
    directory: bool,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut bootstrap = located.open()?;
    // Blobs and what they say of chunks come before the destination is touched: an image that is not complete leaves nothing
    // there.
    let source = Blobs::of(located, stop)?;
    load_chunk_info(&mut bootstrap, &source)?;
    let task = progress.task("unpack", content_size(&bootstrap)?);
    let watch = |bytes| {
        task.advance(bytes);
        if stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let image = Unpack::new(&bootstrap, &source).watched(&watch);
    if directory {
        image.to_directory(destination)?;
    } else if destination == Path::new("-") {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, Stdout::lock());
        image.to_tar(&mut out)?;
        out.flush().context("writing to standard output")?;
    } else {
        let mut out = OutputFile::create(destination)?;
        image.to_tar(&mut out)?;
        out.finish()?;
    }
    task.finish();
    Ok(())
}
