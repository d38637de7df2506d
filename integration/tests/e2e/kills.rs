//! Each process of the node is killed, again and again, while containers read through a registry that fails: they see no error and
//! no wrong byte.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use integration::cri::{ContainerSpec, Pod};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::node::Node;
use integration::peers::ContainerdVersion;
use integration::{demo, process, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{Fixture, count_of, through};
use crate::restart::{PATIENCE, kill_daemon, mount_lines, read_right, reader_of_one_and_two, reads_on};

/// How often each process is killed, unless `E2E_KILLS` says otherwise.
const KILLS: usize = 20;

/// The same with the containerd of series 2: no read goes through either, so that fewer will do.
const KILLS_ON_2: usize = 5;

/// Of a file that is read once: as much as comes with one request.
const COLD_BYTES: u64 = 256 << 10;

/// How requests for blobs fail, and how many of them: others come through before a read's time is over. By 401, 403 and 404 a
/// repository says no once and for all; the other one that the image is in is asked then. All else is asked again.
const FAULTS: [(Failure, u64); 11] = [
    (Failure::Delay(Duration::from_millis(300)), u64::MAX),
    (Failure::Bandwidth(1 << 20), u64::MAX),
    (Failure::CutDownload(10_000), 2),
    (Failure::Status(401), 1),
    (Failure::Status(403), 1),
    (Failure::Status(404), 1),
    (Failure::Status(429), 2),
    (Failure::Status(500), 2),
    (Failure::Status(503), 2),
    (Failure::StallDownload(10_000), 1),
    (Failure::WrongBytes, 1),
];

/// How long the answer takes that comes after those that failed: a kill is to find it under way.
const THEN: Failure = Failure::Delay(Duration::from_millis(300));

/// A process that is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Daemon,
    Worker,
    Snapshotter,
}

const VICTIMS: [Victim; 3] = [Victim::Daemon, Victim::Worker, Victim::Snapshotter];

pub(crate) fn under_load(fixture: &Fixture) -> Result<()> {
    let kills = if fixture.containerd() == ContainerdVersion::default() { KILLS } else { KILLS_ON_2 };
    let rounds = count_of("E2E_KILLS", kills)? * VICTIMS.len();
    let context = context(fixture, rounds)?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let mut node = fixture.new_node("kills-node", "")?;
    let pod = node.pod("kills")?;
    let reader = start_reader(fixture, &mut node, &pod, &context, &proxy)?;
    let dir = node.snapshotter()?.dir().to_owned();
    let (mounts, log) = (dir.join("root/mounts"), dir.join("daemon.log"));
    let mounted = mount_lines(&mounts)?;
    let mut under_way = 0;
    for round in 0..rounds {
        let victim = VICTIMS[round % VICTIMS.len()];
        let (failure, times) = FAULTS[round / VICTIMS.len() % FAULTS.len()];
        let fails = Rule { times, ..Rule::always("/blobs/", failure) };
        proxy.set_rules(vec![fails, Rule::always("/blobs/", THEN)]);
        // From the last to the first: what is fetched ahead of a reader is what was read before.
        let file = cold(rounds - 1 - round);
        let killed = kill_while_reading(&mut node, victim, &proxy, &reader, &file, &context);
        let read = killed.and_then(|is_under_way| reads_on(node.cri(), &reader).map(|()| is_under_way));
        let read =
            read.with_context(|| format!("round {round}: {victim:?}, {failure:?}\n{}", process::tail(&log)));
        under_way += usize::from(read?);
    }
    ensure!(under_way * 4 > rounds * 3, "a read was under way in {under_way} rounds of {rounds} alone");
    ensure!(mount_lines(&mounts)? == mounted, "the image was mounted again");
    // containerd removes the pod's snapshots once it has found the snapshotter again.
    node.restart_snapshotter()?;
    node.cri().remove_pod(&pod.id)
}

