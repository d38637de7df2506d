//! `image inspect`: what an image is made of.

mod chunks;
mod survey;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use image::document::Role;
use indicatif::HumanBytes;
use rafs::blob::source::load_chunk_info;
use rafs::blob::{Blob, BlobIndex};
use rafs::bootstrap::{self, Bootstrap, Version};
use rafs::diff::chunk_info_bytes;
use rafs::limits::Limits;
use rafs::tree::{ChunkRef, Image};
use registry::client::Descriptor;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::blobs::Blobs;
use super::progress::Progress;
use super::source::Located;
use super::{Context, json};
use crate::args::Source;
use crate::stdout::{self, Stdout};
use survey::{Sized, Survey};

/// Everything `image inspect --json` prints. Sizes are in bytes.
#[derive(Debug, Serialize)]
struct Inspection {
    rafs_version: u8,
    bootstrap_bytes: u64,
    chunk_size_bytes: u32,
    files: BTreeMap<&'static str, u64>,
    /// What the files hold, hard links counted once.
    content_bytes: u64,
    /// Chunks that files refer to, each counted as often as that happens.
    chunk_uses: u64,
    /// The same chunks, each counted once, and their content.
    chunks: u64,
    chunk_content_bytes: u64,
    /// `content_bytes` by `chunk_content_bytes`: what is saved by storing equal chunks once.
    deduplication: f64,
    /// The content of chunks by what is stored of it.
    compression: f64,
    blobs: Vec<BlobInspection>,
    /// The media types and sizes of the layers, if the image comes from a registry.
    layers: Vec<LayerInspection>,
    largest_files: Vec<Sized>,
    largest_directories: Vec<Sized>,
    /// The paths that a daemon fetches first.
    prefetch: Vec<String>,
}

#[derive(Debug, Serialize)]
struct BlobInspection {
    id: String,
    chunks: u32,
    /// The chunks that files refer to, and their content.
    used_chunks: u64,
    used_content_bytes: u64,
    /// What is stored of these; not known of blobs with batches whose chunk information is not at hand.
    used_stored_bytes: Option<u64>,
    /// All of the blob, and its chunks alone.
    stored_bytes: u64,
    chunk_stored_bytes: u64,
    uncompressed_bytes: u64,
    compressor: &'static str,
    digester: &'static str,
}

#[derive(Debug, Serialize)]
struct LayerInspection {
    digest: String,
    media_type: String,
    stored_bytes: u64,
    /// `blob` or `bootstrap`, where the layer says so.
    role: Option<&'static str>,
}

/// Prints the image, or one file's chunks.
pub(super) async fn run(
    context: &Context,
    source: &Source,
    json: bool,
    file: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let located = context.locate(source).await?;
    let (progress, stop) = (context.progress.clone(), context.stop.clone());
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let bootstrap = open(&located, &progress, &stop)?;
        match file {
            Some(file) => {
                let chunks = chunks::of(&bootstrap, &file)?;
                if json { stdout::print_json(&chunks)? } else { stdout::print(&chunks::text(&chunks))? }
            }
            None => {
                let inspection = inspect(&bootstrap, &located)?;
                if json { stdout::print_json(&inspection)? } else { stdout::print(&text(&inspection))? }
            }
        }
        Ok(())
    })
    .await??;
    Ok(ExitCode::SUCCESS)
}

/// Prints the bootstrap as it is stored.
pub(super) async fn dump(context: &Context, source: &Source) -> anyhow::Result<ExitCode> {
    let located = context.locate(source).await?;
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let mut out = BufWriter::new(Stdout::lock());
        bootstrap::dump(&located.open()?, Limits::DEFAULT, &mut out)?;
        Ok(out.flush()?)
    })
    .await??;
    Ok(ExitCode::SUCCESS)
}

/// Opens the bootstrap, with what only the blobs say of its chunks, if these are at hand.
fn open(located: &Located, progress: &Progress, stop: &CancellationToken) -> anyhow::Result<Bootstrap> {
    let mut bootstrap = located.open()?;
    if chunk_info_bytes(&bootstrap) > 0
        && let Ok(blobs) = Blobs::of(located, stop)
    {
        load_chunk_info(&mut bootstrap, &blobs.shown(progress.task("read chunk information", 0)))?;
    }
    Ok(bootstrap)
}

fn inspect(bootstrap: &Bootstrap, located: &Located) -> anyhow::Result<Inspection> {
    let image = bootstrap.to_image()?;
    let mut survey = Survey::of(&image);
    let blobs: Vec<_> = (0..)
        .zip(&image.blobs)
        .map(|(index, blob)| BlobInspection::of(bootstrap, BlobIndex(index), blob, &survey.chunks))
        .collect();
    let chunk_content_bytes = blobs.iter().map(|blob| blob.used_content_bytes).sum();
    Ok(Inspection {
        rafs_version: if bootstrap.version() == Version::V5 { 5 } else { 6 },
        bootstrap_bytes: bootstrap.size(),
        chunk_size_bytes: bootstrap.chunk_size(),
        content_bytes: survey.content_bytes,
        chunk_uses: survey.chunk_uses,
        chunks: survey.chunks.len() as u64,
        chunk_content_bytes,
        deduplication: ratio(survey.content_bytes, chunk_content_bytes),
        compression: compression(&image, &blobs),
        blobs,
        layers: located
            .manifest
            .iter()
            .flat_map(|manifest| &manifest.layers)
            .map(LayerInspection::of)
            .collect(),
        largest_files: survey.largest_files(),
        largest_directories: survey.largest_directories(),
        files: survey.files,
        prefetch: survey::prefetch(bootstrap)?,
    })
}

