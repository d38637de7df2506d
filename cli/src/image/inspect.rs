//! `image inspect`: what an image is made of.

mod chunks;
mod survey;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::ExitCode;

use indicatif::HumanBytes;
use rafs::blob::source::load_chunk_info;
use rafs::blob::{Blob, BlobIndex};
use rafs::bootstrap::{Bootstrap, Version};
use rafs::compress::Compressor;
use rafs::diff::chunk_info_bytes;
use rafs::digest::DigestAlgorithm;
use rafs::tree::{ChunkRef, Image};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::blobs::Blobs;
use super::source::{self, Located};
use crate::args::Source;
use survey::{Sized, Survey};

/// Everything `image inspect --json` prints. Sizes are in bytes.
#[derive(Debug, Serialize)]
struct Inspection {
    rafs_version: u8,
    bootstrap_size: u64,
    chunk_size: u32,
    files: BTreeMap<&'static str, u64>,
    /// What the files hold, hard links counted once.
    content_size: u64,
    /// Chunks that files refer to, each counted as often as that happens.
    chunk_uses: u64,
    /// The same chunks, each counted once, and their content.
    chunks: u64,
    chunks_size: u64,
    /// `content_size` by `chunks_size`: what is saved by storing equal chunks once.
    dedup_ratio: f64,
    /// The content of chunks by what is stored of it.
    compression_ratio: f64,
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
    used_size: u64,
    /// What is stored of these; not known of blobs with batches whose chunk information is not at hand.
    used_stored_size: Option<u64>,
    stored_size: u64,
    compressed_size: u64,
    uncompressed_size: u64,
    compressor: &'static str,
    digester: &'static str,
}

#[derive(Debug, Serialize)]
struct LayerInspection {
    digest: String,
    media_type: String,
    size: u64,
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
    let stop = context.stop.clone();
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let bootstrap = open(&located, &stop)?;
        match file {
            Some(file) => {
                let chunks = chunks::of(&bootstrap, &file)?;
                if json { print_json(&chunks)? } else { chunks::print(&chunks) }
            }
            None => {
                let inspection = inspect(&bootstrap, &located)?;
                if json { print_json(&inspection)? } else { print(&inspection) }
            }
        }
        Ok(())
    })
    .await??;
    Ok(ExitCode::SUCCESS)
}

/// Opens the bootstrap, with what only the blobs say of its chunks, if these are at hand.
fn open(located: &Located, stop: &CancellationToken) -> anyhow::Result<Bootstrap> {
    let mut bootstrap = Bootstrap::open(&located.bootstrap)?;
    if chunk_info_bytes(&bootstrap) > 0
        && let Ok(blobs) = Blobs::of(located, stop)
    {
        load_chunk_info(&mut bootstrap, &blobs)?;
    }
    Ok(bootstrap)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn inspect(bootstrap: &Bootstrap, located: &Located) -> anyhow::Result<Inspection> {
    let image = bootstrap.to_image()?;
    let mut survey = Survey::of(&image);
    let blobs: Vec<_> = (0..)
        .zip(&image.blobs)
        .map(|(index, blob)| BlobInspection::of(bootstrap, BlobIndex(index), blob, &survey.chunks))
        .collect();
    let chunks_size = blobs.iter().map(|blob| blob.used_size).sum();
    Ok(Inspection {
        rafs_version: if bootstrap.version() == Version::V5 { 5 } else { 6 },
        bootstrap_size: bootstrap.size(),
        chunk_size: bootstrap.chunk_size(),
        content_size: survey.content_size,
        chunk_uses: survey.chunk_uses,
        chunks: survey.chunks.len() as u64,
        chunks_size,
        dedup_ratio: ratio(survey.content_size, chunks_size),
        compression_ratio: compression_ratio(&image, &blobs),
        blobs,
        layers: located
            .manifest
            .iter()
            .flat_map(|manifest| manifest.layers())
            .map(LayerInspection::of)
            .collect(),
        largest_files: survey.largest_files(),
        largest_directories: survey.largest_directories(),
        files: survey.files,
        prefetch: survey::prefetch(bootstrap)?,
    })
}

/// Content of chunks by what is stored of them: of those that files use, or where that is not known of all.
fn compression_ratio(image: &Image, blobs: &[BlobInspection]) -> f64 {
    let used_stored: Option<u64> = blobs.iter().map(|blob| blob.used_stored_size).sum();
    match used_stored {
        Some(stored) => ratio(blobs.iter().map(|blob| blob.used_size).sum(), stored),
        None => {
            let chunks = image.blobs.iter().flat_map(|blob| &blob.chunks);
            let content = chunks.map(|chunk| u64::from(chunk.uncompressed_size)).sum();
            ratio(content, blobs.iter().map(|blob| blob.compressed_size).sum())
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
            id: blob.id.map_or_else(|| "unknown".to_owned(), |id| id.to_string()),
            chunks: bootstrap.chunk_count(index),
            used_chunks,
            used_size,
            used_stored_size: stored,
            stored_size: blob.stored_size,
            compressed_size: blob.compressed_size,
            uncompressed_size: blob.uncompressed_size,
            compressor: match blob.compressor {
                Compressor::None => "none",
                Compressor::Lz4 => "lz4",
                Compressor::Zstd { .. } => "zstd",
            },
            digester: match blob.digester {
                DigestAlgorithm::Blake3 => "blake3",
                DigestAlgorithm::Sha256 => "sha256",
            },
        }
    }
}

impl LayerInspection {
    fn of(layer: &oci_spec::image::Descriptor) -> Self {
        Self {
            digest: layer.digest().to_string(),
            media_type: layer.media_type().to_string(),
            size: layer.size(),
            role: source::role(layer),
        }
    }
}

fn print(image: &Inspection) {
    println!("RAFS v{}, chunks of {}", image.rafs_version, HumanBytes(image.chunk_size.into()));
    println!("bootstrap      {}", HumanBytes(image.bootstrap_size));
    let files: Vec<_> = image.files.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("files          {}", files.join(", "));
    println!("content        {}", HumanBytes(image.content_size));
    println!(
        "chunks         {}, used {} times, {} of content",
        image.chunks,
        image.chunk_uses,
        HumanBytes(image.chunks_size)
    );
    println!("deduplication  {:.2}x", image.dedup_ratio);
    println!("compression    {:.2}x", image.compression_ratio);
    println!("blobs");
    for blob in &image.blobs {
        println!(
            "  {}  {} chunks, {} of them used, {}, {}",
            blob.id,
            blob.chunks,
            blob.used_chunks,
            HumanBytes(blob.compressed_size),
            blob.compressor
        );
    }
    if !image.layers.is_empty() {
        println!("layers");
    }
    for layer in &image.layers {
        println!("  {}  {:>12}  {}", layer.digest, HumanBytes(layer.size).to_string(), layer.media_type);
    }
    for (title, entries) in
        [("largest files", &image.largest_files), ("largest directories", &image.largest_directories)]
    {
        println!("{title}");
        for entry in entries {
            println!("  {:>12}  {}", HumanBytes(entry.size).to_string(), entry.path);
        }
    }
    if !image.prefetch.is_empty() {
        println!("prefetch");
    }
    for path in &image.prefetch {
        println!("  {path}");
    }
}

fn ratio(uncompressed: u64, compressed: u64) -> f64 {
    if compressed == 0 { 1.0 } else { uncompressed as f64 / compressed as f64 }
}
