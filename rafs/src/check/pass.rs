//! One pass over a blob's stream: the digest of all of it, of every part and of every chunk.
//!
//! One thread reads. What it read goes to the thread that digests the stream, to the threads that verify chunks, and to one
//! thread for each part. At most a few pieces are under way, so memory does not depend on the blob.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::thread::ScopedJoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use sha2::{Digest as _, Sha256};

use super::plan::{Plan, Stored, subject};
use super::stream::CheckedStream;
use super::{Options, Report};
use crate::blob::decode::{Batch, DecodeError, decode};
use crate::blob::source::{BlobSource, name};
use crate::blob::stream::{Part, Toc};
use crate::blob::{Blob, BlobIndex};
use crate::bootstrap::Bootstrap;
use crate::digest::Digest;
use crate::layout::toc;

/// The stream is read in pieces of this many bytes, and of what completes the last chunk.
const STEP: u64 = 4 << 20;

/// Pieces that wait for each thread that uses them.
const WAITING: usize = 2;

/// What a pass needs.
pub(super) struct Pass<'a, S> {
    pub(super) bootstrap: &'a Bootstrap,
    pub(super) index: BlobIndex,
    pub(super) stream: &'a CheckedStream<'a, S>,
    pub(super) plan: &'a Plan,
    pub(super) toc: Option<&'a Toc>,
    pub(super) options: Options<'a>,
    pub(super) progress: &'a (dyn Fn(u64) + Sync),
}

/// Bytes of the stream.
struct StreamPiece {
    start: u64,
    bytes: Vec<u8>,
    /// The chunks of the plan that are in them.
    chunks: Range<usize>,
}

impl StreamPiece {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// What of a range of the stream is in this piece.
    fn slice(&self, range: &Range<u64>) -> &[u8] {
        let start = range.start.clamp(self.start, self.end());
        let end = range.end.clamp(start, self.end());
        &self.bytes[(start - self.start) as usize..(end - self.start) as usize]
    }
}

/// Goes through the stream once.
pub(super) fn run<S: BlobSource + Sync>(pass: Pass<'_, S>) -> Report {
    let mut report = Report::new(pass.options.limits);
    let parts = parts(&pass, &mut report);
    let (to_hasher, hashed) = bounded(WAITING);
    let (to_workers, jobs) = bounded(WAITING);
    std::thread::scope(|scope| {
        let pass = &pass;
        let hasher = scope.spawn(move || digest(pass.stream.blob, unnamed(pass.toc), &hashed));
        let workers: Vec<_> = (0..pass.options.threads())
            .map(|_| {
                let jobs = jobs.clone();
                scope.spawn(move || chunks(pass, &jobs))
            })
            .collect();
        drop(jobs);
        let mut consumers = vec![Consumer { range: 0..u64::MAX, pieces: to_hasher }];
        let mut verified = Vec::new();
        for part in parts {
            let (sender, pieces) = bounded(WAITING);
            consumers.push(Consumer { range: part.range.clone(), pieces: sender });
            verified
                .push((part, scope.spawn(move || part.verify_stream(Feed::new(part.range.clone(), pieces)))));
        }
        let read = read(pass, &mut consumers, &to_workers);
        // The others end when nothing more comes.
        drop((consumers, to_workers));
        workers.into_iter().for_each(|worker| report.merge(join(worker)));
        // Threads finish in any order; the report should not depend on it.
        report.sort();
        let found = join(hasher);
        match read {
            Ok(()) => {
                let blob = pass.stream.blob;
                if blob.id.is_some_and(|id| !found.contains(&id)) {
                    let problem = format!("the digest of its {} bytes is {}", pass.stream.len(), found[0]);
                    report.add(format!("blob {}", name(blob)), problem);
                }
                for (part, result) in verified {
                    if let Err(error) = join(result) {
                        report.error(format!("blob {}, {}", name(blob), part.name), &error);
                    }
                }
            }
            // Parts that did not come to their end are no findings.
            Err((at, error)) => {
                let subject = format!("blob {}", name(pass.stream.blob));
                report.source_error(format!("{subject}, from byte {at} on"), &error);
            }
        }
    });
    report
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The parts that are verified in passing. Chunk data is not one: it is verified chunk by chunk.
fn parts<'a, S>(pass: &Pass<'a, S>, report: &mut Report) -> Vec<&'a Part> {
    let mut left = pass.options.limits.part_bytes;
    let named = pass.toc.into_iter().flat_map(|toc| &toc.parts).filter(|part| part.name != toc::BLOB);
    let mut parts = Vec::new();
    for part in named {
        // A table may name the same bytes again and again.
        let fits = part.check_limits(pass.options.limits);
        left = match (fits, left.checked_sub(part.uncompressed_size)) {
            (Ok(()), Some(left)) => left,
            (fits, _) => {
                let subject = format!("blob {}, {}", name(pass.stream.blob), part.name);
                match fits {
                    Err(error) => report.error(subject, &error),
                    Ok(()) => {
                        report.add(subject, "with it, the blob's parts are larger than the largest may be")
                    }
                }
                continue;
            }
        };
        parts.push(part);
    }
    parts
}

