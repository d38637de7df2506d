//! Keeps a worker's process running: one that ends, hangs, or says what cannot be meant, is replaced.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use registry::client::ClientConfig;

use super::connection::{MEMORY_BYTES, Over, WorkerConnection};
use super::launch::{LaunchedWorker, sockets};
use super::message::{Start, ToWorker};
use super::remote::RemoteState;

/// How often a process is looked at.
const TICK: Duration = Duration::from_millis(200);

/// How often it is looked whether names of hosts are to be looked up otherwise.
const NAMES: Duration = Duration::from_secs(2);

/// Time for a process to be ready.
pub(super) const READY: Duration = Duration::from_secs(10);

/// Pause before the second process in a row that did not stay, doubled each time …
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// … up to this: readers wait for the next.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// One that ran so long stayed.
const STAYED: Duration = Duration::from_secs(10);

/// The part of a read's deadline that a worker may give no sign of life …
const PATIENCE_FRACTION: u32 = 4;
/// … but at least this, since a busy machine is no reason, and at most that.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Starts the thread that supervises. It ends when the worker is dropped.
pub(super) fn start(shared: &Arc<RemoteState>) -> io::Result<()> {
    let supervised = Arc::downgrade(shared);
    thread::Builder::new().name("worker".to_owned()).spawn(move || keep_running(&supervised)).map(drop)
}

fn keep_running(supervised: &Weak<RemoteState>) {
    let mut pause = Duration::ZERO;
    while let Some(shared) = supervised.upgrade() {
        if shared.stop.is_cancelled() {
            return;
        }
        let since = Instant::now();
        let why = match run(&shared) {
            Ok(why) => why,
            Err(error) => format!("it cannot be started: {error}"),
        };
        if shared.stop.is_cancelled() {
            return;
        }
        if since.elapsed() >= STAYED {
            pause = Duration::ZERO;
        }
        tracing::warn!(why, pause_ms = pause.as_millis(), "the worker ended, another one takes its place");
        thread::sleep(pause);
        pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    }
}

/// Runs one process until it ends: why it did.
fn run(shared: &Arc<RemoteState>) -> io::Result<String> {
    let (ours, theirs) = sockets()?;
    let started = (shared.launch)(theirs)?;
    let (connection, memory) = WorkerConnection::new(ours)?;
    let connection = Arc::new(connection);
    let config = &shared.config;
    let start = Start {
        memory_bytes: MEMORY_BYTES,
        buffer_bytes: config.worker.buffer_bytes,
        threads: config.worker.threads,
        patience_milliseconds: config.worker.patience.as_millis().try_into().unwrap_or(u64::MAX),
        user: config.user,
        registry: without_files(&config.registry),
        names: shared.names(),
    };
    connection.sender.send(&ToWorker::Start(Box::new(start)), Some(memory));
    let (least, most) = PATIENCE;
    let patience = (config.deadline / PATIENCE_FRACTION).clamp(least, most);
    thread::scope(|scope| {
        let threads = (0..config.worker.threads.max(1)).map(|number| {
            let connection = Arc::clone(&connection);
            let listen = move || {
                if let Some(orders) = shared.orders() {
                    connection.listen(&*orders, &**shared);
                }
            };
            thread::Builder::new().name(format!("keep-{number}")).spawn_scoped(scope, listen)
        });
        let threads: io::Result<Vec<_>> = threads.collect();
        let pump = thread::Builder::new().name("send".to_owned());
        let started_all =
            threads.and_then(|_| pump.spawn_scoped(scope, || connection.sender.pump()).map(drop));
        let (over, ready) = match started_all {
            Ok(()) => watch(shared, &connection, &started, patience),
            Err(error) => (Over { why: format!("no threads for it: {error}"), hung: false }, false),
        };
        // Ends the threads too.
        connection.sender.close();
        let status = started.end();
        if ready {
            let is_own_doing = over.hung || status.is_some_and(failed);
            let blamed = if is_own_doing { connection.owed() } else { Vec::new() };
            shared.ended(&blamed);
        }
        let status = status.map_or_else(|| "no process".to_owned(), |status| status.to_string());
        Ok(format!("{} ({status})", over.why))
    })
}

/// Whether a process ended over a fault of its own, and not since somebody wanted it to.
fn failed(status: ExitStatus) -> bool {
    match status.signal() {
        Some(signal) => ![libc::SIGKILL, libc::SIGTERM, libc::SIGINT].contains(&signal),
        None => !status.success(),
    }
}

/// The settings of registries without those that name files, which the worker cannot read.
fn without_files(config: &ClientConfig) -> ClientConfig {
    ClientConfig { hosts: BTreeMap::new(), certs_dir: PathBuf::new(), docker_config: None, ..config.clone() }
}

/// Waits until it ends, or is to: why, and whether it had been ready.
fn watch(
    shared: &Arc<RemoteState>,
    connection: &Arc<WorkerConnection>,
    started: &LaunchedWorker,
    patience: Duration,
) -> (Over, bool) {
    let since = Instant::now();
    let mut names_read = since;
    let mut ready = false;
    let over = |why| Over { why, hung: false };
    let over = loop {
        if shared.stop.is_cancelled() {
            break over("it is not needed any longer".to_owned());
        }
        if let Some(over) = connection.check(patience, shared.is_asked()) {
            break over;
        }
        match connection.guards() {
            Some(guards) if !ready => {
                ready = true;
                let pid = started.pid();
                let missing = guards.missing().join(", ");
                if missing.is_empty() {
                    tracing::info!(pid, "the worker is ready");
                } else {
                    tracing::warn!(pid, missing, "the worker is ready, with fewer guards");
                }
                shared.begin(connection, pid, guards);
            }
            None if since.elapsed() > READY => break over(format!("it was not ready within {READY:?}")),
            _ => {}
        }
        if names_read.elapsed() > NAMES {
            names_read = Instant::now();
            shared.read_names();
        }
        connection.wait(TICK);
    };
    (over, ready)
}
