//! `image diff`: what differs between two images, and what a node that has one fetches for the other.

use std::fmt::Write as _;
use std::process::ExitCode;

use indicatif::HumanBytes;
use rafs::blob::source::load_chunk_info;
use rafs::diff::{self, Change, ChangeKind, ContentReader, Fetch};
use registry::client::Descriptor;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::blobs::Blobs;
use super::progress::Progress;
use super::source::Located;
use super::{Context, json};
use crate::args::Source;
use crate::status::Found;
use crate::stdout;

/// Everything `image diff --json` prints. Sizes are in bytes.
#[derive(Debug, Serialize)]
struct DiffReport {
    summary: Summary,
    changes: Vec<ChangeReport>,
    fetch: FetchReport,
}

/// Files and bytes by what became of them. Content that has several names counts once.
#[derive(Debug, Default, Serialize)]
struct Summary {
    added: Counted,
    removed: Counted,
    /// Files with other content; the bytes are those of the chunks that changed.
    content: Counted,
    /// Files with the same content and other metadata.
    metadata: Counted,
}

#[derive(Debug, Default, Serialize)]
struct Counted {
    files: u64,
    content_bytes: u64,
}

#[derive(Debug, Serialize)]
struct ChangeReport {
    path: String,
    change: &'static str,
    /// The type of what was added or removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    content_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<DifferenceReport>,
}

#[derive(Debug, Serialize)]
struct DifferenceReport {
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    a: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<String>,
}

/// What a node that has read all of A fetches to read all of B.
#[derive(Debug, Serialize)]
struct FetchReport {
    total_bytes: u64,
    /// The bootstrap as it is fetched; 0 if it is A's.
    bootstrap_bytes: u64,
    /// Chunk information that the bootstrap lacks, read at every mount.
    chunk_info_bytes: u64,
    chunks: u64,
    content_bytes: u64,
    stored_bytes: u64,
    /// `stored_bytes` if B referred to A's blobs for all content that these have.
    new_stored_bytes: u64,
    blobs: Vec<BlobReport>,
}

#[derive(Debug, Serialize)]
struct BlobReport {
    id: String,
    shared: bool,
    chunks: u64,
    stored_bytes: u64,
    /// Of `chunks`, those with content that A has nowhere.
    new_chunks: u64,
    new_stored_bytes: u64,
}

/// Compares `a` with `b` and prints what differs.
pub(super) async fn run(context: &Context, a: &Source, b: &Source, json: bool) -> anyhow::Result<ExitCode> {
    let (a, b) = (context.locate(a).await?, context.locate(b).await?);
    let (progress, stop) = (context.progress.clone(), context.stop.clone());
    let report = tokio::task::spawn_blocking(move || compare(&a, &b, &progress, &stop)).await??;
    if json {
        stdout::print_json(&report)?
    } else {
        stdout::print(&text(&report))?
    }
    Ok(Found::Differences.status_if(!report.changes.is_empty()))
}

