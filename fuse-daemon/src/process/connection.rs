//! The front's end of one worker's process.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rafs::blob::ChunkIndex;

use super::errand::Brought;
use super::message::{FROM_WORKER_LIMIT, FromWorker, Guards, Question, ToWorker, Violation, parse};
use super::wire::{Receiver, Sender};
use crate::buffers::Buffers;
use crate::cache::{CHUNK_BYTES_LIMIT, Generation};
use crate::front::{BackendName, ChunkError, ChunkKey, Content, Responses};
use crate::sys::memory;

/// The memory that chunks are decoded into, in bytes: one of the largest chunks fits.
pub(super) const MEMORY_BYTES: u64 = CHUNK_BYTES_LIMIT as u64;

/// How often a worker that owes something is asked for a sign of life.
const PING_PAUSE: Duration = Duration::from_millis(500);

/// Whom a worker's words concern, beside those who wait for chunks.
pub(super) trait Listener: Send + Sync {
    /// Something was answered, is in its file, or will not come.
    fn brought(&self, number: u64, outcome: Result<Brought, String>);

    /// The worker asks for something.
    fn asked(&self, connection: &Arc<WorkerConnection>, number: u64, question: Question);
}

/// See the module.
pub(super) struct WorkerConnection {
    pub(super) sender: Sender,
    receiver: Mutex<Receiver>,
    memory: File,
    /// For copies of chunks: what is verified is what nobody else can write to.
    copies: Buffers,
    /// What was ordered and not answered, and until when it is due.
    due: Mutex<HashMap<ChunkKey, Instant>>,
    health: Mutex<Health>,
    /// Something of it has changed that somebody waits for: it is ready, or over.
    changed: Condvar,
}

#[derive(Default)]
struct Health {
    guards: Option<Guards>,
    /// Since when nothing has come although somebody listens.
    silent_since: Option<Instant>,
    /// The last ping: its number, when it was sent, and whether it was echoed.
    ping: Option<(u64, Instant, bool)>,
    /// Whether something was owed when it was last looked.
    busy: bool,
    /// When the last ping was sent that was echoed: what the worker said before that was heard.
    heard: Option<Instant>,
    /// Why it is over.
    ended: Option<String>,
}

/// Why a worker is of no use any longer.
pub(super) struct Over {
    pub(super) why: String,
    /// Whether it hangs.
    pub(super) hung: bool,
}

impl WorkerConnection {
    /// A connection over `socket`, and the memory for the worker.
    pub(super) fn new(socket: UnixStream) -> io::Result<(Self, OwnedFd)> {
        let memory = memory("nydus-cluster chunks", MEMORY_BYTES)?;
        let socket = Arc::new(socket);
        let connection = Self {
            sender: Sender::new(Arc::clone(&socket)),
            receiver: Mutex::new(Receiver::new(socket, FROM_WORKER_LIMIT, false)),
            memory: memory.try_clone()?.into(),
            copies: Buffers::default(),
            due: Mutex::default(),
            health: Mutex::default(),
            changed: Condvar::new(),
        };
        Ok((connection, memory))
    }

    /// The worker owes these chunks.
    pub(super) fn owes(&self, chunks: impl Iterator<Item = ChunkKey>, until: Instant) {
        self.due().extend(chunks.map(|chunk| (chunk, until)));
    }

