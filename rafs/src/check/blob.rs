//! Checking the blobs of an image.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

use super::stream::CheckedStream;
use super::{Report, chunk_info, pass, plan};
use crate::blob::source::{BlobSource, ChunkInfoBudget, name, read_toc};
use crate::blob::stream::Toc;
use crate::blob::{Blob, BlobIndex, ChunkIndex};
use crate::bootstrap::{Bootstrap, ReadError};
use crate::limits::Limits;

/// After so many blobs one after the other that could not be read, the rest is not asked for: a registry that is down would
/// cost its deadline for each.
const UNREADABLE_LIMIT: usize = 3;

/// How to check blobs.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Number of threads that verify chunks; 0 for as many as there are processors.
    pub threads: usize,
    /// Is told how many bytes of all blob streams have been read, out of how many.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// What an image may cost.
    pub limits: Limits,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { threads: 0, progress: &|_, _| (), limits: Limits::DEFAULT }
    }
}

impl Options<'_> {
    pub(super) fn threads(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
        if self.threads > 0 { self.threads } else { processors() }
    }
}

/// Checks every blob: its digest, its table of contents with every part, and the digest of every chunk. No byte of a blob is
/// read twice. Gives the bootstrap the chunk information that it lacks.
///
/// What is damaged is a finding, and the check goes on with the next chunk, part and blob. What cannot be read for reasons
/// that say nothing of the image is told apart from that.
pub fn blobs(bootstrap: &mut Bootstrap, source: &(impl BlobSource + Sync), options: Options<'_>) -> Report {
    let mut report = Report::new(options.limits);
    let blobs = bootstrap.blobs().to_vec();
    let described = Described::of(bootstrap, &mut report);
    let total = blobs.iter().map(|blob| blob.stored_size).sum();
    let done = AtomicU64::new(0);
    let progress = |step| (options.progress)(done.fetch_add(step, Ordering::Relaxed) + step, total);
    let mut budget = ChunkInfoBudget::new(options.limits);
    let mut unreadable = 0;
    for (blob, index) in blobs.iter().zip(0..) {
        if unreadable == UNREADABLE_LIMIT {
            let problem = format!("not looked at: {UNREADABLE_LIMIT} blobs before it could not be read");
            report.add_unknown(format!("blob {}", name(blob)), problem);
            continue;
        }
        let mut check = BlobCheck { index: BlobIndex(index), blob, source, options, progress: &progress };
        let (found, was_read) = check.run(bootstrap, &described, &mut budget);
        unreadable = if was_read { 0 } else { unreadable + 1 };
        report.merge(found);
    }
    report
}

/// The chunks that the bootstrap itself describes, by blob. Blobs may count any number of others.
struct Described(Vec<(BlobIndex, ChunkIndex)>);

impl Described {
    fn of(bootstrap: &Bootstrap, report: &mut Report) -> Self {
        let mut keys = Vec::new();
        match bootstrap.described_chunks() {
            Ok(chunks) => {
                for chunk in chunks {
                    match chunk {
                        Ok((blob, chunk, _)) => keys.push((blob, chunk)),
                        Err(error) => report.error("chunk table", &error),
                    }
                }
            }
            Err(error) => report.error("chunk table", &error),
        }
        keys.sort_unstable();
        keys.dedup();
        Self(keys)
    }

    fn of_blob(&self, blob: BlobIndex) -> impl Iterator<Item = ChunkIndex> {
        let start = self.0.partition_point(|(other, _)| *other < blob);
        self.0[start..].iter().take_while(move |(other, _)| *other == blob).map(|(_, chunk)| *chunk)
    }
}

/// The check of one blob.
struct BlobCheck<'a, S> {
    index: BlobIndex,
    blob: &'a Blob,
    source: &'a S,
    options: Options<'a>,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<S: BlobSource + Sync> BlobCheck<'_, S> {
    /// What is found, and whether the blob could be read.
    fn run(
        &mut self,
        bootstrap: &mut Bootstrap,
        described: &Described,
        budget: &mut ChunkInfoBudget,
    ) -> (Report, bool) {
        let mut report = Report::new(self.options.limits);
        let subject = format!("blob {}", name(self.blob));
        // What is behind the chunks comes first: it says where they are, and how to verify the parts in passing.
        let stream = match CheckedStream::open(self.blob, self.source) {
            Ok(stream) => stream,
            Err(error) => {
                report.source_error(subject, &error);
                let was_read = report.unknown.is_empty();
                return (report, was_read);
            }
        };
        let toc = self.table_of_contents(&stream, &mut report);
        chunk_info::check(bootstrap, self.index, &stream, budget, &mut report);
        let chunks = self.chunks(bootstrap, described, &mut report);
        let plan = plan::Plan::new(&subject, chunks, stream.len(), &mut report);
        let outcome = pass::run(pass::Pass {
            bootstrap,
            index: self.index,
            stream: &stream,
            plan: &plan,
            toc: toc.as_ref(),
            options: self.options,
            progress: self.progress,
        });
        let was_read = outcome.unknown.is_empty();
        report.merge(outcome);
        if !bootstrap.needs_chunk_info(self.index) {
            bootstrap.drop_chunk_info(self.index);
        }
        (report, was_read)
    }

    fn table_of_contents(&self, stream: &CheckedStream<'_, S>, report: &mut Report) -> Option<Toc> {
        let subject = format!("blob {}", name(self.blob));
        let table = match read_toc(stream, self.blob) {
            Ok(table) => table?,
            Err(error) => {
                report.error(subject, &error);
                return None;
            }
        };
        if let Some((_, size)) = self.blob.toc
            && size != table.size
        {
            report.add(subject, format!("its table of contents has {} bytes; expected {size}", table.size));
        }
        Some(table)
    }

    /// Where the chunks are of which something is known.
    fn chunks(&self, bootstrap: &Bootstrap, described: &Described, report: &mut Report) -> Vec<plan::Stored> {
        let mut stored = Vec::new();
        let mut add = |index: ChunkIndex| match bootstrap.chunk(self.index, index) {
            Ok(chunk) => stored.push(plan::Stored {
                offset: chunk.compressed_offset,
                size: chunk.compressed_size,
                index,
                is_member: chunk.batch.is_some(),
            }),
            // No file refers to it and nothing describes it; or the chunk information is broken, which is a finding already.
            Err(
                ReadError::NoSuchChunk { .. }
                | ReadError::ChunkInfo { .. }
                | ReadError::NeedsChunkInfo { .. },
            ) => {}
            Err(error) => report.error(plan::subject(&format!("blob {}", name(self.blob)), index), &error),
        };
        if bootstrap.has_chunk_info(self.index) {
            (0..bootstrap.chunk_info_len(self.index)).map(ChunkIndex).for_each(&mut add);
        } else {
            described.of_blob(self.index).for_each(&mut add);
        }
        stored
    }
}
