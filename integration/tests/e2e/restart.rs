//! Running containers outlive a restart and a crash of the snapshotter, and crashes of the daemon.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cri::{ContainerSpec, Cri};
use integration::node::{Node, NodeOptions};
use integration::tree::content_digest;
use integration::{demo, peers, process, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::Fixture;

/// Kills of the daemon before that of the snapshotter.
const KILLS: usize = 5;
/// How long a container may wait for its next right answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn snapshotter_restarts(fixture: &Fixture) -> Result<()> {
    let files = [("first", 2 << 20), ("second", 2 << 20), ("third", 2 << 20)];
    let context = demo::random_files(fixture.peers(), &fixture.subdir("restart")?, &files)?;
    let image = fixture.build(&context, "restart:v1")?;
    let mut node = fixture.new_node("restart-node", "")?;
    node.cri().pull(&image.name)?;
    let pod = node.pod("restart")?;
    let container = node.cri().run_container(&pod, &ContainerSpec::new("long", &image.name, &[]))?;
    let daemon = node.snapshotter()?.daemon_pid()?;

    for (file, crash) in [("first", false), ("second", true)] {
        let server = node.snapshotter()?.server();
        if crash {
            server.kill()?
        } else {
            server.stop()?
        }
        // Never read before: without a snapshotter it still comes from the registry.
        read_right(node.cri(), &container, file, &context)?;
        node.restart_snapshotter()?;
        read_right(node.cri(), &container, file, &context)?;
    }
    ensure!(node.snapshotter()?.daemon_pid()? == daemon, "the restarted snapshotter started another daemon");
    read_right(node.cri(), &container, "third", &context)?;
    // The restarted snapshotter serves containerd as before.
    let second = node.cri().run_container(&pod, &ContainerSpec::new("new", &image.name, &[]))?;
    read_right(node.cri(), &second, "first", &context)
}

/// It reads and checks files all the time, directly, which asks the daemon each time.
pub(crate) fn daemon_is_killed(fixture: &Fixture) -> Result<()> {
    let sizes = [("one", 6 << 20), ("two", 6 << 20)];
    let fresh: Vec<_> = (0..=KILLS).map(|round| format!("fresh-{round}")).collect();
    let files: Vec<_> = sizes.into_iter().chain(fresh.iter().map(|name| (name.as_str(), 1 << 20))).collect();
    let context = demo::random_files(fixture.peers(), &fixture.subdir("killed")?, &files)?;
    let image = fixture.build(&context, "killed:v1")?;
    let mut node = fixture.new_node("killed-node", "")?;
    node.cri().pull(&image.name)?;
    let pod = node.pod("killed")?;
    let script = reader_of_one_and_two(&context)?;
    let spec = ContainerSpec::new("reader", &image.name, &["/bin/busybox", "sh", "-c", &script]);
    let reader = node.cri().run_container(&pod, &spec)?;
    let mounts = node.snapshotter()?.dir().join("root/mounts");
    let mounted = mount_lines(&mounts)?;
    for name in &fresh[..KILLS] {
        reads_on(node.cri(), &reader)?;
        kill_daemon(&mut node)?;
        read_right(node.cri(), &reader, name, &context)?;
    }
    reads_on(node.cri(), &reader)?;
    node.snapshotter()?.server().kill()?;
    node.restart_snapshotter()?;
    // Serving containerd, it has all that the daemon serves.
    let second = node.cri().run_container(&pod, &ContainerSpec::new("second", &image.name, &[]))?;
    reads_on(node.cri(), &reader)?;
    kill_daemon(&mut node)?;
    for container in [&reader, &second] {
        read_right(node.cri(), container, &fresh[KILLS], &context)?;
    }
    reads_on(node.cri(), &reader)?;
    ensure!(mount_lines(&mounts)? == mounted, "the image was mounted again");
    node.cri().remove_pod(&pod.id)
}

