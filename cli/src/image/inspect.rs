//! `image inspect`: what an image is made of.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::HumanBytes;
use rafs::blob::BlobIndex;
use rafs::bootstrap::{Bootstrap, Version};
use rafs::tree::{Image, Kind, NodeId, Tree};
use serde::Serialize;

use super::source::Located;

/// How many of the largest files and directories are shown.
const LARGEST: usize = 10;

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
    blobs: Vec<BlobInspection>,
    /// The media types and sizes of the layers, if the image comes from a registry.
    layers: Vec<LayerInspection>,
    largest_files: Vec<Sized>,
    largest_directories: Vec<Sized>,
    prefetch: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct BlobInspection {
    id: String,
    chunks: u32,
    stored_size: u64,
    compressed_size: u64,
    uncompressed_size: u64,
    compressor: String,
    digester: String,
}

#[derive(Debug, Serialize)]
struct LayerInspection {
    digest: String,
    media_type: String,
    size: u64,
}

#[derive(Debug, Serialize)]
struct Sized {
    path: String,
    size: u64,
}

/// One chunk of a file, for `--file`.
#[derive(Debug, Serialize)]
struct FileChunk {
    file_offset: u64,
    blob: String,
    chunk: u32,
    digest: String,
    compressed_offset: u64,
    compressed_size: u32,
    uncompressed_size: u32,
}

