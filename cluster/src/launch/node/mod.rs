//! The side of the node: does one task, by the machine's own tools.
//!
//! Everything is under one directory, and what lies elsewhere is in its ledger. A task that was interrupted is done again and
//! goes on; one that was done changes nothing.

mod away;
mod by_daemon;
mod by_hooks;
mod clear;
mod commands;
mod containerd;
mod foreign;
mod hooks;
mod image;
mod install;
mod lazy;
mod ledger;
mod member;
mod mirrors;
mod output;
mod own;
mod own_registry;
mod package;
mod ports;
mod state;
mod unit;

use std::fs::{self, File};
use std::io::{self, BufRead as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use registry::client::ClientConfig;
use serde_json::{Value, json};

use super::error::LaunchError;
use super::task::{Image, Mirror, Prepare, Prepared, Status, Task};
use commands::{progress, systemctl};
use ledger::Ledger;
use state::State;

pub use by_daemon::lay_tree;

/// Where a node keeps what it has of a cluster.
pub const NODE_DIR: &str = "/var/lib/nydus-cluster/cluster";

/// How long a task waits for one that is ending.
const LOCK_DEADLINE: Duration = Duration::from_secs(20);

/// Reads a task from standard input, does it, and returns what came of it. `registry` says how registries are reached. It blocks, on
/// a thread of a runtime's that may.
///
/// # Errors
///
/// When it is none, or cannot be done.
pub fn work(dir: &Path, registry: &ClientConfig) -> Result<Value, LaunchError> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(LaunchError::io("standard input"))?;
    let task: Task = serde_json::from_str(&line)
        .map_err(|error| LaunchError::wrong("standard input", error.to_string()))?;
    end_with_input();
    if !nix::unistd::geteuid().is_root() {
        return Err(LaunchError::wrong("user", "expected root"));
    }
    if task == Task::Status {
        return Ok(json!(status(dir)));
    }
    fs::create_dir_all(dir).map_err(LaunchError::io(dir))?;
    let _lock = lock(dir)?;
    if task == Task::Site {
        return package::site(dir).map(|site| json!(site));
    }
    if let Task::Prepare(wanted) = &task {
        return prepare(dir, wanted, registry);
    }
    if let Task::Remove { keep } = task {
        return away::remove(dir, keep).map(|()| Value::Null);
    }
    let mut state = State::read(dir)?.ok_or_else(|| {
        LaunchError::wrong(dir.display().to_string(), "there is no cluster image on this node")
    })?;
    match &task {
        Task::Init(init) => member::init(&mut state, init).map(|begun| json!(begun)),
        Task::Join(join) => member::join(&mut state, join).map(|()| Value::Null),
        Task::Launch(launch) => member::launch(&mut state, launch).map(|()| Value::Null),
        Task::Prepare(_) | Task::Site | Task::Status | Task::Remove { .. } => Ok(Value::Null),
    }
}

/// One task at a time. One whose caller was killed may be ending still.
fn lock(dir: &Path) -> Result<Flock<File>, LaunchError> {
    let path = dir.join("lock");
    let start = Instant::now();
    loop {
        let file = File::options().create(true).append(true).open(&path).map_err(LaunchError::io(&path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err(_) if start.elapsed() < LOCK_DEADLINE => thread::sleep(Duration::from_millis(100)),
            Err(_) => {
                return Err(LaunchError::wrong(
                    dir.display().to_string(),
                    "another run is at work on this node",
                ));
            }
        }
    }
}

/// Ends this process, and what it runs, when whoever waits has gone.
fn end_with_input() {
    thread::spawn(|| {
        _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        progress("nobody waits any more: ending");
        commands::end_all();
        _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(0), nix::sys::signal::Signal::SIGTERM);
    });
}

/// The state of this node, for what is wanted of it now. What another image left here goes.
fn adopt(dir: &Path, ledger: &mut Ledger, wanted: &Prepare) -> Result<State, LaunchError> {
    let Some(mut state) = State::read(dir)? else { return State::new(dir, wanted) };
    let before = &state.saved.prepare;
    if before.cluster != wanted.cluster {
        let reason = format!("this node belongs to the cluster {}", before.cluster);
        return Err(LaunchError::wrong(&wanted.cluster, reason));
    }
    let runs = !state.role().is_empty();
    // What was pulled lazily has no layers, by which others could go on.
    let keeps = wanted.keep_containerd && state.saved.port.is_some() && !state.saved.own_containerd;
    let other = match () {
        () if before.image != wanted.image && runs => Some("runs another image of this cluster"),
        () if keeps
            || before.images != wanted.images && (runs || before.images.is_some())
            || state.reads_own_registry()
                && (wanted.plain || wanted.images.is_some() || before.image != wanted.image) =>
        {
            Some("reads other container images of this cluster, or reads them otherwise")
        }
        () => None,
    };
    if let Some(other) = other {
        let reason = format!("this node {other}; there is no upgrade yet: take the cluster away first");
        return Err(LaunchError::wrong(&wanted.cluster, reason));
    }
    if before.image != wanted.image {
        away::image(&mut state, ledger, wanted.plain)?;
    }
    state.saved.prepare = wanted.clone();
    Ok(state)
}

