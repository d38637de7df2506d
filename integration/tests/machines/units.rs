//! The units that we ship, in a booted machine with a real containerd: who is started when, and what a container that reads all
//! the time notices of restarts, kills, stops and a reboot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cri::{ContainerSpec, Cri, Pod};
use integration::machines::{Machine, Machines, MachinesOptions};
use integration::peers::{self, ContainerdVersion, Peers};
use integration::servers::{ContainerdOptions, CriSnapshotter, EmbeddedRegistry, ProxySnapshotter};
use integration::tree::content_digest;
use integration::{demo, oci_layout, process, wait};

const BOTH: &str = "nydus-cluster-daemon nydus-cluster-snapshotter";
/// Where the machine has its containerd.
const CONTAINERD: &str = "/var/lib/containerd";
const LOGS: &str = "/var/log/pods/units";
/// Succeeds in the machine once its containerd reaches the snapshotter.
const LIST_SNAPSHOTS: &str =
    "/opt/containerd/ctr --namespace k8s.io snapshots --snapshotter nydus-cluster ls";
/// The watchdog of the units, in seconds: shorter than in what we ship, as the test waits for it.
const WATCHDOG: u64 = 10;
/// How long a container may wait for its next right answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens while a container reads.
const EVENTS: [&str; 10] = [
    "restart nydus-cluster-daemon",
    "restart nydus-cluster-snapshotter",
    "restart nydus-cluster-daemon nydus-cluster-snapshotter",
    "kill --signal=KILL nydus-cluster-daemon",
    "kill --signal=KILL nydus-cluster-snapshotter",
    "kill --signal=KILL nydus-cluster-daemon nydus-cluster-snapshotter",
    "kill --signal=KILL nydus-cluster-snapshotter nydus-cluster-daemon",
    // It hangs, and its watchdog ends it.
    "kill --kill-who=main --signal=STOP nydus-cluster-daemon",
    "kill --kill-who=main --signal=STOP nydus-cluster-snapshotter",
    "restart containerd",
];

pub(crate) fn keep_containers_reading(peers: &Peers) -> Result<()> {
    let dir = super::directory(peers)?;
    let shown = vec![
        (peers::nydus_cluster()?, PathBuf::from("/usr/local/bin/nydus-cluster")),
        (
            peers.containerd(ContainerdVersion::V1_7, "containerd")?.parent().context("a folder")?.to_owned(),
            PathBuf::from("/opt/containerd"),
        ),
        (peers::system("runc")?, peers::system("runc")?),
    ];
    let options = MachinesOptions { count: 1, link_mbit: None, shown };
    let machines = Machines::boot(peers, &dir.path().join("machines"), &options)?;
    let machine = &machines.all()[0];
    let images = Images::make(peers, dir.path(), &machines)?;
    install(machine, &images)?;
    let result = survive(machine, images);
    result.with_context(|| {
        let journal = machine.run("journalctl --no-pager -o cat -n 300 -u 'nydus-cluster-*' -u containerd");
        journal.map(|output| output.stdout).unwrap_or_default()
    })
}

fn survive(machine: &Machine, images: Images) -> Result<()> {
    started_in_order(machine)?;
    let mut stand = Stand::start(machine, &images, "first")?;
    for (number, event) in EVENTS.iter().enumerate() {
        stand.reads_on()?;
        let begun = Instant::now();
        let unit = event.rsplit(' ').next().context("no unit")?;
        let process = main_process(machine, unit)?;
        machine.run(&format!("systemctl {event}"))?;
        stand.reads_fresh(number).with_context(|| format!("after systemctl {event}"))?;
        eprintln!("{event}: something never read came {:?} later", begun.elapsed());
        stand.reads_on().with_context(|| format!("after systemctl {event}"))?;
        wait::until_true("another process is there", PATIENCE, || {
            main_process(machine, unit).is_ok_and(|now| now != process && now.trim() != "0")
        })?;
        machine.wait_for("all are active", PATIENCE, &format!("systemctl is-active {BOTH} containerd"))?;
    }
    machine.run("nydus-cluster upgrade")?;
    stand.reads_on().context("after an upgrade")?;
    for one in BOTH.split(' ') {
        machine.run(&format!("systemctl stop {one}"))?;
        machine.run(&format!("systemctl start {one}"))?;
        stand.reads_on().with_context(|| format!("after a stop of {one}"))?;
    }
    ensure!(fuse_mounts(machine)?.len() == 1, "the image was mounted again");
    both_stopped(machine, &mut stand, &images)?;
    reboot(machine, images)
}

