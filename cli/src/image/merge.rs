//! `image merge`: layers become one image's bootstrap.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::HumanBytes;
use rafs::bootstrap::{self, WriteOptions};
use rafs::merge;
use tokio_util::sync::CancellationToken;

use super::output::Output;
use super::progress::Progress;
use super::{Context, Interrupted};

/// Merges the layers in these files, the lowest first, and writes the image's bootstrap to `output`.
pub(super) async fn run(
    context: &Context,
    layers: Vec<PathBuf>,
    output: PathBuf,
    prefetch: Vec<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let (progress, stop) = (context.progress.clone(), context.stop.clone());
    tokio::task::spawn_blocking(move || merge(&layers, &output, &prefetch, &progress, &stop)).await??;
    Ok(ExitCode::SUCCESS)
}

fn merge(
    files: &[PathBuf],
    output: &Path,
    prefetch: &[PathBuf],
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let sizes = files.iter().map(|file| size(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let task = progress.task("read layers", sizes.iter().sum());
    let mut layers = Vec::with_capacity(files.len());
    for (file, size) in files.iter().zip(sizes) {
        if stop.is_cancelled() {
            return Err(Interrupted.into());
        }
        layers.push(merge::open_layer(file)?);
        task.advance(size);
    }
    task.finish();

    let named =
        || files.iter().enumerate().map(|(layer, file)| format!("\n  layer {layer}: {}", file.display()));
    let image =
        merge::merge(layers).with_context(|| format!("cannot merge{}", named().collect::<String>()))?;
    let prefetch = prefetch.iter().map(|path| path_bytes(path)).collect();
    let options = WriteOptions { prefetch, ..WriteOptions::default() };
    let mut out = Output::create(output)?;
    bootstrap::write(&image, &options, &mut out)?;
    if stop.is_cancelled() {
        return Err(Interrupted.into());
    }
    out.finish()?;
    let written = HumanBytes(size(output)?);
    println!("{}: {written}, {} layers, {} blobs", output.display(), files.len(), image.blobs.len());
    for blob in &image.blobs {
        println!("  {}", blob.id.map_or_else(|| "unknown".to_owned(), |id| id.to_string()));
    }
    Ok(())
}

fn size(file: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len())
}

fn path_bytes(path: &Path) -> Box<[u8]> {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes().into()
}
