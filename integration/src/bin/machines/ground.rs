//! The files of a machine before its first boot: who it is, who may log in, and what makes it a ground for a kubelet on a
//! host where all machines share one kernel.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use integration::machines::plan::{self, Plan, Subnet};
use integration::{peers, process};

/// What nobody needs of a machine that has no console and whose addresses are there before it boots.
const MASKED: [&str; 9] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "systemd-networkd.service",
    "systemd-resolved.service",
];

/// What the kubelet wants of the kernel. The host keeps its own: a file with the value lies on each, in the machine alone.
const WANTED: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

const GROUND: &str = r#"#!/bin/sh
# Before anything that runs containers: what systemd-nspawn made read-only becomes writable.
set -e
for hierarchy in /sys/fs/cgroup/*/; do mount -o remount,rw,bind "$hierarchy"; done
mount -o remount,rw,bind /proc/sys
cd /etc/machine-ground
find . -type f | while read -r value; do mount --bind "$value" "/proc/sys/$value"; done
mount --make-rshared /
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
"#;

const GROUND_UNIT: &str = "[Unit]
Description=Ground for containers
DefaultDependencies=no
After=local-fs.target
Before=sysinit.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/machine-ground

[Install]
WantedBy=sysinit.target
";

/// A container that does not end on SIGTERM would hold up a reboot.
const STOP_TIMEOUT: &str = "[Manager]\nDefaultTimeoutStopSec=5s\n";

/// Makes the directories and files of a machine.
pub(crate) fn prepare(dir: &Path, plan: &Plan, subnet: Subnet, index: usize) -> Result<()> {
    let upper = dir.join("upper");
    for directory in [&upper, &dir.join("work"), &dir.join("root")] {
        fs::create_dir_all(directory)?;
    }
    // Not in the overlay: containerd's own overlays cannot lie on one.
    let mut copy = Command::new("cp");
    process::run(copy.arg("--archive").arg(plan.root.join("var/lib")).arg(dir.join("lib")))?;

    let etc = |file: &str, content: &str| write(&upper.join("etc").join(file), content, 0o644);
    etc("hostname", &format!("{}\n", plan::name(index)))?;
    etc("hosts", &hosts(plan, subnet))?;
    etc("machine-id", &identity()?)?;
    // Nobody answers there, but without a server CoreDNS does not start.
    etc("resolv.conf", &format!("nameserver {}\n", subnet.host()))?;
    etc("systemd/system.conf.d/stop-timeout.conf", STOP_TIMEOUT)?;
    let units = upper.join("etc/systemd/system");
    fs::create_dir_all(units.join("sysinit.target.wants"))?;
    for unit in MASKED {
        symlink("/dev/null", units.join(unit)).or_else(exists)?;
    }
    for (file, value) in WANTED {
        etc(&format!("machine-ground/{file}"), &format!("{value}\n"))?;
    }
    write(&upper.join("usr/local/sbin/machine-ground"), GROUND, 0o755)?;
    etc("systemd/system/machine-ground.service", GROUND_UNIT)?;
    let wanted = units.join("sysinit.target.wants/machine-ground.service");
    symlink("../machine-ground.service", wanted).or_else(exists)?;
    ssh(&upper, plan)
}

fn hosts(plan: &Plan, subnet: Subnet) -> String {
    let machines =
        plan.names().enumerate().map(|(index, name)| format!("{} {name}\n", subnet.machine(index)));
    format!("127.0.0.1 localhost\n{} host\n{}", subnet.host(), machines.collect::<String>())
}

/// A machine's own number, as systemd makes them.
fn identity() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("making a machine id")?;
    Ok(uuid.replace('-', ""))
}

/// A host key of its own, and the key that may log in.
fn ssh(upper: &Path, plan: &Plan) -> Result<()> {
    let key = upper.join("etc/ssh/ssh_host_ed25519_key");
    fs::create_dir_all(upper.join("etc/ssh"))?;
    if !key.exists() {
        let mut command = Command::new(peers::system("ssh-keygen")?);
        process::run(command.args(["-q", "-t", "ed25519", "-N", "", "-C", "machine", "-f"]).arg(&key))?;
    }
    if let Some(public) = &plan.key {
        write(&upper.join("root/.ssh/authorized_keys"), public, 0o600)?;
        fs::set_permissions(upper.join("root"), fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn write(file: &Path, content: &str, mode: u32) -> Result<()> {
    fs::create_dir_all(file.parent().unwrap_or(file))?;
    fs::write(file, content).with_context(|| format!("writing {}", file.display()))?;
    fs::set_permissions(file, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn exists(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}
