//! The exporter's unit under a real systemd: it is ready when it can be connected to, is started again when it dies, and lets builds
//! end when it is stopped.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::held_download::HeldDownload;
use integration::machines::{Machine, Machines, MachinesOptions};
use integration::peers::{self, Peers};
use integration::servers::EmbeddedRegistry;
use integration::wait;

const DEADLINE: Duration = Duration::from_secs(60);

const EXPORTER: &str = "buildctl --addr unix:///run/nydus-cluster/exporter.sock";

const BUILDKIT_UNIT: &str = "[Service]
ExecStart=/usr/local/bin/buildkitd --root /var/lib/buildkit --oci-worker-snapshotter=native --oci-worker-net=host \
--containerd-worker=false
";

pub(crate) fn works(peers: &Peers) -> Result<()> {
    let dir = super::directory(peers)?;
    let mut machines = Machines::boot(peers, dir.path(), &options(peers)?)?;
    let host = IpAddr::from(machines.host());
    let registry = EmbeddedRegistry::serve(&dir.path().join("registry"), &dir.path().join("storage"), host)?;
    let name = format!("{}/unit:v1", registry.address());
    let [machine] = machines.all() else { anyhow::bail!("not one machine") };
    machine.write("/etc/systemd/system/buildkit.service", BUILDKIT_UNIT)?;
    let config = format!(
        "[registry.hosts.\"{}\"]\nplain_http = true\n\
         [exporter]\ncontent_store = \"/var/lib/buildkit/runc-native/content\"\n",
        registry.address()
    );
    machine.write("/etc/nydus-cluster/config.toml", config)?;
    machine.run("systemctl daemon-reload; systemctl start buildkit.service")?;
    machine.wait_for("buildkitd answers", DEADLINE, "buildctl debug workers")?;
    // Nothing is waited for: started is ready.
    machine.run(&format!("systemctl start nydus-cluster-exporter.service; {EXPORTER} debug workers"))?;

    drains(machine, host, &name, &dir.path().join("build.log"))?;

    machine.run(&format!("systemctl start nydus-cluster-exporter.service; {EXPORTER} debug workers"))?;
    machine.run("kill -9 \"$(systemctl show --property MainPID --value nydus-cluster-exporter.service)\"")?;
    machine.wait_for(
        "the exporter is started again",
        DEADLINE,
        &format!("{}; {EXPORTER} debug workers", shows("NRestarts", "1")),
    )?;
    machines.end()
}

fn options(peers: &Peers) -> Result<MachinesOptions> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/units/nydus-cluster-exporter.service");
    let shown = [
        (peers.buildkit("buildkitd")?, "/usr/local/bin/buildkitd"),
        (peers.buildkit("buildctl")?, "/usr/local/bin/buildctl"),
        (peers::system("runc")?, "/usr/local/bin/runc"),
        (peers::nydus_cluster()?, "/usr/local/bin/nydus-cluster"),
        (fs::canonicalize(unit)?, "/etc/systemd/system/nydus-cluster-exporter.service"),
    ];
    let shown = shown.map(|(here, there)| (here, PathBuf::from(there))).to_vec();
    Ok(MachinesOptions { count: 1, shown, ..MachinesOptions::default() })
}

/// A shell's command that succeeds if a property of the exporter's unit has a value that begins so.
fn shows(property: &str, value: &str) -> String {
    format!(
        "systemctl show --property {property} --value nydus-cluster-exporter.service | grep -q '^{value}'"
    )
}

/// It is stopped while a build of the image `name` is under way, which ends as it should.
fn drains(machine: &Machine, host: IpAddr, name: &str, log: &Path) -> Result<()> {
    let download = HeldDownload::start(host)?;
    machine.write("/root/context/Dockerfile", format!("FROM scratch\nADD {} /file\n", download.url()))?;
    let file = File::create(log)?;
    let build = format!(
        "{EXPORTER} build --progress=plain --frontend=dockerfile.v0 --local context=/root/context \
         --local dockerfile=/root/context --output type=nydus-cluster,name={name}"
    );
    let mut command = machine.command("/bin/sh")?;
    command.args(["-ec", &build]).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut build = command.spawn().context("starting buildctl")?;
    let outcome = (|| {
        machine.wait_for(
            "the build is under way",
            DEADLINE,
            "journalctl --unit nydus-cluster-exporter.service | grep -q 'export begins'",
        )?;
        machine.run("systemctl stop --no-block nydus-cluster-exporter.service")?;
        let draining = format!(
            "{}; {}",
            shows("StatusText", "waiting up to 300 s"),
            shows("ActiveState", "deactivating")
        );
        machine.wait_for("the exporter waits for the build", DEADLINE, &draining)?;
        // Its socket is free for a successor. It says what it does and gives up the socket at about the same time.
        machine.wait_for("the socket is gone", DEADLINE, "! test -e /run/nydus-cluster/exporter.sock")?;
        ensure!(build.try_wait()?.is_none(), "the build has ended");
        download.release();
        wait::until("the build has ended", DEADLINE, || Ok(build.try_wait()?))
    })();
    if outcome.is_err() {
        build.kill()?;
        build.wait()?;
    }
    let said = fs::read_to_string(log)?;
    ensure!(outcome.with_context(|| said.clone())?.success(), "{said}");
    let ended = format!("{}; {}", shows("ActiveState", "inactive"), shows("Result", "success"));
    machine.wait_for("the exporter has ended", DEADLINE, &ended)?;
    let read =
        "journalctl --unit nydus-cluster-exporter.service | grep -q \"read from buildkitd's content store\"";
    // The journal may have it later than the unit has ended.
    machine.wait_for("the content store was read", DEADLINE, read)?;
    machine.run(&format!("nydus-cluster image check {name}"))?;
    Ok(())
}
