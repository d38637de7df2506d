//! What the worker is asked once: whether backends have blobs, how they answer, what it counts of them, and what it brings in a file
//! that the front made: chunk information, and parts of blobs. Nothing in such a file is believed.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rafs::blob::source::MetaParts;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::message::{InfoLengths, ToWorker, clip};
use super::remote::RemoteState;
use crate::sys::memory;
use crate::worker::{HostTotals, SourceReport};

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Brought {
    /// Chunk information is in the file: where its parts are.
    Info(InfoLengths),
    /// A part of a blob is in the file: how many bytes it has.
    Part(u64),
    /// A backend has a blob.
    Has,
    /// How backends answer.
    Sources(Vec<Option<SourceReport>>),
    /// What is counted of hosts, each with its number.
    Totals(Vec<(u32, HostTotals)>),
}

/// An errand that is under way: the file for what it brings, and who waits.
pub(super) struct Errand {
    file: Option<OwnedFd>,
    told: oneshot::Sender<ErrandResult>,
}

/// What came of it. `None`: the worker ended.
type ErrandResult = Option<(Result<Brought, String>, Option<OwnedFd>)>;

impl Errand {
    /// Whether nobody waits any longer.
    pub(super) fn is_given_up(&self) -> bool {
        self.told.is_closed()
    }

    /// Tells who waits what came of it.
    pub(super) fn end(self, outcome: Result<Brought, String>) {
        let _ = self.told.send(Some((outcome, self.file)));
    }

    /// Tells who waits that the worker ended.
    pub(super) fn abandon(self) {
        let _ = self.told.send(None);
    }
}

impl RemoteState {
    /// Has the worker that runs, and after that the next ones, bring something of up to `bytes` bytes until it is there, or `until` is
    /// over. `order` makes the message, with the errand's number and the milliseconds that are left.
    pub(super) async fn bring(
        &self,
        what: &str,
        bytes: u64,
        until: Instant,
        order: impl Fn(u64, u64) -> ToWorker,
    ) -> io::Result<(Brought, File)> {
        let file = || memory(&format!("nydus-cluster {what}"), bytes).map(Some);
        let (brought, file) = self.ask(&format!("its {what}"), until, file, order).await?;
        let file = file.ok_or_else(|| io::Error::other("it has no file"))?;
        Ok((brought, file.into()))
    }

    /// Asks the worker that runs, and after that the next ones, until one answers, or `until` is over. `file` makes the file for
    /// what it brings, `order` the message as above.
    pub(super) async fn ask(
        &self,
        what: &str,
        until: Instant,
        file: impl Fn() -> io::Result<Option<OwnedFd>>,
        order: impl Fn(u64, u64) -> ToWorker,
    ) -> io::Result<(Brought, Option<OwnedFd>)> {
        let asked = async {
            loop {
                // Whoever ends over it is asked no more often than one starts.
                if let Some(told) = self.send_out(until, &file, &order).await? {
                    return Ok(told);
                }
            }
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("{what} did not come in time"));
        match timeout_at(until, asked).await.unwrap_or_else(|_| Err(late()))? {
            (Ok(brought), file) => Ok((brought, file)),
            (Err(reason), _) => Err(io::Error::other(clip(&reason))),
        }
    }

    async fn send_out(
        &self,
        until: Instant,
        file: impl Fn() -> io::Result<Option<OwnedFd>>,
        order: impl Fn(u64, u64) -> ToWorker,
    ) -> io::Result<ErrandResult> {
        let mut current = self.current.subscribe();
        let connection = match current.wait_for(Option::is_some).await {
            Ok(connection) => connection.clone(),
            Err(closed) => return Err(io::Error::other(closed)),
        };
        let Some(connection) = connection else { return Ok(None) };
        let file = file()?;
        let (told, outcome) = oneshot::channel();
        let copy = file.as_ref().map(OwnedFd::try_clone).transpose()?;
        let number = self.enter(Errand { file, told });
        let left = until.saturating_duration_since(Instant::now());
        let message = order(number, left.as_millis().try_into().unwrap_or(u64::MAX));
        connection.sender.send(&message, copy);
        // One that ended before it was entered here will not be told of.
        if !current.borrow().as_ref().is_some_and(|now| Arc::ptr_eq(now, &connection)) {
            return Ok(None);
        }
        Ok(outcome.await.unwrap_or(None))
    }
}

/// Copies the parts of chunk information out of the worker's file.
pub(super) fn read_parts(file: &File, lengths: InfoLengths, limit: u64) -> io::Result<MetaParts> {
    let InfoLengths { header, array, tail, digests, stream_size } = lengths;
    let sum = [header, array, tail, digests].iter().try_fold(0_u64, |sum, part| sum.checked_add(*part));
    if sum.is_none_or(|sum| sum > limit) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has more bytes than it can have"));
    }
    let mut at = 0;
    let mut take = |len: u64| {
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, at)?;
        at += len;
        Ok::<_, io::Error>(bytes)
    };
    Ok(MetaParts {
        header: take(header)?,
        array: take(array)?,
        tail: take(tail)?,
        stream_size,
        digests: take(digests)?,
    })
}
