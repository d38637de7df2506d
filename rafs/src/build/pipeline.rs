//! The threads of a build.
//!
//! ```text
//! reader ──full──> workers ──done──> writer
//!    ^                                  │
//!    └───────────── free ───────────────┘
//! ```
//!
//! The number of units is fixed, so memory is bounded and a slow end slows the other. A part that fails drops its ends
//! of the queues, which stops the others with [`BuildError::Stopped`].

use std::collections::BTreeMap;
use std::io::Write;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::BuildError;
use super::options::BuildOptions;
use super::read::{ReadTree, Reader, UnitQueue};
use super::seen::Seen;
use super::unit::Unit;
use super::work::Worker;
use super::write::{ChunkWriter, Written};
use crate::blob::stream::BlobWriter;
use crate::source::Source;

/// What a build gives before the blob's tail.
pub(super) struct Built<W> {
    pub(super) tree: ReadTree,
    pub(super) out: BlobWriter<W>,
    pub(super) written: Written,
}

/// Bytes of content that are under way at most: chunks of 16 MiB on many cores would exceed memory otherwise.
const CONTENT_LIMIT_BYTES: usize = 48 << 20;

/// The number of units: for each worker one that it works on and one that waits, the reader's and the writer's.
fn unit_count(options: &BuildOptions) -> usize {
    /// The reader's, a worker's and the writer's.
    const LEAST: usize = 3;
    let most = CONTENT_LIMIT_BYTES / Reader::unit_size(options);
    let batch = usize::from(options.batch_size.is_some());
    (2 * options.workers() + 3).min(most).max(LEAST) + batch
}

/// Runs a build.
pub(super) fn run<W: Write + Send>(
    source: &mut (impl Source + Send),
    out: W,
    options: &BuildOptions,
) -> Result<Built<W>, BuildError> {
    let units = unit_count(options);
    let (free_sender, free) = bounded(units);
    let (full, full_receiver) = bounded(units);
    let (done, done_receiver) = bounded(units);
    for _ in 0..units {
        free_sender.send(Unit::default()).expect("the queue holds all units");
    }
    let seen = Seen::default();
    let mut encoders =
        (0..options.workers()).map(|_| Worker::new(options, &seen)).collect::<Result<Vec<_>, _>>()?;
    let writer = ChunkWriter::new(out, &seen);

    thread::scope(|scope| {
        let working: Vec<_> = encoders
            .drain(..)
            .map(|worker| {
                let (full, done) = (full_receiver.clone(), done.clone());
                scope.spawn(move || work(worker, &full, &done))
            })
            .collect();
        // Each part ends when the one before it has let go of its queue: so this one must not hold any, and all are waited for in
        // the order in which content passes them.
        drop((full_receiver, done));
        let writing = scope.spawn(move || write(writer, &done_receiver, &free_sender));
        let read = Reader::new(options, UnitQueue { free, full }).read(source);

        let mut outcome = Ok(());
        for worker in working {
            outcome =
                first_cause(outcome, worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (read, outcome, written) {
            (Ok(tree), Ok(()), Ok((out, written))) => Ok(Built { tree, out, written }),
            (read, outcome, written) => {
                let outcome = first_cause(outcome, written.map(drop));
                Err(first_cause(outcome, read.map(drop)).err().unwrap_or(BuildError::Stopped))
            }
        }
    })
}

/// Of two outcomes the one that says why, rather than that another part has stopped.
fn first_cause(first: Result<(), BuildError>, second: Result<(), BuildError>) -> Result<(), BuildError> {
    match (first, second) {
        (Ok(()) | Err(BuildError::Stopped), second @ Err(_)) => second,
        (first, _) => first,
    }
}

fn work(mut worker: Worker<'_>, full: &Receiver<Unit>, done: &Sender<Unit>) -> Result<(), BuildError> {
    for mut unit in full {
        worker.process(&mut unit)?;
        done.send(unit).map_err(|_| BuildError::Stopped)?;
    }
    Ok(())
}

fn write<W: Write>(
    mut writer: ChunkWriter<'_, W>,
    done: &Receiver<Unit>,
    free: &Sender<Unit>,
) -> Result<(BlobWriter<W>, Written), BuildError> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for unit in done {
        waiting.insert(unit.number, unit);
        while let Some(unit) = waiting.remove(&next) {
            writer.write(&unit)?;
            next += 1;
            // The reader may have ended: then nobody needs the unit.
            _ = free.send(unit);
        }
    }
    if waiting.is_empty() { Ok(writer.finish()) } else { Err(BuildError::Stopped) }
}
