//! Booted machines, on which clusters are launched: that they are what they are taken for, and leave nothing. And what needs
//! a machine of its own, such as a service manager.
//!
//! Where something is missing, tests say `skipped: needs …`; with `CI=true` they fail instead.

mod exporter_unit;
mod logins;
mod units;

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::machines::{Machines, MachinesOptions};
use integration::peers::Peers;
use integration::suite::{TestOnPeers, trials_on_peers};
use integration::{leftovers, process, wait};
use libtest_mimic::Arguments;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const TESTS: &[(&str, TestOnPeers)] = &[
    ("machines_boot_see_each_other_and_reboot", boot_and_reboot),
    ("two_sets_of_machines_do_not_see_each_other", two_sets),
    ("a_killed_keeper_takes_its_machines_along", killed_keeper),
    ("the_exporter_s_unit_is_ready_restarted_and_drained", exporter_unit::works),
    ("units_keep_containers_reading", units::keep_containers_reading),
    ("a_package_is_run_on_a_node_by_password_and_here", logins::by_password_and_here),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = trials_on_peers(TESTS, Machines::require);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What may be waited for at most that comes at once, but on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A directory on a real file system: an overlay cannot lie on every one.
fn directory(peers: &Peers) -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("machines-").tempdir_in(peers.cache())?)
}

fn boot_and_reboot(peers: &Peers) -> Result<()> {
    let dir = directory(peers)?;
    let shown = dir.path().join("shown");
    fs::create_dir(&shown)?;
    fs::write(shown.join("file"), "of the host")?;
    let options = MachinesOptions { shown: vec![(shown, "/opt/shown".into())], ..MachinesOptions::default() };
    let mut machines = Machines::boot(peers, dir.path(), &options)?;
    let name = machines.name();
    let key = machines.key();
    for machine in machines.all() {
        ensure!(machine.run("hostname")?.stdout.trim() == machine.name());
        ensure!(machine.run("systemctl --failed --quiet")?.stdout.is_empty(), "{}", machine.name());
        ensure!(machine.run("cat /opt/shown/file")?.stdout == "of the host");
        for other in ["n1", "n2", "n3"] {
            machine.wait_for(other, SOON, &format!("timeout 5 bash -c '</dev/tcp/{other}/22'"))?;
        }
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        ssh.arg("-i").arg(&key).arg(format!("root@{}", machine.address())).arg("hostname");
        ensure!(process::run(&mut ssh)?.stdout.trim() == machine.name());
    }
    let [first, second, _] = machines.all() else { anyhow::bail!("not three machines") };
    // A cgroup of its own in each hierarchy, in which it may make more.
    first.run("for h in /sys/fs/cgroup/*/; do mkdir \"$h/mine\"; done")?;
    ensure!(second.run("ls -d /sys/fs/cgroup/*/mine 2>/dev/null || true")?.stdout.is_empty());

    first.run("echo kept >/etc/mine; echo kept >/var/lib/mine; ip link add cni0 type bridge")?;
    first.reboot()?;
    ensure!(first.run("cat /etc/mine /var/lib/mine")?.stdout == "kept\nkept\n");
    ensure!(
        first.run("ls -d /sys/fs/cgroup/*/mine /sys/class/net/cni0 2>/dev/null || true")?.stdout.is_empty()
    );

    second.power_off()?;
    first.wait_for("the second is off", SOON, "! timeout 1 bash -c '</dev/tcp/n2/22' 2>/dev/null")?;
    second.power_on()?;
    second.wait_booted(2)?;
    first.wait_for("the second is back", SOON, "timeout 1 bash -c '</dev/tcp/n2/22'")?;

    machines.end()?;
    nothing_is_left(dir.path(), &name)
}

fn two_sets(peers: &Peers) -> Result<()> {
    let (one_dir, other_dir) = (directory(peers)?, directory(peers)?);
    let options = MachinesOptions { count: 1, ..MachinesOptions::default() };
    let mut one = Machines::boot(peers, one_dir.path(), &options)?;
    let other = Machines::boot(peers, other_dir.path(), &options)?;
    ensure!(one.name() != other.name() && one.host() != other.host());
    let (alone, there) = (&one.all()[0], &other.all()[0]);
    let address = there.address();
    alone.run(&format!("! timeout 2 bash -c '</dev/tcp/{address}/22' 2>/dev/null"))?;
    // The end of one set is none of the other's.
    one.end()?;
    nothing_is_left(one_dir.path(), &one.name())?;
    there.run("systemctl is-active multi-user.target")?;
    Ok(())
}

fn killed_keeper(peers: &Peers) -> Result<()> {
    let dir = directory(peers)?;
    let options = MachinesOptions { count: 2, ..MachinesOptions::default() };
    let machines = Machines::boot(peers, dir.path(), &options)?;
    let name = machines.name();
    let inits: Vec<i32> =
        machines.all().iter().filter_map(|machine| machine.running()).map(|on| on.init).collect();
    ensure!(inits.len() == 2);
    kill(Pid::from_raw(i32::try_from(machines.keeper())?), Signal::SIGKILL)?;
    wait::until_true("the machines ended", SOON, || {
        inits.iter().all(|&init| leftovers::has_ended(Pid::from_raw(init)))
    })?;
    drop(machines);
    ensure!(leftovers::processes(dir.path())?.is_empty());
    // What is left goes when the next machines come.
    let next_dir = directory(peers)?;
    let mut next = Machines::boot(peers, next_dir.path(), &MachinesOptions { count: 1, ..options })?;
    ensure!(leftovers::mounts(dir.path())?.is_empty(), "mounts of the killed ones are left");
    nothing_is_left(dir.path(), &name)?;
    let name = next.name();
    next.end()?;
    nothing_is_left(next_dir.path(), &name)
}

/// No process, mount, cgroup or interface. Other machines may have the name already, which is free at once: then the end of those
/// shows what is left under it.
fn nothing_is_left(dir: &Path, name: &str) -> Result<()> {
    let processes = leftovers::processes(dir)?;
    ensure!(processes.is_empty(), "left: {processes:?}");
    ensure!(leftovers::mounts(dir)?.is_empty(), "mounts are left");
    let socket = SocketAddr::from_abstract_name(format!("nydus-cluster-{name}"))?;
    // Nobody takes it while we look.
    let Ok(_taken) = UnixListener::bind_addr(&socket) else { return Ok(()) };
    ensure!(!Path::new("/sys/class/net").join(name).exists(), "{name} is left");
    let mut find = Command::new("find");
    find.args(["/sys/fs/cgroup", "-maxdepth", "2", "-name"]).arg(format!("{name}-*"));
    let cgroups = process::run(&mut find)?.stdout;
    ensure!(cgroups.is_empty(), "cgroups are left:\n{cgroups}");
    Ok(())
}
