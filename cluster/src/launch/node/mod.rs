//! The side of the node: does one task, by the machine's own tools.
//!
//! Everything is under one directory, and what lies elsewhere is in its ledger. A task that was interrupted is done again and
//! goes on; one that was done changes nothing.

mod away;
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
mod package;
mod unit;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use registry::client::ClientConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::LaunchError;
use super::task::{Image, Mirror, Prepare, Prepared, Status, Task};
use commands::{progress, systemctl};
use ledger::Ledger;

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
        () if keeps || before.images != wanted.images && (runs || before.images.is_some()) => {
            Some("reads other container images of this cluster, or reads them otherwise")
        }
        () => None,
    };
    if let Some(other) = other {
        let reason = format!("this node {other}; there is no upgrade yet: take the cluster away first");
        return Err(LaunchError::wrong(&wanted.cluster, reason));
    }
    if before.image != wanted.image {
        away::image(&mut state, ledger)?;
    }
    state.saved.prepare = wanted.clone();
    Ok(state)
}

fn prepare(dir: &Path, wanted: &Prepare, registry: &ClientConfig) -> Result<Value, LaunchError> {
    let mut ledger = Ledger::open(dir)?;
    let is_known = State::file(dir).exists();
    let mut state = adopt(dir, &mut ledger, wanted)?;
    let none_there = install::has_no_containerd(&ledger);
    if !is_known {
        state.saved.had_containerd = Some(!none_there);
    }
    // A containerd from elsewhere that was left as it was in a cluster that runs is left so.
    let tells =
        !none_there && !wanted.keep_containerd && (state.saved.containerd_told || state.role().is_empty());
    let images = wanted.images.as_ref().filter(|_| none_there || tells);
    if images.is_none() && wanted.images.as_ref().is_some_and(|images| images.only_lazily) {
        let reason = "the node's own is left as it is and pulls images whole, and the package has them as RAFS alone: save it with --plain";
        return Err(LaunchError::wrong("containerd", reason));
    }
    let answers = state.saved.port.is_some();
    if images.is_some() && !answers {
        state.saved.port = Some(lazy::free_port()?);
    }
    let images = images.zip(state.saved.port);
    state.save()?;
    let answered = images.into_iter().flat_map(|(images, port)| lazy::mirrors(images, port));
    let mirrors: Vec<_> = answered.chain(wanted.mirrors.iter().cloned()).collect();
    // What the node answers itself it does not answer before it has the documents.
    put_mirrors(&mut ledger, &state, none_there, if answers { &mirrors } else { &wanted.mirrors })?;
    let program = std::env::current_exe().map_err(LaunchError::io("this program"))?;
    if let Some(served) = &wanted.package {
        package::serve(&mut ledger, &program, served)?;
    }
    package::wait(&wanted.serving)?;
    progress("bringing the image");
    image::bring(&mut ledger, dir, &program, &wanted.image, !state.role().is_empty())?;
    install::rendered(&mut ledger, &state.tree(), &wanted.rendered)?;
    let own_containerd = none_there && has_containerd(&state.tree());
    state.saved.own_containerd = own_containerd;
    state.save()?;
    if none_there && !own_containerd && images.is_some() {
        let reason = "it has no containerd that could read container images lazily: run it with --plain";
        return Err(LaunchError::wrong("the cluster image", reason));
    }
    hooks::check(&state)?;
    if let Some((images, port)) = images {
        lazy::bring(&mut ledger, dir, &program, images, port, registry)?;
    } else if wanted.images.is_some() {
        progress("the node keeps its own containerd as it is, which pulls container images whole");
    }
    put_mirrors(&mut ledger, &state, none_there, &mirrors)?;
    progress("installing what is missing");
    let needed = image::needed(dir);
    let parts = install::Installation {
        containerd: own_containerd,
        needed: Some(needed.as_str()).filter(|_| !matches!(wanted.image, Image::Directory(_))),
        lazy: images.is_some(),
        mirrors: &mirrors,
    };
    install::install(&mut ledger, &state.tree(), parts)?;
    if tells && !mirrors.is_empty() {
        foreign::tell(&mut ledger, &mut state, images.is_some())?;
    }
    if own_containerd || !none_there {
        systemctl(&["enable", "--now", "containerd.service"])?;
    }
    hooks::init(&mut state)?;
    Ok(json!(Prepared { changed: ledger.changed(), joined: !state.role().is_empty() }))
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
    let lazy = lazy::SERVICES.into_iter().filter(|_| state.saved.port.is_some());
    let package = [package::UNIT].into_iter().filter(|_| state.saved.prepare.package.is_some());
    let services =
        [image::UNIT, "containerd.service", "kubelet.service"].into_iter().chain(package).chain(lazy);
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

/// What this node has of a cluster, and how far it has come.
#[derive(Debug)]
struct State {
    dir: PathBuf,
    saved: SavedState,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct SavedState {
    prepare: Prepare,
    own_containerd: bool,
    hooks_done: Vec<String>,
    /// Its part in the cluster: absent before it begins to join, empty while it does.
    role: Option<String>,
    /// How many of the image's commands were run here.
    launched: usize,
    /// The port on which the node answers for container images that it reads lazily; absent where it reads none.
    #[serde(default)]
    port: Option<u16>,
    /// Whether a containerd that the node has from elsewhere runs with what it was told.
    #[serde(default)]
    containerd_told: bool,
    /// What networks had written for the node's containerd before there was a cluster; absent where nobody looked.
    #[serde(default)]
    networks: Option<BTreeSet<String>>,
    /// Whether the node had a containerd before there was a cluster; absent where nobody looked.
    #[serde(default)]
    had_containerd: Option<bool>,
}

impl State {
    fn new(dir: &Path, prepare: &Prepare) -> Result<Self, LaunchError> {
        let saved = SavedState {
            prepare: prepare.clone(),
            own_containerd: false,
            hooks_done: Vec::new(),
            role: None,
            launched: 0,
            port: None,
            containerd_told: false,
            networks: Some(clear::pod_networks()?),
            had_containerd: None,
        };
        Ok(Self { dir: dir.to_owned(), saved })
    }

    fn file(dir: &Path) -> PathBuf {
        dir.join("state.json")
    }

    fn read(dir: &Path) -> Result<Option<Self>, LaunchError> {
        let file = Self::file(dir);
        let text = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(LaunchError::io(&file))?,
        };
        let saved = serde_json::from_slice(&text)
            .map_err(|error| LaunchError::wrong(file.display().to_string(), error.to_string()))?;
        Ok(Some(Self { dir: dir.to_owned(), saved }))
    }

    fn save(&self) -> Result<(), LaunchError> {
        let file = Self::file(&self.dir);
        let text = serde_json::to_vec_pretty(&self.saved).map_err(io::Error::other);
        let text = text.map_err(LaunchError::io(&file))?;
        if fs::read(&file).is_ok_and(|found| found == text) {
            return Ok(());
        }
        ledger::write(&file, &text, 0o600)
    }

    /// The image's tree.
    fn tree(&self) -> PathBuf {
        match &self.saved.prepare.image {
            Image::Mounted(_) | Image::Converted(_) => image::tree(&self.dir),
            Image::Directory(tree) => tree.clone(),
        }
    }

    /// `master` or `node`; empty if it has not joined.
    fn role(&self) -> &str {
        self.saved.role.as_deref().unwrap_or_default()
    }

    /// From now on there may be parts of a cluster here. What an interrupted step left goes first.
    fn began(&mut self) -> Result<(), LaunchError> {
        if self.saved.role.is_some() {
            progress("an earlier run did not come to its end: beginning again");
            member::leave(self)?;
        }
        self.saved.role = Some(String::new());
        self.save()
    }

    fn joined(&mut self, role: &str) -> Result<(), LaunchError> {
        self.saved.role = Some(role.to_owned());
        self.save()
    }

    /// There is nothing of a cluster here any more.
    fn left(&mut self) -> Result<(), LaunchError> {
        self.saved.role = None;
        self.saved.launched = 0;
        self.saved.hooks_done.clear();
        self.save()
    }

    fn launched(&self) -> usize {
        self.saved.launched
    }

    fn has_launched(&mut self, commands: usize) -> Result<(), LaunchError> {
        self.saved.launched = commands;
        self.save()
    }

    /// A shell's command in the image's tree, with the image's environment.
    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-ec", command]).current_dir(self.tree()).envs(&self.saved.prepare.environment);
        // The node's own, with the image's programs behind it.
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        shell.env("PATH", format!("{path}:{}/bin", self.tree().display()));
        shell.env("CLUSTER_NAME", &self.saved.prepare.cluster).env("CLUSTER_ROOT", self.tree());
        shell
    }
}
