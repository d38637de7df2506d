//! Many containers of several images outlive restarts of the snapshotter, and an end of the daemon.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use integration::cri::{ContainerSpec, Cri};
use integration::fault_proxy::{Failure, FaultProxy, Rule};
use integration::node::Node;
use integration::tree::content_digest;
use integration::{demo, wait};

use crate::fixture::{Built, Fixture, count_of, through};
use crate::restart::kill_daemon;

/// How many, unless `E2E_CONTAINERS` says otherwise.
const CONTAINERS: usize = 50;
const IMAGES: usize = 3;
/// What is read in turn: before all, after a stop of the snapshotter, after its end, and over an end of the daemon.
const FILES: [&str; 4] = ["one", "two", "three", "four"];

/// How long reads may wait: longer than it takes until all do, as each container has to start one more program first.
const READ_DEADLINE: &str = "[daemon.read]\ndeadline_seconds = 120\n";
/// Until all wait. All of it is within one call, which has two minutes.
const PATIENCE: Duration = Duration::from_secs(100);

/// A container, and what it was made of.
type Container<'a> = (String, &'a Built);

pub(crate) fn outlive_restarts(fixture: &Fixture) -> Result<()> {
    let count = count_of("E2E_CONTAINERS", CONTAINERS)?;
    let proxy = FaultProxy::start(fixture.registry()?.address())?;
    let mut images = Vec::new();
    for number in 0..IMAGES {
        let dir = fixture.subdir(&format!("many-{number}"))?;
        let context = demo::random_files(fixture.peers(), &dir, &FILES.map(|file| (file, 1 << 20)))?;
        let built = fixture.build(&context, &format!("many-{number}:v1"))?;
        images.push(Built { name: through(&built.name, proxy.address()), ..built });
    }
    let mut node = fixture.new_node("many-node", READ_DEADLINE)?;
    for image in &images {
        node.cri().pull(&image.name)?;
    }
    let pod = node.pod("many")?;
    let mut containers = Vec::new();
    for (number, image) in (0..count).zip(images.iter().cycle()) {
        let spec = ContainerSpec::new(&format!("c{number}"), &image.name, &[]);
        containers.push((node.cri().run_container(&pod, &spec)?, image));
    }
    let [one, two, three, four] = FILES;
    let read_all = |node: &Node, file: &str| {
        containers.iter().try_for_each(|container| read_right(node.cri(), container, file))
    };
    read_all(&node, one)?;
    node.snapshotter()?.server().stop()?;
    node.restart_snapshotter()?;
    read_all(&node, two)?;
    node.snapshotter()?.server().kill()?;
    node.restart_snapshotter()?;
    read_all(&node, three)?;
    kill_daemon_while_all_read(&mut node, &proxy, &containers, four)
}

/// Reads that the daemon has taken and not answered when it ends are answered by the next one.
fn kill_daemon_while_all_read(
    node: &mut Node,
    proxy: &FaultProxy,
    containers: &[Container<'_>],
    file: &str,
) -> Result<()> {
    let cri = &node.containerd().cri()?;
    proxy.set_rules(vec![Rule::always("/blobs/", Failure::Stall)]);
    thread::scope(|scope| {
        let reading =
            containers.iter().map(|container| scope.spawn(move || read_right(cri, container, file)));
        let reading: Vec<_> = reading.collect();
        wait::until_true("all wait for the registry", PATIENCE, || {
            reads_that_wait(node).is_ok_and(|reads| reads >= containers.len() as u64)
        })?;
        kill_daemon(node)?;
        proxy.set_rules(Vec::new());
        reading.into_iter().try_for_each(|read| read.join().map_err(|_| anyhow!("a reader panicked"))?)
    })
}

/// Reads that the daemon says to wait for chunks.
fn reads_that_wait(node: &mut Node) -> Result<u64> {
    let status = node.snapshotter()?.status()?;
    let waiting = status["waiting"].as_array().into_iter().flatten();
    Ok(waiting.filter_map(|chunk| chunk["readers"].as_u64()).sum())
}

/// It reads directly: each container asks the daemon itself, also for what others have read of the image.
fn read_right(cri: &Cri, (container, image): &Container<'_>, file: &str) -> Result<()> {
    let script = format!("dd if=/{file} bs=64k iflag=direct 2>/error | sha256sum; cat /error >&2");
    let read = cri.exec(container, &["/bin/busybox", "sh", "-c", &script])?;
    let errors = String::from_utf8_lossy(&read.stderr).into_owned();
    let (sum, expected) = (read.success()?, content_digest(&image.context.join(file))?);
    ensure!(sum.starts_with(&expected), "{file} of {}: {sum}, expected {expected}: {errors}", image.name);
    Ok(())
}
