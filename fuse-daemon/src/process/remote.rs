//! The worker as the front has it: a process that may end at any time, and another in its place.

mod listener;
mod registrations;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use rafs::blob::Blob;
use rafs::blob::source::{BlobError, MetaParts, parts_limit};
use registry::client::ClientConfig;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::connection::WorkerConnection;
use super::errand::{Brought, Errand, read_parts};
use super::given::{self, Given};
use super::hosts::Hosts;
use super::launch::{Launch, this_program};
use super::message::{Guards, ToWorker};
use super::names::NameFiles;
use super::shape::{BlobShape, OrderShape};
use super::supervise;
use crate::access::Accesses;
use crate::control::{BackendSpec, BlobId};
use crate::front::{ChunkError, ChunkKey, Content, Order, Orders, Responses, Worker};
use crate::worker::{Fetcher, Place, StoredPart, WorkerConfig};
use registrations::{Registered, RemoteRegistration, canonical};

/// Questions of a worker that are answered at once: more are nonsense.
const QUESTIONS_AT_ONCE: usize = 64;

/// What a worker's process is given.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// As a worker in this process.
    pub worker: WorkerConfig,
    /// Time for a read to be answered: a worker that gives no sign of life for a part of it is replaced.
    pub deadline: Duration,
    /// The user that it becomes.
    pub user: u32,
    /// How registries are reached.
    pub registry: ClientConfig,
    /// Arguments with which the program that runs is a worker.
    pub arguments: Vec<String>,
}

/// How the worker's process is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Condition {
    /// The process, if it is ready.
    pub pid: Option<u32>,
    /// How often a process took the place of another.
    pub restarts: u64,
    /// What guards the last one that was ready.
    pub guards: Option<Guards>,
}

/// A worker in a process of its own. Dropped, it ends that.
pub struct RemoteWorker {
    pub(super) shared: Arc<RemoteState>,
}

/// What the supervisor shares with those who order.
pub(super) struct RemoteState {
    me: Weak<Self>,
    pub(super) config: ProcessConfig,
    pub(super) launch: Launch,
    runtime: Handle,
    accesses: Arc<Accesses>,
    /// Questions that may be under way.
    asked: Arc<Semaphore>,
    orders: OnceLock<Weak<dyn Orders>>,
    /// The process that works at the moment.
    pub(super) current: watch::Sender<Option<Arc<WorkerConnection>>>,
    state: Mutex<State>,
    pub(super) stop: tokio_util::sync::CancellationToken,
}

#[derive(Default)]
struct State {
    next: u64,
    registrations: BTreeMap<u64, Registered>,
    errands: HashMap<u64, Errand>,
    condition: Condition,
    given: Given,
    names: NameFiles,
    hosts: Hosts,
}

impl RemoteWorker {
    /// A worker that is started once it has been named who is answered.
    pub(crate) fn new(config: ProcessConfig, runtime: Handle, accesses: Arc<Accesses>) -> Self {
        let launch = this_program(config.arguments.clone());
        Self::with(config, runtime, accesses, launch)
    }

    pub(super) fn with(
        config: ProcessConfig,
        runtime: Handle,
        accesses: Arc<Accesses>,
        launch: Launch,
    ) -> Self {
        let shared = |me: &Weak<RemoteState>| RemoteState {
            me: Weak::clone(me),
            config,
            launch,
            runtime,
            accesses,
            asked: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE)),
            orders: OnceLock::new(),
            current: watch::Sender::new(None),
            state: Mutex::default(),
            stop: tokio_util::sync::CancellationToken::new(),
        };
        Self { shared: Arc::new_cyclic(shared) }
    }

    /// Starts a process, waits until it is ready, and ends it.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not get ready in time.
    pub(crate) async fn try_start(&self) -> io::Result<()> {
        struct Nobody;
        impl Responses for Nobody {
            fn finished(&self, _: ChunkKey, _: Result<Content<'_>, ChunkError>) {}
        }
        impl Orders for Nobody {
            fn blame(&self, _: &[ChunkKey]) {}
            fn left_alone(&self) {}
            fn order_again(&self) {}
        }
        let nobody = Arc::new(Nobody);
        self.connect(Arc::downgrade(&nobody) as Weak<dyn Orders>)?;
        let mut current = self.shared.current.subscribe();
        match tokio::time::timeout(supervise::READY, current.wait_for(Option::is_some)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not get ready")),
        }
    }

    /// Brings a part of a blob, from whichever of its backends has it first: a file with it at its beginning, which the worker can still
    /// write to, and how many bytes it has. It is to be copied, and verified then.
    ///
    /// # Errors
    ///
    /// Nobody has it by then, or it is not what it should be.
    pub(crate) async fn part(&self, part: &StoredPart, until: Instant) -> io::Result<(File, u64)> {
        let order = |number, milliseconds| ToWorker::Part { number, part: part.clone(), milliseconds };
        match self.shared.bring("part", part.limit, until, order).await? {
            (Brought::Part(bytes), file) if bytes <= part.limit => Ok((file, bytes)),
            _ => Err(io::Error::other("something else came in its place")),
        }
    }

    /// How the process is.
    pub fn condition(&self) -> Condition {
        self.shared.lock().condition.clone()
    }
}