/// What is documented of the end of both: before systemd 254 the mounts end, and the next start clears them away.
fn both_stopped(machine: &Machine, stand: &mut Stand<'_>, images: &Images) -> Result<()> {
    machine.run(&format!("systemctl stop {BOTH}"))?;
    let version = machine.run("systemctl --version | sed -n 's/^systemd \\([0-9]*\\).*/\\1/p'")?.stdout;
    let keeps: bool = version.trim().parse::<u32>()? >= 254;
    if !keeps {
        let code = stand.cri.wait_exit(&stand.reader, PATIENCE)?;
        ensure!(code != 0, "its root is gone, and it ended well");
    }
    machine.run(&format!("systemctl start {BOTH}"))?;
    if keeps {
        return stand.reads_on();
    }
    // containerd asks one that was away again after seconds alone, and a pull fails until then.
    machine.wait_for("containerd finds the snapshotter again", PATIENCE, LIST_SNAPSHOTS)?;
    let mut next = Stand::start(machine, images, "next")?;
    next.reads_on()?;
    ensure!(fuse_mounts(machine)?.len() == 1, "a dead mount is left");
    Ok(())
}

/// With a snapshotter that takes its time, and no registry: containerd waits for it, and finds its images.
fn reboot(machine: &Machine, images: Images) -> Result<()> {
    let slow = "[Service]\nExecStartPre=/bin/sleep 3\n";
    machine.write("/etc/systemd/system/nydus-cluster-snapshotter.service.d/slow.conf", slow)?;
    let Images { registry, app, context, .. } = images;
    drop(registry);
    machine.reboot()?;
    started_in_order(machine)?;
    // For the containers that there were, before there is a new one.
    machine.wait_for(
        "the image is mounted",
        PATIENCE,
        "grep -q ' /var/lib/nydus-cluster/mounts/' /proc/self/mountinfo",
    )?;
    let cri = Cri::connect(&machine.path("/run/containerd/containerd.sock")?)?;
    ensure!(cri.has_image(&app)?, "containerd has forgotten its images");
    let pod = cri.run_pod("rebooted", Path::new(LOGS))?;
    let container = cri.run_container(&pod, &ContainerSpec::new("rebooted", &app, &[]))?;
    read_right(&cri, &container, "one", &context)
}

/// The number of a unit's process, in the machine.
fn main_process(machine: &Machine, unit: &str) -> Result<String> {
    Ok(machine.run(&format!("systemctl show -P MainPID {unit}"))?.stdout)
}

/// The daemon, then the snapshotter, and containerd only when that answers.
fn started_in_order(machine: &Machine) -> Result<()> {
    machine.wait_for("all are active", PATIENCE, &format!("systemctl is-active {BOTH} containerd"))?;
    let time = |unit: &str, moment: &str| -> Result<u64> {
        let shown = machine.run(&format!("systemctl show -P {moment}TimestampMonotonic {unit}"))?;
        Ok(shown.stdout.trim().parse()?)
    };
    let daemon = time("nydus-cluster-daemon", "ActiveEnter")?;
    let begun = time("nydus-cluster-snapshotter", "ExecMainStart")?;
    let ready = time("nydus-cluster-snapshotter", "ActiveEnter")?;
    let containerd = time("containerd", "ExecMainStart")?;
    ensure!(daemon <= begun && ready <= containerd, "{daemon}, {begun}, {ready}, {containerd}");
    Ok(())
}

/// Images, in a registry that the machine sees.
struct Images {
    registry: EmbeddedRegistry,
    pause: String,
    app: String,
    /// The files of `app`.
    context: PathBuf,
}

impl Images {
    fn make(peers: &Peers, dir: &Path, machines: &Machines) -> Result<Self> {
        let local = EmbeddedRegistry::start(&dir.join("local"))?;
        let (pause, context) = (peers.pause_rootfs()?, dir.join("files"));
        oci_layout::push(local.address(), "pause", &pause, &["/bin/sleep", "infinity"], &dir.join("pause"))?;
        fs::create_dir(&context)?;
        for file in ["one", "two"] {
            demo::random_file(&context.join(file), 6 << 20)?;
        }
        for number in 0..EVENTS.len() {
            demo::random_file(&context.join(format!("fresh-{number}")), 1 << 20)?;
        }
        let files = dir.join("files.tar");
        process::run(Command::new("tar").arg("-C").arg(&context).arg("-cf").arg(&files).arg("."))?;
        let (layout, command) = (dir.join("app"), &["/bin/sleep", "infinity"]);
        oci_layout::write(&layout, &[&pause, &files], command, &[oci_layout::architecture()])?;
        let mut convert = Command::new(peers::nydus_cluster()?);
        convert.args(["image", "convert", "--fresh"]).arg(format!("oci:{}", layout.display()));
        process::run(convert.arg(format!("{}/app:v1", local.address())))?;
        let registry = EmbeddedRegistry::serve(&dir.join("registry"), local.root(), machines.host().into())?;
        let name = |name: &str| format!("{}/{name}", registry.address());
        Ok(Self { pause: name("pause:latest"), app: name("app:v1"), context, registry })
    }
}