/// Another program takes over at its place, and one that would not work does not, while a container reads all the time.
pub(crate) fn daemon_is_upgraded(fixture: &Fixture) -> Result<()> {
    let files = [("one", 6 << 20), ("two", 6 << 20), ("fresh-0", 1 << 20), ("fresh-1", 1 << 20)];
    let dir = fixture.subdir("upgraded")?;
    let context = demo::random_files(fixture.peers(), &dir, &files)?;
    let image = fixture.build(&context, "upgraded:v1")?;
    let (built, program) = (peers::nydus_cluster()?, dir.with_extension("program"));
    fs::copy(&built, &program)?;
    let options = NodeOptions { program: Some(program.clone()), ..NodeOptions::default() };
    let mut node = fixture.new_node_with("upgraded-node", options)?;
    node.cri().pull(&image.name)?;
    let pod = node.pod("upgraded")?;
    let script = reader_of_one_and_two(&context)?;
    let spec = ContainerSpec::new("reader", &image.name, &["/bin/busybox", "sh", "-c", &script]);
    let reader = node.cri().run_container(&pod, &spec)?;
    let mounts = node.snapshotter()?.dir().join("root/mounts");
    let mounted = mount_lines(&mounts)?;
    for file in ["fresh-0", "fresh-1"] {
        let old = node.snapshotter()?.daemon_pid()?;
        let new = program.with_extension("new");
        fs::copy(&built, &new)?;
        fs::rename(&new, &program)?;
        reads_on(node.cri(), &reader)?;
        let said = node.snapshotter()?.upgrade()?.stdout;
        let pid = node.snapshotter()?.daemon_pid()?;
        ensure!(pid != old && said.contains(&format!("daemon {pid} ")), "{said}");
        ensure!(fs::read_link(format!("/proc/{pid}/exe"))? == fs::canonicalize(&program)?);
        read_right(node.cri(), &reader, file, &context)?;
        reads_on(node.cri(), &reader)?;
    }
    let old = node.snapshotter()?.daemon_pid()?;
    let socket = format!("unix://{}", node.snapshotter()?.dir().join("daemon.sock").display());
    let new = program.with_extension("new");
    fs::write(&new, "no program")?;
    fs::rename(&new, &program)?;
    let mut command = Command::new(&built);
    let refused = process::run(command.args(["upgrade", "--socket", &socket]));
    let error = format!("{:#}", refused.err().context("what is no program was taken for one")?);
    ensure!(error.contains("the old one goes on"), "{error}");
    ensure!(node.snapshotter()?.daemon_pid()? == old, "the old daemon ended");
    reads_on(node.cri(), &reader)?;
    ensure!(mount_lines(&mounts)? == mounted, "the image was mounted again");
    fs::copy(&built, &new)?;
    fs::rename(&new, &program)?;
    node.cri().remove_pod(&pod.id)
}

/// Reads and checks two files all the time: directly, since the page cache would answer otherwise. Whatever is written other than
/// `right` is an error.
pub(crate) fn reader_of_one_and_two(context: &Path) -> Result<String> {
    let sum = |file: &str| content_digest(&context.join(file));
    Ok(format!(
        "while :; do for pair in one:{} two:{}; do \
         s=$(dd if=/${{pair%%:*}} bs=64k iflag=direct 2>/error | sha256sum); \
         [ \"${{s%% *}}\" = \"${{pair##*:}}\" ] || {{ echo wrong $pair $s; cat /error; exit 7; }}; \
         stat /bin/busybox >/dev/null && ls -l / >/dev/null || exit 7; done; echo right; done",
        sum("one")?,
        sum("two")?
    ))
}

/// What the kernel says of the mounts under `dir`, with their device numbers.
pub(crate) fn mount_lines(dir: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("reading the table of mounts")?;
    let under = |line: &&str| line.split(' ').nth(4).is_some_and(|at| Path::new(at).starts_with(dir));
    Ok(text.lines().filter(under).map(ToOwned::to_owned).collect())
}

/// Kills the daemon as a crash would, and waits for the next.
pub(crate) fn kill_daemon(node: &mut Node) -> Result<Pid> {
    let old = node.snapshotter()?.daemon_pid()?;
    kill(old, Signal::SIGKILL).context("killing the daemon")?;
    wait::until("another daemon runs", PATIENCE, || {
        Ok(node.snapshotter()?.daemon_pid().ok().filter(|pid| *pid != old))
    })
}

/// Waits until the container has read everything twice more: once may have begun before.
pub(crate) fn reads_on(cri: &Cri, reader: &str) -> Result<()> {
    let count = || -> Result<usize> {
        let text = cri.logs(reader)?;
        ensure!(text.lines().all(|line| line == "right"), "the container says: {text}");
        Ok(text.lines().count())
    };
    let enough = count()? + 2;
    wait::until("the container reads on", PATIENCE, || Ok((count()? >= enough).then_some(())))
}

pub(crate) fn read_right(cri: &Cri, container: &str, file: &str, context: &Path) -> Result<()> {
    let sum = cri.exec(container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?.success()?;
    let expected = content_digest(&context.join(file))?;
    ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
    Ok(())
}