/// Prints the image, or one file's chunks.
pub(super) fn run(located: Located, json: bool, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    let bootstrap = Bootstrap::open(&located.bootstrap)?;
    match file {
        Some(file) => {
            let chunks = file_chunks(&bootstrap, file)?;
            if json { print_json(&chunks)? } else { print_chunks(&chunks) }
        }
        None => {
            let inspection = inspect(&bootstrap, &located)?;
            if json { print_json(&inspection)? } else { print(&inspection) }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn inspect(bootstrap: &Bootstrap, located: &Located) -> anyhow::Result<Inspection> {
    let image = bootstrap.to_image()?;
    let survey = Survey::of(&image);
    let layers = located.manifest.iter().flat_map(|manifest| manifest.layers());
    Ok(Inspection {
        rafs_version: if bootstrap.version() == Version::V5 { 5 } else { 6 },
        bootstrap_size: bootstrap.size(),
        chunk_size: bootstrap.chunk_size(),
        files: survey.files,
        content_size: survey.content_size,
        chunk_uses: survey.chunk_uses,
        blobs: (0..)
            .zip(bootstrap.blobs())
            .map(|(index, blob)| BlobInspection {
                id: blob.id.map_or_else(|| "unknown".to_owned(), |id| id.to_string()),
                chunks: bootstrap.chunk_count(BlobIndex(index)),
                stored_size: blob.stored_size,
                compressed_size: blob.compressed_size,
                uncompressed_size: blob.uncompressed_size,
                compressor: format!("{:?}", blob.compressor),
                digester: format!("{:?}", blob.digester),
            })
            .collect(),
        layers: layers
            .map(|layer| LayerInspection {
                digest: layer.digest().to_string(),
                media_type: layer.media_type().to_string(),
                size: layer.size(),
            })
            .collect(),
        largest_files: largest(survey.sizes),
        largest_directories: largest(survey.directories),
        prefetch: bootstrap.prefetch()?.into_iter().map(|nid| nid.0).collect(),
    })
}

fn largest(mut all: Vec<Sized>) -> Vec<Sized> {
    all.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    all.truncate(LARGEST);
    all
}

/// What a walk over the tree finds.
#[derive(Default)]
struct Survey {
    files: BTreeMap<&'static str, u64>,
    content_size: u64,
    chunk_uses: u64,
    sizes: Vec<Sized>,
    directories: Vec<Sized>,
    seen: HashSet<NodeId>,
}

/// A step of the walk, which keeps its own stack: an image may nest deeper than a thread's.
enum Step {
    Enter { node: NodeId, path: String, parent: usize },
    Leave { path: String, parent: usize },
}

impl Survey {
    fn of(image: &Image) -> Self {
        let mut survey = Self::default();
        // The sizes of the directories that the walk is in; the first stands above the root.
        let mut open = vec![0];
        let mut steps = vec![Step::Enter { node: Tree::ROOT, path: String::new(), parent: 0 }];
        while let Some(step) = steps.pop() {
            match step {
                Step::Leave { path, parent } => {
                    let size = open.pop().unwrap_or_default();
                    survey.directories.push(Sized { path: format!("{path}/"), size });
                    open[parent] += size;
                }
                Step::Enter { node, path, parent } => {
                    let Some(entries) = image.tree.entries(node) else {
                        open[parent] += survey.file(node, &image.tree.node(node).kind, path);
                        continue;
                    };
                    survey.count("directory");
                    open.push(0);
                    let this = open.len() - 1;
                    let inside = entries.iter().map(|(name, node)| Step::Enter {
                        node: *node,
                        path: format!("{path}/{}", name.escape_ascii()),
                        parent: this,
                    });
                    let inside: Vec<_> = inside.collect();
                    steps.push(Step::Leave { path, parent });
                    steps.extend(inside);
                }
            }
        }
        survey
    }

    fn count(&mut self, kind: &'static str) {
        *self.files.entry(kind).or_default() += 1;
    }

    /// Takes note of what is no directory, and returns its size: 0 under a second name.
    fn file(&mut self, node: NodeId, kind: &Kind, path: String) -> u64 {
        if !self.seen.insert(node) {
            return 0;
        }
        match kind {
            Kind::Regular { size, chunks } => {
                self.count("regular");
                self.content_size += size;
                self.chunk_uses += chunks.len() as u64;
                self.sizes.push(Sized { path, size: *size });
                return *size;
            }
            Kind::Directory(_) => {}
            Kind::Symlink(_) => self.count("symlink"),
            Kind::CharDevice(_) | Kind::BlockDevice(_) => self.count("device"),
            Kind::Fifo => self.count("fifo"),
            Kind::Socket => self.count("socket"),
        }
        0
    }
}

fn print(image: &Inspection) {
    println!("RAFS v{}, chunks of {}", image.rafs_version, HumanBytes(image.chunk_size.into()));
    println!("bootstrap      {}", HumanBytes(image.bootstrap_size));
    let files: Vec<_> = image.files.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("files          {}", files.join(", "));
    println!("content        {}", HumanBytes(image.content_size));
    let (stored, unpacked) = image.blobs.iter().fold((0, 0), |(stored, unpacked), blob| {
        (stored + blob.compressed_size, unpacked + blob.uncompressed_size)
    });
    let chunks: u64 = image.blobs.iter().map(|blob| u64::from(blob.chunks)).sum();
    println!("chunks         {chunks}, used {} times", image.chunk_uses);
    println!(
        "blobs          {} holding {} ({:.2}x)",
        HumanBytes(stored),
        HumanBytes(unpacked),
        ratio(unpacked, stored)
    );
    for blob in &image.blobs {
        println!(
            "  {}  {} chunks, {}, {}",
            blob.id,
            blob.chunks,
            HumanBytes(blob.compressed_size),
            blob.compressor
        );
    }
    if !image.layers.is_empty() {
        println!("layers");
    }
    for layer in &image.layers {
        println!("  {}  {}  {}", layer.digest, HumanBytes(layer.size), layer.media_type);
    }
    for (title, entries) in
        [("largest files", &image.largest_files), ("largest directories", &image.largest_directories)]
    {
        println!("{title}");
        for entry in entries {
            println!("  {:>12}  {}", HumanBytes(entry.size).to_string(), entry.path);
        }
    }
}

fn ratio(uncompressed: u64, compressed: u64) -> f64 {
    if compressed == 0 { 1.0 } else { uncompressed as f64 / compressed as f64 }
}

fn file_chunks(bootstrap: &Bootstrap, file: &Path) -> anyhow::Result<Vec<FileChunk>> {
    let path = file.as_os_str().as_bytes();
    let nid = bootstrap
        .lookup_path(path)?
        .with_context(|| format!("{}: no such file in the image", file.display()))?;
    let pieces = bootstrap.chunks(nid, 0..u64::MAX).with_context(|| file.display().to_string())?;
    pieces
        .map(|piece| {
            let piece = piece?;
            let chunk = bootstrap.chunk(piece.blob, piece.chunk)?;
            let blob = bootstrap.blobs().get(usize::from(piece.blob.0)).and_then(|blob| blob.id);
            Ok(FileChunk {
                file_offset: piece.file_offset,
                blob: blob.map_or_else(|| "unknown".to_owned(), |id| id.to_string()),
                chunk: piece.chunk.0,
                digest: chunk.digest.to_string(),
                compressed_offset: chunk.compressed_offset,
                compressed_size: chunk.compressed_size,
                uncompressed_size: chunk.uncompressed_size,
            })
        })
        .collect()
}

fn print_chunks(chunks: &[FileChunk]) {
    println!("file offset  blob          chunk  stored at    size     unpacked  digest");
    for chunk in chunks {
        println!(
            "{:>11}  {:.12}  {:>5}  {:>9}  {:>6}  {:>8}  {}",
            chunk.file_offset,
            chunk.blob,
            chunk.chunk,
            chunk.compressed_offset,
            chunk.compressed_size,
            chunk.uncompressed_size,
            chunk.digest
        );
    }
}
