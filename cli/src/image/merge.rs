//! `image merge`: layers become one image's bootstrap.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use image::options::{Options, expand};
use indicatif::HumanBytes;
use rafs::bootstrap::{self, WriteOptions};
use rafs::merge;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::output::OutputFile;
use super::progress::Progress;
use super::{Context, Interrupted, json};
use crate::stdout;

/// What is to be merged.
pub(super) struct MergeRequest {
    /// Files, the lowest layer first.
    pub(super) layers: Vec<PathBuf>,
    pub(super) output: PathBuf,
    pub(super) options: Options,
    pub(super) json: bool,
}

/// Everything `image merge --json` prints.
#[derive(Debug, Serialize)]
struct MergeReport {
    bootstrap: String,
    bootstrap_bytes: u64,
    layers: usize,
    /// The ids of the blobs that the image uses.
    blobs: Vec<String>,
}

/// Merges the layers and writes the image's bootstrap.
pub(super) async fn run(context: &Context, wanted: MergeRequest) -> anyhow::Result<ExitCode> {
    let (progress, stop) = (context.progress.clone(), context.stop.clone());
    let as_json = wanted.json;
    let report = tokio::task::spawn_blocking(move || {
        merge(&wanted.layers, &wanted.output, &wanted.options, &progress, &stop)
    });
    let report = report.await??;
    if as_json {
        stdout::print_json(&report)?
    } else {
        stdout::print(&report.text())?
    }
    Ok(ExitCode::SUCCESS)
}

impl MergeReport {
    fn text(&self) -> String {
        let (written, blobs) = (HumanBytes(self.bootstrap_bytes), self.blobs.len());
        let blob_lines: String = self.blobs.iter().map(|id| format!("  {id}\n")).collect();
        format!("{}: {written}, {} layers, {blobs} blobs\n{blob_lines}", self.bootstrap, self.layers)
    }
}

fn merge(
    files: &[PathBuf],
    output: &Path,
    options: &Options,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<MergeReport> {
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
    let prefetch = expand(&options.prefetch, &image.tree);
    let options = WriteOptions { prefetch, ..WriteOptions::default() };
    let mut out = OutputFile::create(output)?;
    bootstrap::write(&image, &options, &mut out)?;
    // Until the file has its name, stopping leaves what was there before.
    if stop.is_cancelled() {
        return Err(Interrupted.into());
    }
    out.finish()?;
    Ok(MergeReport {
        bootstrap: output.display().to_string(),
        bootstrap_bytes: size(output)?,
        layers: files.len(),
        blobs: image.blobs.iter().map(|blob| json::id(blob.id)).collect(),
    })
}

fn size(file: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len())
}