fn prepare(dir: &Path, wanted: &Prepare, registry: &ClientConfig) -> Result<Value, LaunchError> {
    let mut ledger = Ledger::open(dir)?;
    let is_known = State::file(dir).exists();
    let mut state = adopt(dir, &mut ledger, wanted)?;
    let none_there = install::has_no_containerd(&ledger) || state.saved.containerd_by_hooks;
    if !is_known {
        state.saved.had_containerd = Some(!none_there);
    }
    // A containerd from elsewhere that was left as it was in a cluster that runs is left so.
    let tells =
        !none_there && !wanted.keep_containerd && (state.saved.containerd_told || state.role().is_empty());
    let can_read = none_there || tells;
    if !can_read && wanted.images.as_ref().is_some_and(|images| images.only_lazily) {
        let reason = "the node's own is left as it is and pulls images whole, and the package has them as RAFS alone: save it with --plain";
        return Err(LaunchError::wrong("containerd", reason));
    }
    // What the node answers itself it does not answer before it has the documents.
    let answered =
        state.lazily(can_read, state.saved.own_containerd || tells).filter(|_| state.saved.port.is_some());
    let answered = state.mirrors(answered);
    state.save()?;
    put_mirrors(&mut ledger, &state, none_there, &answered)?;
    let program = std::env::current_exe().map_err(LaunchError::io("this program"))?;
    bring(&mut ledger, &mut state, &program, registry)?;
    state.saved.own_containerd = none_there && has_containerd(&state.tree());
    let images = state.lazily(can_read, state.saved.own_containerd || tells).cloned();
    if images.is_some() && state.saved.port.is_none() {
        state.saved.port = Some(ports::free(Ipv4Addr::LOCALHOST, ports::IMAGES)?);
    }
    state.save()?;
    if none_there && !state.saved.own_containerd && images.is_some() {
        let reason = "it has no containerd that could read container images lazily: run it with --plain";
        return Err(LaunchError::wrong("the cluster image", reason));
    }
    hooks::check(&state)?;
    if let Some((images, port)) = images.as_ref().zip(state.saved.port) {
        lazy::bring(&mut ledger, dir, &program, images, port, registry)?;
    } else if wanted.images.is_some() {
        progress("the node keeps its own containerd as it is, which pulls container images whole");
    }
    let mirrors = state.mirrors(images.as_ref());
    put_mirrors(&mut ledger, &state, none_there, &mirrors)?;
    install(&mut ledger, &state, images.is_some(), &mirrors)?;
    if tells && !mirrors.is_empty() {
        foreign::tell(&mut ledger, &mut state, images.is_some())?;
    }
    if state.saved.own_containerd || !none_there {
        systemctl(&["enable", "--now", "containerd.service"])?;
    } else {
        // What they install is theirs to take away, and the next run is to find what this one has found.
        state.saved.containerd_by_hooks = hooks::bring_containerd(&state);
        state.save()?;
    }
    hooks::init(&mut state)?;
    Ok(json!(Prepared { changed: ledger.changed(), joined: !state.role().is_empty() }))
}

/// Brings the image, and has its own registry served, if it has one.
fn bring(
    ledger: &mut Ledger,
    state: &mut State,
    program: &Path,
    registry: &ClientConfig,
) -> Result<(), LaunchError> {
    let wanted = state.saved.prepare.clone();
    if let Some(served) = &wanted.package {
        package::serve(ledger, program, served)?;
    }
    package::wait(&wanted.serving)?;
    progress("bringing the image");
    // A cluster that runs goes on with what mounts its image.
    let can_change = state.role().is_empty() && !matches!(wanted.image, Image::Directory(_));
    if can_change && !wanted.plain && !lazy::is_taken(ledger) {
        state.saved.by_daemon = true;
        state.save()?;
    }
    image::bring(ledger, state, program, registry)?;
    install::rendered(ledger, &state.tree(), &wanted.rendered)?;
    own_registry::bring(ledger, state, program, registry)
}

/// Installs what the node lacks from the image. `lazy`: the containerd that is installed unpacks with our snapshotter.
fn install(ledger: &mut Ledger, state: &State, lazy: bool, mirrors: &[Mirror]) -> Result<(), LaunchError> {
    progress("installing what is missing");
    let needed = state.needed();
    let parts = install::Installation {
        containerd: state.saved.own_containerd,
        needed: needed.as_deref(),
        lazy,
        mirrors,
    };
    install::install(ledger, &state.tree(), parts)
}

/// With what the image says of the same hosts behind them, once it is there and its containerd is used.
fn put_mirrors(
    ledger: &mut Ledger,
    state: &State,
    none_there: bool,
    mirrors: &[Mirror],
) -> Result<(), LaunchError> {
    let tree = Some(state.tree()).filter(|tree| none_there && has_containerd(tree));
    mirrors::put(ledger, Path::new(mirrors::CERTS_DIR), tree.as_deref(), mirrors)
}

fn has_containerd(tree: &Path) -> bool {
    tree.join("bin/containerd").exists()
}

fn status(dir: &Path) -> Status {
    let Ok(Some(state)) = State::read(dir) else { return Status::default() };
    let package = [package::UNIT].into_iter().filter(|_| state.saved.prepare.package.is_some());
    let registry = [own_registry::UNIT].into_iter().filter(|_| state.saved.registry.is_some());
    let services = [image::UNIT, "containerd.service", "kubelet.service"].into_iter();
    let services = services.chain(package).chain(registry).chain(state.lazy_services());
    let active = |service: &str| {
        let said = Command::new("systemctl").args(["is-active", service]).output();
        said.map_or_else(
            |error| error.to_string(),
            |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
        )
    };
    let services = services.map(|service| (service.to_owned(), active(service))).collect();
    let role = state.role().to_owned();
    Status { cluster: state.saved.prepare.cluster, role, services }
}
