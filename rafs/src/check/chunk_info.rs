//! Checking what a blob itself says of its chunks.

use super::stream::CheckedStream;
use super::{Report, plan};
use crate::blob::meta::BlobMeta;
use crate::blob::source::{BlobSource, ChunkInfoBudget, name, read_meta};
use crate::blob::{BlobIndex, Chunk, ChunkIndex};
use crate::bootstrap::Bootstrap;
use crate::layout::toc;

/// Reads chunk information, compares it with the bootstrap, and gives it to the bootstrap.
pub(super) fn check<S: BlobSource>(
    bootstrap: &mut Bootstrap,
    index: BlobIndex,
    stream: &CheckedStream<'_, S>,
    budget: &mut ChunkInfoBudget,
    report: &mut Report,
) {
    let blob = stream.blob;
    if blob.meta.is_none() {
        return;
    }
    let subject = format!("blob {}, {}", name(blob), toc::META);
    // Before it is read: a few kilobytes may be a gigabyte.
    let meta = budget.take_for(blob).and_then(|()| read_meta(stream, blob));
    let meta = match meta {
        Ok(meta) => meta,
        Err(error) => return report.error(subject, &error),
    };
    let stated = bootstrap.chunk_count(index);
    if meta.len() != stated {
        report.add(&subject, format!("{} chunks; the bootstrap says {stated}", meta.len()));
    }
    for position in (0..meta.len()).map(ChunkIndex) {
        compare(bootstrap, index, &meta, position, &subject, report);
    }
    if let Err(error) = bootstrap.set_chunk_info(index, meta) {
        report.error(subject, &error);
    }
}

fn compare(
    bootstrap: &Bootstrap,
    index: BlobIndex,
    meta: &BlobMeta,
    position: ChunkIndex,
    subject: &str,
    report: &mut Report,
) {
    let info = match meta.chunk(position) {
        Ok(info) => info,
        Err(error) => return report.error(plan::subject(subject, position), &error),
    };
    // Chunks that no file refers to are not in the bootstrap.
    let Ok(described) = bootstrap.described_chunk(index, position) else { return };
    let digest = info.digest.unwrap_or(described.digest);
    let mut stored = info.with_digest(digest);
    // The chunk table does not know a batch. nydus-image leaves all out that follows from it.
    if stored.batch.is_some() && described.batch.is_some() {
        (stored.batch, stored.compressed_size) = (described.batch, described.compressed_size);
        stored.compressed = described.compressed;
        if described.compressed_offset == 0 {
            stored.compressed_offset = 0;
        }
    }
    if let Some((what, found, expected)) = difference(&stored, &described) {
        let problem = format!("its {what} is {found}; the bootstrap's chunk table says {expected}");
        report.add(plan::subject(subject, position), problem);
    }
}

/// The first thing in which two descriptions of a chunk differ, and what each says.
fn difference(a: &Chunk, b: &Chunk) -> Option<(&'static str, String, String)> {
    let pairs = [
        ("digest", a.digest.to_string(), b.digest.to_string()),
        ("stored offset", a.compressed_offset.to_string(), b.compressed_offset.to_string()),
        ("stored size", a.compressed_size.to_string(), b.compressed_size.to_string()),
        ("uncompressed offset", a.uncompressed_offset.to_string(), b.uncompressed_offset.to_string()),
        ("uncompressed size", a.uncompressed_size.to_string(), b.uncompressed_size.to_string()),
        ("compression", yes(a.compressed), yes(b.compressed)),
        ("membership of a batch", yes(a.batch.is_some()), yes(b.batch.is_some())),
    ];
    if a == b { None } else { pairs.into_iter().find(|(_, a, b)| a != b) }
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}
