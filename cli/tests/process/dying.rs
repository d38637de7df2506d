//! kill -9 of the daemon at moments that have to be made: requests come while it is dying, and it is replaced while it takes over.

use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use fuse_daemon::control::BackendSpec;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rafs::build::BuildOptions;
use test_support::{Need, needs, noise};

use crate::node::{JOURNALS, Node, Process};
use crate::{can_mount, eventually};

/// Requests in a page of the journal.
const SLOTS_OF_A_PAGE: usize = 8;
/// Programs that ask for something meanwhile.
const READERS: usize = 4;
/// Daemons that may be gone before all ask.
const ROUNDS_LIMIT: usize = 10;

/// The processors that tests may use: one for the daemon, and another one.
fn two_processors() -> Option<(usize, usize)> {
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut usable = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap());
    usable.next().zip(usable.next())
}

fn on_processor(cpu: usize, command: &Command) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["--cpu-list", &cpu.to_string()]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => pinned.env(name, value),
            None => pinned.env_remove(name),
        };
    }
    pinned.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    pinned
}

/// Whether a process may be scheduled before all others. Nothing else keeps a daemon that is dying from its processor.
fn has_real_time() -> bool {
    Command::new("chrt").args(["--fifo", "1", "true"]).status().is_ok_and(|status| status.success())
}

/// Keeps everything else from a processor, for less than the second after which the kernel sees to that.
fn keep_processor(cpu: usize) -> Process {
    let mut busy = Command::new("chrt");
    busy.args(["--fifo", "1", "sh", "-c", "while :; do :; done"]);
    let mut hog = Process::spawn(&mut on_processor(cpu, &busy));
    let stat = format!("/proc/{}/stat", hog.0.id());
    eventually("it keeps the processor", || {
        assert!(hog.running(), "it ended");
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        // Its 41st field is how it is scheduled: 1 is SCHED_FIFO. Those behind the name are counted from the third on.
        let policy = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(38))?.to_owned();
        (policy == "1").then_some(())
    });
    hog
}