/// nydus-image 2.2 names the blobs that it makes with `--features blob-toc` by the digest of all but the part with chunk
/// digests. Pushed to a registry, they get the digest of everything.
fn unnamed(toc: Option<&Toc>) -> Range<u64> {
    toc.and_then(|toc| toc.part(toc::DIGESTS)).map_or(0..0, |part| part.range.clone())
}

/// Who is sent pieces, and of which part of the stream.
struct Consumer {
    range: Range<u64>,
    pieces: Sender<Arc<StreamPiece>>,
}

/// Reads the stream from its start to its end. An error comes with where that was.
fn read<S: BlobSource>(
    pass: &Pass<'_, S>,
    consumers: &mut [Consumer],
    to_workers: &Sender<Arc<StreamPiece>>,
) -> Result<(), (u64, io::Error)> {
    let (size, planned) = (pass.stream.len(), &pass.plan.chunks);
    let (mut at, mut next) = (0, 0);
    while at < size {
        let wanted = (at + STEP).min(size);
        let last = next + planned[next..].partition_point(|chunk| chunk.offset < wanted);
        // The last chunk is not cut in two, nor are the members of a batch.
        let end = planned[next..last].last().map_or(wanted, |chunk| chunk.end().max(wanted));
        let bytes = pass.stream.take(at..end).map_err(|error| (at, error))?;
        let piece = Arc::new(StreamPiece { start: at, bytes, chunks: next..last });
        for consumer in
            consumers.iter().filter(|consumer| consumer.range.start < end && consumer.range.end > at)
        {
            // One that has ended has found its part broken, and wants no more.
            let _ = consumer.pieces.send(Arc::clone(&piece));
        }
        if next < last {
            let _ = to_workers.send(piece);
        }
        (pass.progress)(end - at);
        (at, next) = (end, last);
    }
    Ok(())
}

/// A part's stored bytes, as they come.
struct Feed {
    range: Range<u64>,
    pieces: Receiver<Arc<StreamPiece>>,
    current: Option<Arc<StreamPiece>>,
}

impl Feed {
    fn new(range: Range<u64>, pieces: Receiver<Arc<StreamPiece>>) -> Self {
        Self { range, pieces, current: None }
    }
}

impl Read for Feed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(piece) = &self.current {
                let bytes = piece.slice(&self.range);
                let length = bytes.len().min(out.len());
                if length > 0 {
                    out[..length].copy_from_slice(&bytes[..length]);
                    self.range.start += length as u64;
                    return Ok(length);
                }
            }
            if self.range.is_empty() || out.is_empty() {
                return Ok(0);
            }
            match self.pieces.recv() {
                Ok(piece) => self.current = Some(piece),
                Err(_) => return Ok(0),
            }
        }
    }
}

/// Digests of the stream: of all of it, and of all but a part.
fn digest(blob: &Blob, unnamed: Range<u64>, pieces: &Receiver<Arc<StreamPiece>>) -> [Digest; 2] {
    let mut all = Sha256::new();
    // Which is rarely needed, and costs as much.
    let mut named = (blob.id.is_some() && !unnamed.is_empty()).then(Sha256::new);
    for piece in pieces {
        all.update(&piece.bytes);
        if let Some(named) = &mut named {
            named.update(piece.slice(&(0..unnamed.start)));
            named.update(piece.slice(&(unnamed.end..u64::MAX)));
        }
    }
    let all = Digest(all.finalize().into());
    [all, named.map_or(all, |named| Digest(named.finalize().into()))]
}

/// Verifies the chunks of the pieces that come.
fn chunks<S: BlobSource>(pass: &Pass<'_, S>, jobs: &Receiver<Arc<StreamPiece>>) -> Report {
    let mut report = Report::new(pass.options.limits);
    for piece in jobs {
        let planned = &pass.plan.chunks[piece.chunks.clone()];
        for same in planned.chunk_by(|a, b| a.is_member && b.is_member && a.offset == b.offset) {
            let stored = piece.slice(&(same[0].offset..same[0].end()));
            verify(pass, same, stored, &mut report);
        }
    }
    report
}

/// Verifies a chunk, or all that are in the same batch.
fn verify<S: BlobSource>(pass: &Pass<'_, S>, chunks: &[Stored], stored: &[u8], report: &mut Report) {
    let blob = pass.stream.blob;
    let mut batch = None;
    // Members do not overlap, so that they are no more than the batch has bytes.
    let mut left = u64::from(blob.chunk_size);
    for planned in chunks {
        // It is known, or it would not be in the plan.
        let Ok(chunk) = pass.bootstrap.chunk(pass.index, planned.index) else { continue };
        let size = u64::from(chunk.uncompressed_size);
        let mut check = || -> Result<(), DecodeError> {
            if chunk.batch.is_none() {
                return decode(blob, &chunk, stored).map(drop);
            }
            let overlap = DecodeError::OutsideBatch { end: size, size: left };
            left = left.checked_sub(size).ok_or(overlap)?;
            let batch = match &batch {
                Some(batch) => batch,
                None => batch.insert(Batch::decode(blob, &chunk, stored)?),
            };
            batch.member(blob, &chunk).map(drop)
        };
        match check() {
            Ok(()) => {
                report.chunks += 1;
                report.bytes += size;
            }
            Err(error) => report.error(subject(&format!("blob {}", name(blob)), planned.index), &error),
        }
    }
}