impl Drop for RemoteWorker {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Worker for RemoteWorker {
    fn fetch(&self, orders: Vec<Order>) {
        // While there is none the front keeps what it wants, and orders it again from the next.
        let Some(connection) = self.shared.current() else { return };
        for order in orders {
            connection.owes(order.keys(), order.until);
            connection.sender.send(&ToWorker::Fetch(OrderShape::new(&order)), None);
        }
    }

    fn hurry(&self, chunk: ChunkKey) {
        self.shared.tell(&ToWorker::Hurry(chunk.into()));
    }
}

impl Fetcher for RemoteWorker {
    type Backend = BackendSpec;
    type Registration = RemoteRegistration;

    fn connect(&self, orders: Weak<dyn Orders>) -> io::Result<()> {
        if self.shared.orders.set(orders).is_ok() {
            if let Some(orders) = self.shared.orders() {
                orders.left_alone();
            }
            self.shared.runtime.spawn(given::follow(Arc::downgrade(&self.shared)));
            supervise::start(&self.shared)?;
        }
        Ok(())
    }

    fn register(&self, blobs: &[BlobId], backend: &BackendSpec, place: Place) -> RemoteRegistration {
        self.shared.register(blobs, backend, place)
    }

    fn name_of(backend: &BackendSpec) -> String {
        canonical(backend).to_string()
    }

    async fn has(
        &self,
        blob: BlobId,
        registration: &RemoteRegistration,
        until: Instant,
    ) -> Result<(), String> {
        let registration = registration.number;
        let order = |number, milliseconds| ToWorker::Has { number, registration, blob, milliseconds };
        match self.shared.ask("its answer", until, || Ok(None), order).await {
            Ok((Brought::Has, _)) => Ok(()),
            Ok(_) => Err("something else was answered".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn chunk_info(&self, blob: &Blob, until: Instant) -> Result<MetaParts, Arc<BlobError>> {
        let failed = |source| {
            let blob = blob.id.map_or_else(|| "of unknown id".to_owned(), |id| id.to_string());
            Arc::new(BlobError::Io { blob, source })
        };
        let limit = parts_limit(blob);
        let order = |number, milliseconds| ToWorker::ChunkInfo {
            number,
            blob: BlobShape::with_info(blob),
            milliseconds,
        };
        let brought = self.shared.bring("chunk information", limit, until, order).await;
        let (Brought::Info(lengths), file) = brought.map_err(failed)? else {
            return Err(failed(io::Error::other("something else came in its place")));
        };
        let read = tokio::task::spawn_blocking(move || read_parts(&file, lengths, limit)).await;
        read.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(failed)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl RemoteState {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn current(&self) -> Option<Arc<WorkerConnection>> {
        self.current.borrow().clone()
    }

    /// Who is answered, as long as it lives.
    pub(super) fn orders(&self) -> Option<Arc<dyn Orders>> {
        self.orders.get()?.upgrade()
    }

    fn tell(&self, message: &ToWorker) {
        if let Some(connection) = self.current() {
            connection.sender.send(message, None);
        }
    }

    pub(super) fn accesses(&self) -> &Accesses {
        &self.accesses
    }

    /// By what names of hosts are looked up now.
    pub(super) fn names(&self) -> NameFiles {
        let names = NameFiles::read();
        self.lock().names = names.clone();
        names
    }

    /// Tells the process, if names of hosts are to be looked up otherwise.
    pub(super) fn read_names(&self) {
        let names = NameFiles::read();
        if std::mem::replace(&mut self.lock().names, names.clone()) != names {
            tracing::info!("host names are looked up as these files say from now on");
            self.tell(&ToWorker::Names(names));
        }
    }

    /// A process is ready: it is told all that the one before it knew.
    pub(super) fn begin(&self, connection: &Arc<WorkerConnection>, pid: Option<u32>, guards: Guards) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.given = Given::default();
        for (number, registered) in &state.registrations {
            self.introduce(&mut state.given, &mut state.hosts, *number, registered, connection);
        }
        state.condition.pid = pid;
        state.condition.guards = Some(guards);
        self.current.send_replace(Some(Arc::clone(connection)));
        drop(guard);
        if let Some(orders) = self.orders() {
            orders.order_again();
        }
    }

    /// The process is no more. `blamed` are chunks that may be the reason.
    pub(super) fn ended(&self, blamed: &[ChunkKey]) {
        let mut state = self.lock();
        self.current.send_replace(None);
        state.condition.pid = None;
        state.condition.restarts += 1;
        state.hosts.worker_ended();
        // Who waits asks the next.
        state.errands.drain().for_each(|(_, errand)| errand.abandon());
        drop(state);
        let Some(orders) = self.orders() else { return };
        orders.left_alone();
        if !blamed.is_empty() {
            orders.blame(blamed);
        }
    }

    /// Whether somebody waits for an answer.
    pub(super) fn is_asked(&self) -> bool {
        let mut state = self.lock();
        state.errands.retain(|_, errand| !errand.is_given_up());
        !state.errands.is_empty()
    }

    /// Enters an errand: its number.
    pub(super) fn enter(&self, errand: Errand) -> u64 {
        let mut state = self.lock();
        // Of those who have given up nothing is left.
        state.errands.retain(|_, errand| !errand.is_given_up());
        let number = state.number();
        state.errands.insert(number, errand);
        number
    }
}