/// Puts containerd, the units and their settings on a machine, and starts containerd, which brings the others.
fn install(machine: &Machine, images: &Images) -> Result<()> {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/units");
    for unit in [
        "nydus-cluster-daemon.service",
        "nydus-cluster-snapshotter.service",
        "containerd.service.d/nydus-cluster.conf",
    ] {
        machine.write(&format!("/etc/systemd/system/{unit}"), fs::read(units.join(unit))?)?;
    }
    for unit in BOTH.split(' ') {
        let watchdog = format!("[Service]\nWatchdogSec={WATCHDOG}s\n");
        machine.write(&format!("/etc/systemd/system/{unit}.service.d/watchdog.conf"), watchdog)?;
    }
    // As containerd ships it.
    machine.write(
        "/etc/systemd/system/containerd.service",
        "[Service]\nType=notify\nExecStart=/opt/containerd/containerd\nDelegate=yes\nKillMode=process\nRestart=always\nRestartSec=1\n\
         Environment=PATH=/opt/containerd:/usr/sbin:/usr/bin:/sbin:/bin\n[Install]\nWantedBy=multi-user.target\n",
    )?;
    let options = ContainerdOptions {
        version: ContainerdVersion::V1_7,
        sandbox_image: images.pause.clone(),
        snapshotter: CriSnapshotter::Proxy(ProxySnapshotter {
            name: "nydus-cluster".to_owned(),
            socket: "/run/nydus-cluster/snapshotter.sock".into(),
        }),
        annotations: true,
        capabilities: Vec::new(),
    };
    let config =
        options.configuration(Path::new(CONTAINERD), Path::new("/run/containerd/containerd.sock"))?;
    machine.write("/etc/containerd/config.toml", config)?;
    let address = images.registry.address();
    machine.write(
        &format!("{CONTAINERD}/certs.d/{address}/hosts.toml"),
        format!("server = \"http://{address}\"\n[host.\"http://{address}\"]\n"),
    )?;
    machine.write(
        "/etc/nydus-cluster/config.toml",
        format!("[registry]\ncerts_dir = \"{CONTAINERD}/certs.d\"\n"),
    )?;
    machine.run(&format!(
        "systemctl daemon-reload; systemctl -q enable {BOTH} containerd; systemctl start containerd"
    ))?;
    Ok(())
}

/// A container that reads and checks two files all the time.
struct Stand<'a> {
    machine: &'a Machine,
    context: &'a Path,
    cri: Cri,
    reader: String,
    log: String,
    _pod: Pod,
}

impl<'a> Stand<'a> {
    fn start(machine: &'a Machine, images: &'a Images, name: &str) -> Result<Self> {
        let cri = Cri::connect(&machine.path("/run/containerd/containerd.sock")?)?;
        cri.pull(&images.app)?;
        let pod = cri.run_pod(name, Path::new(LOGS))?;
        let sum = |file: &str| content_digest(&images.context.join(file));
        // Directly, since the page cache would answer otherwise. Whatever is written other than `right` is an error.
        let script = format!(
            "while :; do for pair in one:{} two:{}; do \
             s=$(dd if=/${{pair%%:*}} bs=64k iflag=direct 2>/error | sha256sum); \
             [ \"${{s%% *}}\" = \"${{pair##*:}}\" ] || {{ echo wrong $pair $s; cat /error; exit 7; }}; \
             done; echo right; done",
            sum("one")?,
            sum("two")?
        );
        let spec = ContainerSpec::new(name, &images.app, &["/bin/busybox", "sh", "-c", &script]);
        let reader = cri.run_container(&pod, &spec)?;
        let log = format!("{LOGS}/{name}.log");
        Ok(Self { machine, context: &images.context, cri, reader, log, _pod: pod })
    }

    /// Waits until the container has read everything twice more: once may have begun before.
    fn reads_on(&mut self) -> Result<()> {
        let count = || -> Result<usize> {
            let text = fs::read_to_string(self.machine.path(&self.log)?)?;
            let said: Vec<_> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
            ensure!(said.iter().all(|line| *line == "right"), "the container says: {text}");
            Ok(said.len())
        };
        let enough = count()? + 2;
        wait::until("the container reads on", PATIENCE, || Ok((count()? >= enough).then_some(())))
    }

    /// Reads something that was never read before. containerd may have been started again.
    fn reads_fresh(&mut self, number: usize) -> Result<()> {
        let file = format!("fresh-{number}");
        let mut last = None;
        let read = wait::until_true("what was never read is", PATIENCE, || {
            match read_right(&self.cri, &self.reader, &file, self.context) {
                Ok(()) => true,
                Err(error) => {
                    last = Some(error);
                    false
                }
            }
        });
        read.map_err(|error| match last {
            Some(last) => last.context(error),
            None => error,
        })
    }
}

fn read_right(cri: &Cri, container: &str, file: &str, context: &Path) -> Result<()> {
    let sum = cri.exec(container, &["/bin/busybox", "sha256sum", &format!("/{file}")])?.success()?;
    let expected = content_digest(&context.join(file))?;
    ensure!(sum.starts_with(&expected), "{file}: {sum}, expected {expected}");
    Ok(())
}

/// The images that are mounted in the machine.
fn fuse_mounts(machine: &Machine) -> Result<Vec<String>> {
    let mounts = machine.run("cat /proc/self/mountinfo")?.stdout;
    let ours = |line: &&str| {
        line.split(' ').nth(4).is_some_and(|at| at.starts_with("/var/lib/nydus-cluster/mounts/"))
    };
    Ok(mounts.lines().filter(ours).map(ToOwned::to_owned).collect())
}