/// Requests of a mount that are not answered.
fn waiting(control: &Path, device: u64) -> usize {
    let file = control.join(nix::sys::stat::minor(device).to_string()).join("waiting");
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

#[test]
fn what_a_dying_daemon_takes_is_answered_by_the_next() {
    let processors = two_processors();
    needs!(
        Need::Fuse,
        Need::Other("two processors", processors.is_some()),
        Need::Other("real-time scheduling, as root has it", has_real_time())
    );
    let Some((first, second)) = processors else { return };
    let mut others = CpuSet::new();
    others.set(second).unwrap();
    sched_setaffinity(Pid::from_raw(0), &others).unwrap();
    // By whatever page of the journal the next request is written to: the first of a page is not there before.
    for waiting in 0..=SLOTS_OF_A_PAGE {
        let was_dying = (0..ROUNDS_LIMIT).any(|_| takes_while_dying(first, waiting));
        assert!(was_dying, "it is gone before all ask, each time");
    }
}

/// Kills a daemon that so many programs wait for, and has others ask while it is dying. Whether it was until all had asked: on a
/// busy machine it may be gone before.
fn takes_while_dying(cpu: usize, waiting_before: usize) -> bool {
    let node = Node::new();
    fs::write(node.path("config.toml"), "[daemon]\njournal = \"always\"\n").unwrap();
    let control = node.mounted("fusectl", "connections");
    node.mounted("tmpfs", JOURNALS);
    let names: Vec<String> = (0..waiting_before + READERS).map(|number| format!("f{number}")).collect();
    let content = noise(1, 3000);
    let mut image =
        node.image("i", &names.iter().map(|name| (name.as_str(), &content[..])).collect::<Vec<_>>());
    let good = BackendSpec::of_image(&image.reference).unwrap();
    // Takes connections, and is silent.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    image.reference = format!("{}/i:v1", silent.local_addr().unwrap());

    let mut daemon = Process::spawn(&mut on_processor(cpu, &node.daemon_command()));
    node.daemon().wait();
    let place = node.daemon().mount("i", &image);
    let (mut handover, descriptor) = node.daemon().handover("i");
    let begun = waiting(&control, handover.device);
    let said = |name: &str| node.path(&format!("{name}.said"));
    let spawn = |command: &mut Command, name: &String| {
        let said = fs::File::create(said(name)).unwrap();
        Process::spawn(command.arg(place.join(name)).stdout(Stdio::null()).stderr(said))
    };
    let mut programs = Vec::new();
    for (number, name) in names[..waiting_before].iter().enumerate() {
        programs.push(spawn(&mut Command::new("cat"), name));
        eventually("it waits for content", || {
            (waiting(&control, handover.device) > begun + number).then_some(())
        });
    }
    // They are there before, for the time is short, and go on with a line.
    let held = |name: &String| {
        let mut command = Command::new("sh");
        spawn(command.args(["-c", "read -r line; exec stat \"$0\""]).stdin(Stdio::piped()), name)
    };
    programs.extend(names[waiting_before..].iter().map(held));
    let hog = keep_processor(cpu);
    // Its threads wake up to end, each with a look at what there is to do, once they have a processor.
    daemon.signal(Signal::SIGKILL);
    for program in &mut programs[waiting_before..] {
        program.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    let all = begun + programs.len();
    eventually("all ask", || (waiting(&control, handover.device) >= all).then_some(()));
    let was_dying = daemon.running();
    drop(hog);
    daemon.ended();

    let _next = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    handover.mount.backends = vec![good];
    node.daemon().adopt(&handover, &descriptor).unwrap();
    let failed = names
        .iter()
        .zip(&mut programs)
        .filter_map(|(name, program)| (!program.ended().success()).then_some(name));
    let failed: Vec<String> = failed.map(|name| fs::read_to_string(said(name)).unwrap()).collect();
    assert!(failed.is_empty(), "while {waiting_before} programs waited: {failed:?}");
    was_dying
}

/// Passes all connections on to `to`, once it is started.
fn pass_on(listener: TcpListener, to: std::net::SocketAddr) {
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let Ok(other) = TcpStream::connect(to) else { return };
            for (mut from, mut to) in
                [(stream.try_clone().unwrap(), other.try_clone().unwrap()), (other, stream)]
            {
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
}

#[test]
fn a_mount_that_is_just_being_taken_over_is_said_to_come_and_is_not_mounted_again() {
    if !can_mount() {
        return;
    }
    let node = Node::new();
    let content = noise(1, 5_000);
    let files: Vec<String> = (0..20).map(|number| format!("f{number}")).collect();
    let files: Vec<_> = files.iter().map(|name| (name.as_str(), &content[..])).collect();
    // Where its chunks are is not in its bootstrap alone: it takes a registry to be mounted.
    let image =
        node.image_of("i", &files, &BuildOptions { batch_size: Some(65_536), ..BuildOptions::default() });
    let mut daemon = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();
    let place = node.daemon().mount("i", &image);
    let (mut handover, descriptor) = node.daemon().handover("i");
    daemon.signal(Signal::SIGKILL);
    daemon.ended();
    // Nor does the cache have it any more.
    fs::remove_dir_all(node.path("cache")).unwrap();
    let _next = Process::spawn(node.daemon_command().stdout(Stdio::null()).stderr(Stdio::null()));
    node.daemon().wait();

    // Takes connections, and is silent at first.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let repository = format!("{}/i", silent.local_addr().unwrap());
    handover.mount.backends = vec![BackendSpec::Registry { repository }];
    std::thread::scope(|scope| {
        let adopted = scope.spawn(|| node.daemon().adopt(&handover, &descriptor));
        eventually("it is said to come", || (node.daemon().coming() == ["i"]).then_some(()));
        assert!(node.daemon().mounts().is_empty());
        let mounted = scope.spawn(|| node.daemon().try_mount("i", &image));
        pass_on(silent, node.registry());
        adopted.join().unwrap().unwrap();
        mounted.join().unwrap().unwrap();
    });
    assert!(node.daemon().coming().is_empty());
    assert!(fs::read(place.join("f7")).unwrap() == content);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let there: Vec<_> = mounts.lines().filter(|line| line.split(' ').nth(4) == place.to_str()).collect();
    let number =
        format!("{}:{}", nix::sys::stat::major(handover.device), nix::sys::stat::minor(handover.device));
    assert!(there.len() == 1 && there[0].split(' ').nth(2) == Some(&number), "{there:?}, expected {number}");
}