/// Two files that are read all the time, and as many as there are rounds that are read once.
fn context(fixture: &Fixture, rounds: usize) -> Result<PathBuf> {
    let dir = fixture.subdir("kills")?;
    let context = demo::random_files(fixture.peers(), &dir, &[("one", 2 << 20), ("two", 2 << 20)])?;
    fs::create_dir(context.join("cold"))?;
    for number in 0..rounds {
        demo::random_file(&context.join(cold(number)), COLD_BYTES)?;
    }
    // In one layer, as an image has few.
    File::options().append(true).open(context.join("Dockerfile"))?.write_all(b"COPY cold /cold\n")?;
    Ok(context)
}

fn cold(number: usize) -> String {
    format!("cold/{number:04}")
}

/// A container that reads all the time, of an image in two repositories: where one sends wrong bytes, the other is asked.
fn start_reader(
    fixture: &Fixture,
    node: &mut Node,
    pod: &Pod,
    context: &Path,
    proxy: &FaultProxy,
) -> Result<String> {
    let mut names = Vec::new();
    for tag in ["kills-one:v1", "kills-two:v1"] {
        names.push(through(&fixture.build(context, tag)?.name, proxy.address()));
    }
    for name in &names {
        node.cri().pull(name)?;
    }
    let script = reader_of_one_and_two(context)?;
    let spec = ContainerSpec::new("reader", &names[0], &["/bin/busybox", "sh", "-c", &script]);
    let reader = node.cri().run_container(pod, &spec)?;
    let snapshotter = node.snapshotter()?;
    wait::until_true("both repositories are known", PATIENCE, || {
        snapshotter.server().log_text().contains("the image has other names")
    })?;
    reads_on(node.cri(), &reader)?;
    Ok(reader)
}

/// Kills a process while the container reads a file that was not read before, and holds what it reads against what it is. Whether
/// the registry was asked for the file when the process was killed.
fn kill_while_reading(
    node: &mut Node,
    victim: Victim,
    proxy: &FaultProxy,
    reader: &str,
    file: &str,
    context: &Path,
) -> Result<bool> {
    // A client of its own, as what kills needs the node.
    let cri = node.containerd().cri()?;
    let failed = proxy.failed_requests();
    thread::scope(|scope| {
        let reading = scope.spawn(|| read_right(&cri, reader, file, context));
        wait::until_true("the registry is asked", PATIENCE, || {
            proxy.failed_requests() > failed || reading.is_finished()
        })?;
        let is_under_way = !reading.is_finished();
        kill_one(node, victim)?;
        reading.join().map_err(|_| anyhow!("the reader panicked"))??;
        Ok(is_under_way)
    })
}

/// Kills a process as a crash would, and waits for the next one.
fn kill_one(node: &mut Node, victim: Victim) -> Result<()> {
    match victim {
        Victim::Daemon => kill_daemon(node).map(drop),
        Victim::Worker => kill_worker(node),
        Victim::Snapshotter => kill_snapshotter(node),
    }
}

fn kill_worker(node: &mut Node) -> Result<()> {
    let old = wait::until("a worker works", PATIENCE, || worker(node))?;
    kill(old, Signal::SIGKILL).context("killing the worker")?;
    wait::until("another worker works", PATIENCE, || Ok(worker(node)?.filter(|pid| *pid != old))).map(drop)
}

/// The worker's process, once a daemon answers that has one.
fn worker(node: &mut Node) -> Result<Option<Pid>> {
    let Ok(status) = node.snapshotter()?.status() else { return Ok(None) };
    Ok(status["worker"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw))
}

/// The next one holds all mounts when this returns: a daemon that is killed before takes them with it.
fn kill_snapshotter(node: &mut Node) -> Result<()> {
    let snapshotter = node.snapshotter()?;
    let count = |log: String| log.matches("mounting the images in use").count();
    let before = count(snapshotter.server().log_text());
    snapshotter.server().kill()?;
    snapshotter.restart()?;
    wait::until_true("it holds what is mounted", PATIENCE, || count(snapshotter.server().log_text()) > before)
}
