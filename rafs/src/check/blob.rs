//! Checking the blobs of an image.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::Report;
use crate::blob::source::{BlobSource, ChunkReader, name, read_meta, read_toc};
use crate::blob::stream::Part;
use crate::blob::{Blob, BlobIndex, ChunkIndex};
use crate::bootstrap::{Bootstrap, ReadError};
use crate::digest::Digest;
use crate::layout::toc;

/// Chunks are handed to threads in runs of this many, so that members of a batch mostly stay together.
const RUN: u32 = 64;

/// The stream is digested in steps of this many bytes.
const STEP: u64 = 1 << 20;

/// How to check blobs.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Number of threads that verify chunks; 0 for as many as there are processors.
    pub threads: usize,
    /// Is told how many bytes of all blob streams have been digested, out of how many.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { threads: 0, progress: &|_, _| () }
    }
}

/// Checks every blob: its digest, its table of contents with every part, and the digest of every chunk. Gives the
/// bootstrap the chunk information of the blobs. Ends early when something cannot be read for reasons that say nothing of
/// the image.
pub fn blobs(bootstrap: &mut Bootstrap, source: &(impl BlobSource + Sync), options: Options<'_>) -> Report {
    let mut report = Report::default();
    let blobs = bootstrap.blobs().to_vec();
    for (index, blob) in blobs.iter().enumerate() {
        let index = BlobIndex(index as u8);
        parts(blob, source, &mut report);
        if blob.meta.is_some() {
            chunk_info(bootstrap, index, blob, source, &mut report);
        }
        // Who does not answer now will not answer thousands of questions more.
        if !report.unknown.is_empty() {
            return report;
        }
    }
    let chunk_counts = bootstrap.check_chunk_counts();
    if let Err(error) = &chunk_counts {
        report.error("chunk table", error);
    }
    let total = blobs.iter().map(|blob| blob.stored_size).sum();
    let done = AtomicU64::new(0);
    for (index, blob) in blobs.iter().enumerate() {
        let index = BlobIndex(index as u8);
        let (stream, chunks) = std::thread::scope(|scope| {
            let stream = scope.spawn(|| {
                stream(blob, source, &|step| {
                    (options.progress)(done.fetch_add(step, Ordering::Relaxed) + step, total);
                })
            });
            let chunks = match &chunk_counts {
                Ok(()) => chunks(bootstrap, index, blob, source, options.threads),
                Err(_) => Report::default(),
            };
            (stream.join(), chunks)
        });
        report.merge(stream.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        report.merge(chunks);
        if !report.unknown.is_empty() {
            break;
        }
    }
    report
}

/// Checks the table of contents and the parts that it names.
fn parts(blob: &Blob, source: &impl BlobSource, report: &mut Report) {
    let subject = format!("blob {}", name(blob));
    let table = match read_toc(source, blob) {
        Ok(None) => return,
        Ok(Some(table)) => table,
        Err(error) => return report.error(subject, &error),
    };
    if let Some((_, size)) = blob.toc
        && size != table.size
    {
        report.add(&subject, format!("its table of contents has {} bytes; expected {size}", table.size));
    }
    for part in &table.parts {
        let result = if part.name == toc::BLOB { Ok(()) } else { verify(blob, source, part) };
        if let Err(error) = result {
            report.error(format!("{subject}, {}", part.name), &*error);
        }
    }
}

fn verify(
    blob: &Blob,
    source: &impl BlobSource,
    part: &Part,
) -> Result<(), Box<dyn std::error::Error + 'static>> {
    part.verify(&source.read(blob, part.range.clone())?)?;
    Ok(())
}

/// Reads chunk information, compares it with the bootstrap, and gives it to the bootstrap.
fn chunk_info(
    bootstrap: &mut Bootstrap,
    index: BlobIndex,
    blob: &Blob,
    source: &impl BlobSource,
    report: &mut Report,
) {
    let subject = format!("blob {}, {}", name(blob), toc::META);
    let meta = match read_meta(source, blob) {
        Ok(meta) => meta,
        Err(error) => return report.error(subject, &error),
    };
    if meta.len() != bootstrap.chunk_count(index) {
        report.add(
            &subject,
            format!("{} chunks; the bootstrap says {}", meta.len(), bootstrap.chunk_count(index)),
        );
    }
    for position in 0..meta.len() {
        let chunk = ChunkIndex(position);
        let info = match meta.chunk(chunk) {
            Ok(info) => info,
            Err(error) => {
                report.error(format!("{subject}, chunk {position}"), &error);
                continue;
            }
        };
        // Chunks that no file refers to are not in the bootstrap.
        let Ok(described) = bootstrap.described_chunk(index, chunk) else { continue };
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
        if stored != described {
            report.add(format!("{subject}, chunk {position}"), "not what the bootstrap's chunk table says");
        }
    }
    if let Err(error) = bootstrap.set_chunk_info(index, meta) {
        report.error(subject, &error);
    }
}

