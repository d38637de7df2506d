//! The process of the worker: it loads what it needs, locks itself up, and works for the front until that hangs up.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rafs::blob::source::MetaParts;
use registry::client::{AccessSource, Client, Connection};
use reqwest::dns::Resolve;
use tokio::runtime::{Builder, Runtime};

use super::ask::{FrontClient, PassedDirectory};
use super::guard;
use super::message::{FromWorker, InfoLengths, Start, TO_WORKER_LIMIT, ToWorker, WorkerAnswer, clip};
use super::names::HostNames;
use super::report::Report;
use super::shape::{BlobShape, after};
use super::supplied::Supplied;
use super::wire::{Receiver, Sender};
use crate::control::{BackendSpec, BlobId};
use crate::describe;
use crate::front::{Responses, Worker};
use crate::sys::{Arena, close_from};
use crate::worker::{
    Backend, HostCounters, LocalWorker, Registration, StoredPart, Unusable, WorkerConfig, open_backend,
};

/// Threads that wait for the network: more are never busy, as decoding has threads of its own.
const NETWORK_THREADS: usize = 4;

/// How often unused memory is given back.
const TRIM: Duration = Duration::from_secs(1);

/// Why a worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Nobody sent it what it needs.
    #[error("this command is started by the daemon, which talks to it on its standard input: {0}")]
    Start(&'static str),
    /// The operating system refused.
    #[error("the worker cannot {action}")]
    System {
        /// What was being done.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The settings of registries are not valid.
    #[error("settings of registries")]
    Registry(#[from] registry::client::Error),
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { action, source }
}

/// Works for the daemon at the other end of standard input, and returns when that hangs up. `locked_up` is called once the
/// process has no rights any longer, and before it has threads.
///
/// # Errors
///
/// [`ServeError`]: it could not start.
pub fn serve(locked_up: impl FnOnce()) -> Result<(), ServeError> {
    close_from(3).map_err(system("close what it inherited"))?;
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(system("use its socket"))?;
    let socket = Arc::new(UnixStream::from(socket));
    let mut receiver = Receiver::new(Arc::clone(&socket), TO_WORKER_LIMIT, true);
    let first = receiver.next().map_err(|_| ServeError::Start("it is no socket"))?;
    let first = first.ok_or(ServeError::Start("it is closed"))?;
    let Ok(ToWorker::Start(start)) = serde_json::from_slice(&first) else {
        return Err(ServeError::Start("what came is no first message"));
    };
    let memory = receiver.descriptor().ok_or(ServeError::Start("no memory came along"))?;
    let memory_bytes = usize::try_from(start.memory_bytes).unwrap_or(usize::MAX);
    let arena = Arena::map(memory, memory_bytes).map_err(system("map the shared memory"))?;
    let names = Arc::new(HostNames::default());
    let client = Client::new(start.registry.clone())?.with_resolver(Arc::clone(&names) as Arc<dyn Resolve>);
    // The files of which are out of reach from here on.
    client.load_system_roots();
    service::memory::keep_large_buffers_mapped();
    let guards = guard::lock_up(start.user);
    locked_up();
    let sender = Sender::new(socket);
    let served =
        RunningWorker::new(&start, &client, names, arena, sender).map_err(system("start threads"))?;
    served.sender.send(&FromWorker::Ready { guards }, None);
    served.run(&mut receiver).map_err(system("hear the daemon"))
}

/// A worker that runs.
pub(super) struct RunningWorker {
    runtime: Runtime,
    worker: Arc<LocalWorker>,
    client: Client,
    arena: Arc<Arena>,
    pub(super) sender: Arc<Sender>,
    asker: Arc<FrontClient>,
    supplied: Arc<Supplied>,
    names: Arc<HostNames>,
    _report: Arc<Report>,
}

impl RunningWorker {
    pub(super) fn new(
        start: &Start,
        client: &Client,
        names: Arc<HostNames>,
        arena: Arc<Arena>,
        sender: Sender,
    ) -> io::Result<Self> {
        let sender = Arc::new(sender);
        let pump = Arc::clone(&sender);
        std::thread::Builder::new().name("send".to_owned()).spawn(move || pump.pump())?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(start.threads.clamp(1, NETWORK_THREADS))
            .enable_io()
            .enable_time()
            .build()?;
        let config = WorkerConfig {
            buffer_bytes: start.buffer_bytes,
            threads: start.threads,
            patience: Duration::from_millis(start.patience_milliseconds),
        };
        let worker = Arc::new(LocalWorker::new(config, runtime.handle().clone())?);
        let report = Arc::new(Report { arena: Arc::clone(&arena), sender: Arc::clone(&sender) });
        worker.answer_to(Arc::downgrade(&report) as Weak<dyn Responses>);
        let trimmed = Arc::clone(&arena);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(TRIM).await;
                if trimmed.trim() {
                    service::memory::give_back();
                }
            }
        });
        let asker = Arc::new(FrontClient::new(Arc::clone(&sender)));
        let supplied = Arc::new(Supplied::new(Arc::clone(&asker)));
        let client = client.with_access(Arc::clone(&supplied) as Arc<dyn AccessSource>);
        names.set(&start.names);
        Ok(Self { runtime, worker, client, arena, sender, asker, supplied, names, _report: report })
    }

    pub(super) fn run(&self, receiver: &mut Receiver) -> io::Result<()> {
        let mut registrations = HashMap::new();
        // Those of which nothing is registered any longer go on to be told of: the front has given few numbers.
        let mut hosts: HashMap<u32, Arc<HostCounters>> = HashMap::new();
        while let Some(message) = receiver.next()? {
            match serde_json::from_slice(&message)? {
                ToWorker::Start(_) => return Err(io::Error::other("it was started twice")),
                ToWorker::Register { number, blobs, backend, place, host, connection } => {
                    let host = hosts.entry(host).or_default();
                    let backend = self.backend(&backend, connection.unwrap_or_default(), host);
                    registrations.insert(number, self.worker.register_of(host, &blobs, &backend, place));
                }
                ToWorker::Forget { number } => drop::<Option<Registration>>(registrations.remove(&number)),
                ToWorker::Access { registry, repository, access } => {
                    self.supplied.set(registry, repository, access);
                }
                ToWorker::Names(files) => self.names.set(&files),
                ToWorker::Fetch(order) => self.worker.fetch(vec![order.order()]),
                ToWorker::Hurry(chunk) => self.worker.hurry(chunk.into()),
                ToWorker::Released { at } => self.arena.release(usize::try_from(at).unwrap_or(usize::MAX)),
                ToWorker::ChunkInfo { number, blob, milliseconds } => {
                    let file = receiver.descriptor().ok_or(io::ErrorKind::InvalidData)?;
                    self.chunk_info(number, blob, milliseconds, file);
                }
                ToWorker::Has { number, registration, blob, milliseconds } => {
                    self.has(number, registrations.get(&registration), blob, milliseconds);
                }
                ToWorker::Part { number, part, milliseconds } => {
                    let file = receiver.descriptor().ok_or(io::ErrorKind::InvalidData)?;
                    self.part(number, part, milliseconds, file);
                }
                ToWorker::Sources { number, registrations: asked } => {
                    let report = |number: &u64| registrations.get(number).and_then(Registration::report);
                    let sources = asked.iter().map(report).collect();
                    self.sender.send(&FromWorker::Sources { number, sources }, None);
                }
                ToWorker::Totals { number } => {
                    let totals = |(host, counted): (&u32, &Arc<HostCounters>)| (*host, counted.totals());
                    let hosts = hosts.iter().map(totals).collect();
                    self.sender.send(&FromWorker::Totals { number, hosts }, None);
                }
                ToWorker::Answer { number, answer } => {
                    let file = match answer {
                        WorkerAnswer::File { .. } => receiver.descriptor(),
                        _ => None,
                    };
                    self.asker.answered(number, answer, file);
                }
                // By the threads that wait for the network: they have to be well too.
                ToWorker::Ping { number } => {
                    let sender = Arc::clone(&self.sender);
                    self.runtime.spawn(async move { sender.send(&FromWorker::Pong { number }, None) });
                }
            }
        }
        Ok(())
    }

    /// The backend at `host` that a specification names; one that cannot be used says so when it is asked.
    fn backend(&self, spec: &BackendSpec, connection: Connection, host: &HostCounters) -> Arc<dyn Backend> {
        if let BackendSpec::Directory { path } = spec {
            return Arc::new(PassedDirectory { asker: Arc::clone(&self.asker), path: path.clone() });
        }
        open_backend(&self.client, spec, connection, host.retries())
            .unwrap_or_else(|error| Arc::new(Unusable::new(spec, &describe(&error))))
    }

    fn chunk_info(&self, number: u64, blob: BlobShape, milliseconds: u64, file: OwnedFd) {
        let (worker, sender) = (Arc::clone(&self.worker), Arc::clone(&self.sender));
        let until = after(milliseconds).into();
        self.runtime.spawn(async move {
            let outcome = match worker.chunk_info_parts(&blob.blob(), until).await {
                Ok(info) => tokio::task::spawn_blocking(move || write(&info.parts, &File::from(file)))
                    .await
                    .unwrap_or_else(|panic| Err(io::Error::other(panic)))
                    .map_err(|error| error.to_string()),
                Err(error) => Err(clip(&describe(&error))),
            };
            sender.send(&FromWorker::ChunkInfo { number, outcome }, None);
        });
    }

    fn has(&self, number: u64, registration: Option<&Registration>, blob: BlobId, milliseconds: u64) {
        let asked = registration.map(|registration| registration.has(blob));
        let (sender, until) = (Arc::clone(&self.sender), after(milliseconds).into());
        self.runtime.spawn(async move {
            let outcome = match asked {
                None => Err("it is not registered any longer".to_owned()),
                Some(asked) => match tokio::time::timeout_at(until, asked).await {
                    Ok(outcome) => outcome.map_err(|reason| clip(&reason)),
                    Err(_) => Err("no answer in time".to_owned()),
                },
            };
            sender.send(&FromWorker::Has { number, outcome }, None);
        });
    }

    fn part(&self, number: u64, part: StoredPart, milliseconds: u64, file: OwnedFd) {
        let (worker, sender) = (Arc::clone(&self.worker), Arc::clone(&self.sender));
        let until = after(milliseconds).into();
        self.runtime.spawn(async move {
            let outcome = worker.part(part, until, file.into()).await;
            let outcome = outcome.map_err(|error| clip(&describe(&error)));
            sender.send(&FromWorker::Part { number, outcome }, None);
        });
    }
}

/// Writes the parts one after the other.
fn write(parts: &MetaParts, file: &File) -> io::Result<InfoLengths> {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        file.write_all_at(bytes, at)?;
        at += bytes.len() as u64;
        Ok::<_, io::Error>(bytes.len() as u64)
    };
    Ok(InfoLengths {
        header: put(&parts.header)?,
        array: put(&parts.array)?,
        tail: put(&parts.tail)?,
        digests: put(&parts.digests)?,
        stream_size: parts.stream_size,
    })
}