/// Content of chunks by what is stored of them: of those that files use, or where that is not known of all.
fn compression(image: &Image, blobs: &[BlobInspection]) -> f64 {
    let used_stored: Option<u64> = blobs.iter().map(|blob| blob.used_stored_bytes).sum();
    match used_stored {
        Some(stored) => ratio(blobs.iter().map(|blob| blob.used_content_bytes).sum(), stored),
        None => {
            let chunks = image.blobs.iter().flat_map(|blob| &blob.chunks);
            let content = chunks.map(|chunk| u64::from(chunk.uncompressed_size)).sum();
            ratio(content, blobs.iter().map(|blob| blob.chunk_stored_bytes).sum())
        }
    }
}

impl BlobInspection {
    fn of(bootstrap: &Bootstrap, index: BlobIndex, blob: &Blob, used: &HashSet<ChunkRef>) -> Self {
        let used = used.iter().filter(|at| at.blob == index);
        let (mut used_chunks, mut used_size, mut stored) = (0, 0, Some(0));
        // Members of a batch are stored in the same bytes.
        let mut extents = HashSet::new();
        for chunk in used.filter_map(|at| blob.chunks.get(at.chunk.0 as usize)) {
            used_chunks += 1;
            used_size += u64::from(chunk.uncompressed_size);
            if chunk.compressed_size == 0 {
                stored = None;
            } else if extents.insert(chunk.compressed_offset) {
                stored = stored.map(|stored| stored + u64::from(chunk.compressed_size));
            }
        }
        Self {
            id: json::id(blob.id),
            chunks: bootstrap.chunk_count(index),
            used_chunks,
            used_content_bytes: used_size,
            used_stored_bytes: stored,
            stored_bytes: blob.stored_size,
            chunk_stored_bytes: blob.compressed_size,
            uncompressed_bytes: blob.uncompressed_size,
            compressor: blob.compressor.word(),
            digester: blob.digester.word(),
        }
    }
}

impl LayerInspection {
    fn of(layer: &Descriptor) -> Self {
        Self {
            digest: layer.digest().to_string(),
            media_type: layer.media_type().to_string(),
            stored_bytes: layer.size(),
            role: Role::of(layer).map(Role::word),
        }
    }
}

fn text(image: &Inspection) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "RAFS v{}, chunks of {}",
        image.rafs_version,
        HumanBytes(image.chunk_size_bytes.into())
    );
    let _ = writeln!(text, "bootstrap      {}", HumanBytes(image.bootstrap_bytes));
    let files: Vec<_> = image.files.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let _ = writeln!(text, "files          {}", files.join(", "));
    let _ = writeln!(text, "content        {}", HumanBytes(image.content_bytes));
    let _ = writeln!(
        text,
        "chunks         {}, used {} times, {} of content",
        image.chunks,
        image.chunk_uses,
        HumanBytes(image.chunk_content_bytes)
    );
    let _ = writeln!(text, "deduplication  {:.2}x", image.deduplication);
    let _ = writeln!(text, "compression    {:.2}x", image.compression);
    blobs_text(image, &mut text);
    for (title, entries) in
        [("largest files", &image.largest_files), ("largest directories", &image.largest_directories)]
    {
        let _ = writeln!(text, "{title}");
        for entry in entries {
            let _ = writeln!(text, "  {:>12}  {}", HumanBytes(entry.content_bytes).to_string(), entry.path);
        }
    }
    if !image.prefetch.is_empty() {
        let _ = writeln!(text, "prefetch");
    }
    for path in &image.prefetch {
        let _ = writeln!(text, "  {path}");
    }
    text
}

/// What the image is stored in.
fn blobs_text(image: &Inspection, text: &mut String) {
    let _ = writeln!(text, "blobs");
    for blob in &image.blobs {
        let _ = writeln!(
            text,
            "  {}  {} chunks, {} of them used, {}, {}",
            blob.id,
            blob.chunks,
            blob.used_chunks,
            HumanBytes(blob.chunk_stored_bytes),
            blob.compressor
        );
    }
    if !image.layers.is_empty() {
        let _ = writeln!(text, "layers");
    }
    for layer in &image.layers {
        let _ = writeln!(
            text,
            "  {}  {:>12}  {}",
            layer.digest,
            HumanBytes(layer.stored_bytes).to_string(),
            layer.media_type
        );
    }
}

fn ratio(uncompressed: u64, compressed: u64) -> f64 {
    if compressed == 0 { 1.0 } else { uncompressed as f64 / compressed as f64 }
}