/// Checks the digest of the whole stream, which is the blob's id.
fn stream(blob: &Blob, source: &impl BlobSource, progress: &dyn Fn(u64)) -> Report {
    let mut report = Report::default();
    let subject = format!("blob {}", name(blob));
    let size = match source.size(blob) {
        Ok(size) => size,
        Err(error) => {
            report.error(subject, &error);
            return report;
        }
    };
    // nydus-image 2.2 names the blobs that it makes with `--features blob-toc` by the digest of all but the part with
    // chunk digests. Pushed to a registry, they get the digest of everything.
    let unnamed = read_toc(source, blob).ok().flatten();
    let unnamed =
        unnamed.and_then(|toc| toc.part(toc::DIGESTS).map(|part| part.range.clone())).unwrap_or(0..0);
    let mut hash = Sha256::new();
    let mut hash_of_named = Sha256::new();
    let mut at = 0;
    while at < size {
        // Steps end where the part begins and ends.
        let bounds = [at + STEP, unnamed.start, unnamed.end, size];
        let end = bounds.into_iter().filter(|bound| *bound > at).min().unwrap_or(size).min(size);
        match source.read(blob, at..end) {
            Ok(bytes) => {
                hash.update(&bytes);
                if !unnamed.contains(&at) && !unnamed.is_empty() {
                    hash_of_named.update(&bytes);
                }
            }
            Err(error) => {
                report.error(subject, &error);
                return report;
            }
        }
        progress(end - at);
        at = end;
    }
    let found = Digest(hash.finalize().into());
    let of_named = Digest(hash_of_named.finalize().into());
    if blob.id.is_some_and(|id| id != found && id != of_named) {
        report.add(subject, format!("the digest of its {size} bytes is {found}"));
    }
    report
}

/// Checks the digest of every chunk.
fn chunks(
    bootstrap: &Bootstrap,
    index: BlobIndex,
    blob: &Blob,
    source: &(impl BlobSource + Sync),
    threads: usize,
) -> Report {
    let count = bootstrap.chunk_count(index);
    let threads =
        if threads > 0 { threads } else { std::thread::available_parallelism().map_or(1, NonZero::get) };
    let next = AtomicU32::new(0);
    let report = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut reader = ChunkReader::new(bootstrap, source);
                loop {
                    let start = next.fetch_add(RUN, Ordering::Relaxed);
                    if start >= count {
                        break;
                    }
                    let mut found = Report::default();
                    for position in start..count.min(start + RUN) {
                        chunk(&mut reader, index, blob, ChunkIndex(position), &mut found);
                        if !found.unknown.is_empty() {
                            break;
                        }
                    }
                    if !found.unknown.is_empty() {
                        next.store(count, Ordering::Relaxed);
                    }
                    report.lock().unwrap_or_else(std::sync::PoisonError::into_inner).merge(found);
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Threads finish in any order; the report should not depend on it.
    report.findings.sort_unstable_by(|a, b| a.subject.cmp(&b.subject));
    report
}

fn chunk<S: BlobSource>(
    reader: &mut ChunkReader<'_, S>,
    index: BlobIndex,
    blob: &Blob,
    chunk: ChunkIndex,
    report: &mut Report,
) {
    use crate::blob::source::BlobError;
    match reader.read(index, chunk) {
        Ok(content) => {
            report.chunks += 1;
            report.bytes += content.len() as u64;
        }
        // No file refers to it, and the blob has no chunk information that would describe it.
        Err(BlobError::Bootstrap(ReadError::NoSuchChunk { .. })) => {}
        Err(error) => report.error(format!("blob {}, chunk {:>8}", name(blob), chunk.0), &error),
    }
}