fn compare(
    a: &Located,
    b: &Located,
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<DiffReport> {
    let open = |located: &Located| -> anyhow::Result<_> {
        let mut bootstrap = located.open()?;
        let source = Blobs::of(located, stop)
            .map(|blobs| blobs.shown(progress.task(format!("read {}", located.name), 0)));
        // Most bootstraps say all there is to know, so blobs need not be at hand.
        if diff::chunk_info_bytes(&bootstrap) > 0 {
            match &source {
                Ok(source) => load_chunk_info(&mut bootstrap, source)?,
                Err(error) => anyhow::bail!("chunks of this image are described in its blobs: {error:#}"),
            }
        }
        let image = bootstrap.to_image()?;
        Ok((bootstrap, image, source))
    };
    let (bootstrap_a, image_a, source_a) = open(a)?;
    let (bootstrap_b, image_b, source_b) = open(b)?;
    let mut reader = match (&source_a, &source_b) {
        (Ok(in_a), Ok(in_b)) => Some(ContentReader::new((&bootstrap_a, in_a), (&bootstrap_b, in_b))),
        _ => None,
    };
    let mut read = |a: &[_], b: &[_]| match &mut reader {
        Some(reader) => reader.first_difference(a, b),
        None => Err(rafs::blob::source::BlobError::Io {
            blob: "of both images".to_owned(),
            source: std::io::Error::other(
                "they differ in chunk size or digest algorithm, so their files have to be read: \
                 say where the blobs are with --blobs DIR",
            ),
        }),
    };
    let mut changes = Vec::new();
    diff::images(&image_a, &image_b, &mut read, &mut |change| changes.push(change))?;
    let fetch = diff::fetch(&image_a, &image_b);
    Ok(DiffReport {
        summary: Summary::of(&changes),
        changes: changes.iter().map(ChangeReport::of).collect(),
        fetch: FetchReport::of(&fetch, bootstrap_bytes(a, b)?, diff::chunk_info_bytes(&bootstrap_b)),
    })
}

/// The bytes that the bootstrap takes on its way to the node.
fn bootstrap_bytes(a: &Located, b: &Located) -> anyhow::Result<u64> {
    let layer = |located: &'_ Located| located.manifest.as_ref()?.bootstrap().cloned();
    match (layer(a), layer(b)) {
        (Some(a), Some(b)) if a.digest() == b.digest() => Ok(0),
        (_, Some(b)) => Ok(Descriptor::size(&b)),
        (_, None) => Ok(std::fs::metadata(&b.bootstrap)?.len()),
    }
}

impl Summary {
    fn of(changes: &[Change]) -> Self {
        let mut summary = Self::default();
        for change in changes {
            let (counted, bytes) = match &change.what {
                ChangeKind::Added(side) => (&mut summary.added, side.bytes),
                ChangeKind::Removed(side) => (&mut summary.removed, side.bytes),
                ChangeKind::Changed(differences) if differences.iter().any(diff::Difference::is_content) => {
                    (&mut summary.content, content_bytes(differences))
                }
                ChangeKind::Changed(_) => (&mut summary.metadata, 0),
            };
            counted.files += 1;
            counted.content_bytes += bytes;
        }
        summary
    }
}

fn content_bytes(differences: &[diff::Difference]) -> u64 {
    let bytes = differences.iter().map(|difference| match difference {
        diff::Difference::Content { bytes, .. } => *bytes,
        _ => 0,
    });
    bytes.sum()
}

impl ChangeReport {
    fn of(change: &Change) -> Self {
        let side = |side: &diff::Side| (Some(side.kind.word()), side.bytes, Vec::new());
        let (name, (kind, bytes, differences)) = match &change.what {
            ChangeKind::Added(added) => ("added", side(added)),
            ChangeKind::Removed(removed) => ("removed", side(removed)),
            ChangeKind::Changed(differences) => {
                let reports = differences.iter().map(DifferenceReport::of).collect();
                ("changed", (None, content_bytes(differences), reports))
            }
        };
        Self { path: change.shown(), change: name, kind, content_bytes: bytes, differences }
    }
}

impl DifferenceReport {
    fn of(difference: &diff::Difference) -> Self {
        let (a, b) = difference.values().unzip();
        Self { what: difference.name(), a, b }
    }
}

impl FetchReport {
    fn of(fetch: &Fetch, bootstrap_bytes: u64, chunk_info_bytes: u64) -> Self {
        let blobs = fetch.blobs.iter().map(|blob| BlobReport {
            id: json::id(blob.id),
            shared: blob.shared,
            chunks: blob.chunks,
            stored_bytes: blob.stored_bytes,
            new_chunks: blob.new_chunks,
            new_stored_bytes: blob.new_stored_bytes,
        });
        Self {
            total_bytes: bootstrap_bytes + chunk_info_bytes + fetch.stored_bytes(),
            bootstrap_bytes,
            chunk_info_bytes,
            chunks: fetch.blobs.iter().map(|blob| blob.chunks).sum(),
            content_bytes: fetch.blobs.iter().map(|blob| blob.content_bytes).sum(),
            stored_bytes: fetch.stored_bytes(),
            new_stored_bytes: fetch.new_stored_bytes(),
            blobs: blobs.collect(),
        }
    }
}

fn text(report: &DiffReport) -> String {
    let mut text = String::new();
    for change in &report.changes {
        let sign = match change.change {
            "added" => '+',
            "removed" => '-',
            _ => 'M',
        };
        let differences = change.differences.iter().map(|difference| match (&difference.a, &difference.b) {
            (Some(a), Some(b)) => format!("{} {a} -> {b}", difference.what),
            _ => difference.what.clone(),
        });
        let details = match &change.kind {
            Some(kind) if change.content_bytes > 0 => format!("{kind}, {}", HumanBytes(change.content_bytes)),
            Some(kind) => (*kind).to_owned(),
            None => differences.collect::<Vec<_>>().join(", "),
        };
        let _ = writeln!(text, "{sign} {}  {details}", change.path);
    }
    let summary = &report.summary;
    let rows = [
        ("added", &summary.added),
        ("removed", &summary.removed),
        ("content changed", &summary.content),
        ("metadata changed", &summary.metadata),
    ];
    let _ = writeln!(text, "\n{:18} {:>8} {:>12}", "", "files", "bytes");
    for (name, counted) in rows {
        let _ = writeln!(
            text,
            "{name:18} {:>8} {:>12}",
            counted.files,
            HumanBytes(counted.content_bytes).to_string()
        );
    }
    fetch_text(&report.fetch, &mut text);
    text
}

/// What a node fetches of B.
fn fetch_text(fetch: &FetchReport, text: &mut String) {
    let _ = writeln!(text, "\na node that has read all of A fetches for all of B:");
    let _ = writeln!(text, "{:27} {:>12}", "bootstrap", HumanBytes(fetch.bootstrap_bytes).to_string());
    if fetch.chunk_info_bytes > 0 {
        let _ = writeln!(
            text,
            "{:27} {:>12}",
            "chunk information",
            HumanBytes(fetch.chunk_info_bytes).to_string()
        );
    }
    let _ = writeln!(
        text,
        "{:27} {:>12}",
        format!("{} chunks", fetch.chunks),
        HumanBytes(fetch.stored_bytes).to_string()
    );
    let _ = writeln!(text, "{:27} {:>12}", "in all", HumanBytes(fetch.total_bytes).to_string());
    let elsewhere = fetch.stored_bytes - fetch.new_stored_bytes;
    if elsewhere > 0 {
        let _ = writeln!(
            text,
            "of that, {} is content that A has in blobs that B does not refer to",
            HumanBytes(elsewhere)
        );
    }
}
