//! A node that has a containerd of its own before the cluster comes: 2.4, with a configuration, an image and a container.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result, ensure};
use integration::cluster_lab::ClusterLab;
use integration::machines::Machine;
use integration::peers::{ContainerdVersion, Peers};

const CONFIG: &str = "/etc/containerd/config.toml";
/// Nobody but root may read it, and its comments are to come back.
const CONFIG_MODE: u32 = 0o600;
const CONFIG_TEXT: &str =
    "# The node's own.\nversion = 4\nimports = ['/etc/containerd/conf.d/*.toml']  # as ever\n";
const IMPORTED: &str = "version = 4
[plugins.'io.containerd.cri.v1.runtime']
  # Machines within machines may lack the right to lower it.
  restrict_oom_score_adj = true
  disable_apparmor = true
";
const UNIT: &str = "[Unit]
Description=The node's own containerd
After=network.target local-fs.target

[Service]
Type=notify
ExecStart=/usr/local/bin/containerd
Delegate=yes
KillMode=process
Restart=always

[Install]
WantedBy=multi-user.target
";

/// What the node had before.
pub(crate) struct OwnContainerd {
    /// An image that it has whole.
    image: String,
    /// The process of a container of that image.
    container: String,
}

/// The machine.
pub(crate) fn machine(lab: &ClusterLab) -> &Machine {
    &lab.machines().all()[1]
}

impl OwnContainerd {
    /// Gives a bare machine its containerd, which pulls `image` of the lab's registry and runs a container of it.
    pub(crate) fn begin(lab: &ClusterLab, peers: &Peers, image: &str) -> Result<Self> {
        let machine = machine(lab);
        for program in ["containerd", "containerd-shim-runc-v2", "ctr"] {
            let file = peers.containerd(ContainerdVersion::V2_4, program)?;
            fs::copy(file, machine.path(&format!("/usr/local/bin/{program}"))?)?;
        }
        fs::copy(integration::peers::system("runc")?, machine.path("/usr/local/bin/runc")?)?;
        machine.write(CONFIG, CONFIG_TEXT)?;
        fs::set_permissions(machine.path(CONFIG)?, fs::Permissions::from_mode(CONFIG_MODE))?;
        machine.write("/etc/containerd/conf.d/runtime.toml", IMPORTED)?;
        machine.write("/etc/systemd/system/containerd.service", UNIT)?;
        machine.run("systemctl daemon-reload; systemctl enable --quiet --now containerd")?;
        let image = format!("{}/{image}", lab.registry().address());
        machine.run(&format!("ctr --namespace k8s.io images pull --plain-http {image}"))?;
        machine.run(&format!("ctr --namespace k8s.io run --detach {image} kept sleep infinity"))?;
        let container = Self::process(machine)?;
        Ok(Self { image, container })
    }

    fn process(machine: &Machine) -> Result<String> {
        let tasks = machine.run("ctr --namespace k8s.io tasks ls")?.stdout;
        let kept = tasks.lines().find(|line| line.starts_with("kept ") && line.contains("RUNNING"));
        let process = kept.and_then(|line| line.split_whitespace().nth(1)).with_context(|| tasks.clone())?;
        Ok(process.to_owned())
    }

    /// What was there goes on while the cluster is there.
    pub(crate) fn goes_on(&self, lab: &ClusterLab) -> Result<()> {
        let machine = machine(lab);
        let version = machine.run("ctr version")?.stdout;
        ensure!(version.matches(" v2.4").count() + version.matches(" 2.4").count() == 2, "{version}");
        let config = machine.run(&format!("cat {CONFIG}"))?.stdout;
        ensure!(config.contains("nydus-cluster") && config.contains("conf.d"), "{config}");
        ensure!(Self::process(machine)? == self.container, "its container was started again");
        // Its image is unpacked once more, out of what the node has.
        lab.run_pod("of-before", &self.image, machine, &["sleep", "infinity"])?;
        ensure!(lab.kubectl("exec of-before -- cat /outside")?.trim() == "outside");
        let images = machine.run("ctr --namespace k8s.io snapshots --snapshotter nydus-cluster ls")?.stdout;
        ensure!(images.lines().count() > 1, "{images}");
        Ok(())
    }

    /// And after it.
    pub(crate) fn is_as_before(&self, lab: &ClusterLab) -> Result<()> {
        let (machine, image) = (machine(lab), &self.image);
        let file = machine.path(CONFIG)?;
        ensure!(fs::read_to_string(&file)? == CONFIG_TEXT);
        ensure!(fs::metadata(&file)?.permissions().mode() & 0o7777 == CONFIG_MODE);
        machine.run("test ! -e /etc/containerd/certs.d && systemctl is-active containerd")?;
        ensure!(Self::process(machine)? == self.container, "its container was started again");
        // What it had lazily is not there, rather than there and broken.
        let images = machine.run("ctr --namespace k8s.io images ls -q")?.stdout;
        ensure!(images.lines().any(|name| name == image), "{images}");
        ensure!(
            !images.contains("registry.k8s.io") && !images.contains("registry.example/services/nginx"),
            "{images}"
        );
        let plugins = machine.run("ctr plugins ls")?.stdout;
        ensure!(!plugins.contains("nydus-cluster"), "{plugins}");
        let ran = machine.run(&format!("ctr --namespace k8s.io run --rm {image} again cat /outside"))?;
        ensure!(ran.stdout.trim() == "outside", "{}", ran.stdout);
        Ok(())
    }
}