    /// Hears what the worker says until the connection ends. Several threads do: one waits for the next message while the
    /// others verify and store what came.
    pub(super) fn listen(self: &Arc<Self>, responses: &dyn Responses, listener: &dyn Listener) {
        loop {
            let received = {
                let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
                self.health().silent_since = Some(Instant::now());
                let received = receiver.next();
                self.health().silent_since = None;
                received
            };
            let handled = match received {
                Ok(None) => return self.end("it hung up".to_owned()),
                Ok(Some(message)) => self.handle(&message, responses, listener),
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    Err(Violation::Message(error.to_string()))
                }
                Err(error) => return self.end(error.to_string()),
            };
            if let Err(violation) = handled {
                return self.end(format!("it sent {violation}"));
            }
        }
    }

    fn handle(
        self: &Arc<Self>,
        message: &[u8],
        responses: &dyn Responses,
        listener: &dyn Listener,
    ) -> Result<(), Violation> {
        match parse(message)? {
            FromWorker::Ready { guards } => {
                self.health().guards.get_or_insert(guards);
                self.changed.notify_all();
            }
            FromWorker::Delivered { blob, generation, chunks, at, from } => {
                let key =
                    |chunk| ChunkKey { blob, generation: Generation(generation), chunk: ChunkIndex(chunk) };
                let chunks: Vec<_> = chunks.into_iter().map(|(chunk, len)| (key(chunk), len)).collect();
                self.delivered(&chunks, at, &from.into(), responses)?;
            }
            FromWorker::Failed { chunk, failure } => {
                let chunk = chunk.into();
                self.due().remove(&chunk);
                responses.finished(chunk, Err(failure.into()));
            }
            FromWorker::ChunkInfo { number, outcome } => {
                listener.brought(number, outcome.map(Brought::Info));
            }
            FromWorker::Part { number, outcome } => listener.brought(number, outcome.map(Brought::Part)),
            FromWorker::Has { number, outcome } => listener.brought(number, outcome.map(|()| Brought::Has)),
            FromWorker::Sources { number, sources } => {
                listener.brought(number, Ok(Brought::Sources(sources)));
            }
            FromWorker::Totals { number, hosts } => listener.brought(number, Ok(Brought::Totals(hosts))),
            FromWorker::Ask { number, question } => listener.asked(self, number, question),
            FromWorker::Pong { number } => {
                let mut health = self.health();
                if let Some((sent, at, echoed)) = &mut health.ping
                    && *sent == number
                {
                    *echoed = true;
                    health.heard = Some(*at);
                }
            }
        }
        Ok(())
    }

    /// Takes chunks out of the shared memory, which is then the worker's again.
    fn delivered(
        &self,
        chunks: &[(ChunkKey, u32)],
        at: u64,
        from: &BackendName,
        responses: &dyn Responses,
    ) -> Result<(), Violation> {
        let len = chunks.iter().map(|(_, len)| u64::from(*len)).sum();
        if at.checked_add(len).is_none_or(|end| end > MEMORY_BYTES) {
            return Err(Violation::Outside { at, len, memory: MEMORY_BYTES });
        }
        self.copies.with(len as usize, |copies| {
            let read = self.memory.read_exact_at(copies, at);
            self.sender.send(&ToWorker::Released { at }, None);
            if let Err(error) = &read {
                tracing::error!(%error, "the shared memory cannot be read");
            }
            let mut rest = &*copies;
            for (chunk, len) in chunks {
                let (bytes, behind) = rest.split_at(*len as usize);
                rest = behind;
                self.due().remove(chunk);
                let content = Content { bytes, from };
                responses.finished(*chunk, if read.is_ok() { Ok(content) } else { Err(ChunkError::Lost) });
            }
        });
        Ok(())
    }

    /// What the worker owes.
    pub(super) fn owed(&self) -> Vec<ChunkKey> {
        self.due().keys().copied().collect()
    }

    /// The guards that hold the worker, once it has told.
    pub(super) fn guards(&self) -> Option<Guards> {
        self.health().guards
    }

    /// Why it is over, if it is. Asks the worker for a sign of life where it owes chunks, or `is_asked` something; one that gives none for `patience`
    /// although it is listened to, or still owes something so long after its time, is over.
    pub(super) fn check(&self, patience: Duration, is_asked: bool) -> Option<Over> {
        let mut health = self.health();
        if let Some(why) = &health.ended {
            return Some(Over { why: why.clone(), hung: false });
        }
        let silent = health.silent_since.is_some_and(|since| since.elapsed() > patience);
        let unheard = health.ping.is_some_and(|(_, at, echoed)| !echoed && at.elapsed() > patience);
        if silent && unheard {
            return Some(Over { why: format!("it gave no sign of life for {patience:?}"), hung: true });
        }
        let (owes, late) = {
            let due = self.due();
            let late = |until: &Instant| health.heard.is_some_and(|heard| heard > *until + patience);
            (is_asked || !due.is_empty(), due.values().any(late))
        };
        if late {
            let why = format!("it did not answer an order for {patience:?} after its time");
            return Some(Over { why, hung: true });
        }
        let is_over = std::mem::replace(&mut health.busy, owes) && !owes;
        if self.copies.let_go() || is_over {
            service::memory::give_back();
        }
        let number = match health.ping {
            _ if !owes => return None,
            None => 1,
            Some((number, at, true)) if at.elapsed() > PING_PAUSE => number + 1,
            Some(_) => return None,
        };
        health.ping = Some((number, Instant::now(), false));
        self.sender.send(&ToWorker::Ping { number }, None);
        None
    }

    fn end(&self, reason: String) {
        self.health().ended.get_or_insert(reason);
        self.sender.close();
        self.changed.notify_all();
    }

    /// Waits until it is ready, or over, or so much time is.
    pub(super) fn wait(&self, time: Duration) {
        let health = self.health();
        if health.ended.is_none() {
            drop(self.changed.wait_timeout(health, time).unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn due(&self) -> MutexGuard<'_, HashMap<ChunkKey, Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
