//! Nodes that have a containerd of their own before the cluster comes, with an image and a container.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context, Result, ensure};
use integration::cluster_lab::ClusterLab;
use integration::machines::Machine;
use integration::peers::{ContainerdVersion, Peers};

const CONFIG: &str = "/etc/containerd/config.toml";
/// Nobody but root may read it, and its comments are to come back.
const CONFIG_MODE: u32 = 0o600;
const IMPORTED: &str = "/etc/containerd/conf.d/runtime.toml";
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

/// A containerd, and what is said to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// The number of the machine that has it.
    machine: usize,
    version: ContainerdVersion,
    /// Its configuration, if there is a file.
    config: Option<&'static str>,
    /// What it reads in addition, if anything.
    imported: Option<&'static str>,
}

/// 2.4 with a file that imports another one.
pub(crate) const SERIES_2: Kind = Kind {
    machine: 1,
    version: ContainerdVersion::V2_4,
    config: Some("# The node's own.\nversion = 4\nimports = ['/etc/containerd/conf.d/*.toml']  # as ever\n"),
    imported: Some(OF_MACHINES),
};

/// 2.4 without a file, which reads that other one nevertheless.
pub(crate) const WITHOUT_FILE: Kind = Kind { config: None, ..SERIES_2 };

/// Debian's 1.7, which looks for network plugins where Kubernetes' do not go unless it is told.
pub(crate) const SERIES_1: Kind = Kind {
    machine: 2,
    version: ContainerdVersion::V1_7,
    config: Some(
        "# The node's own, of an older time.
version = 2
[plugins.\"io.containerd.grpc.v1.cri\"]
  sandbox_image = 'registry.k8s.io/pause:3.10.2'
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.\"io.containerd.grpc.v1.cri\".cni]
    bin_dir = '/opt/cni/bin'
",
    ),
    imported: None,
};

/// Machines within machines may lack the right to lower it.
const OF_MACHINES: &str = "version = 4
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
";

/// What the node had before.
#[derive(Debug)]
pub(crate) struct OwnContainerd {
    kind: Kind,
    /// An image that it has whole.
    image: String,
    /// All that it has of images.
    contents: BTreeSet<String>,
    /// The process of a container of that image.
    container: String,
}

impl OwnContainerd {
    /// Gives a bare machine its containerd, which pulls `image` of the lab's registry and runs a container of it.
    pub(crate) fn begin(lab: &ClusterLab, peers: &Peers, kind: Kind, image: &str) -> Result<Self> {
        let machine = lab.machines().all().get(kind.machine).context("so many machines there are not")?;
        for program in ["containerd", "containerd-shim-runc-v2", "ctr"] {
            let file = peers.containerd(kind.version, program)?;
            fs::copy(file, machine.path(&format!("/usr/local/bin/{program}"))?)?;
        }
        fs::copy(integration::peers::system("runc")?, machine.path("/usr/local/bin/runc")?)?;
        if let Some(text) = kind.config {
            machine.write(CONFIG, text)?;
            fs::set_permissions(machine.path(CONFIG)?, fs::Permissions::from_mode(CONFIG_MODE))?;
        }
        if let Some(text) = kind.imported {
            machine.write(IMPORTED, text)?;
        }
        machine.write("/etc/systemd/system/containerd.service", UNIT)?;
        machine.run("systemctl daemon-reload; systemctl enable --quiet --now containerd")?;
        let image = format!("{}/{image}", lab.registry().address());
        machine.run(&format!("ctr --namespace k8s.io images pull --plain-http {image}"))?;
        machine.run(&format!("ctr --namespace k8s.io run --detach {image} kept sleep infinity"))?;
        let (contents, container) = (contents(machine)?, process(machine)?);
        Ok(Self { kind, image, contents, container })
    }

    /// The machine.
    pub(crate) fn machine<'a>(&self, lab: &'a ClusterLab) -> &'a Machine {
        &lab.machines().all()[self.kind.machine]
    }

    /// Whether the content with this digest was there before.
    pub(crate) fn had(&self, digest: &str) -> bool {
        self.contents.contains(digest)
    }

    /// What was there goes on while the cluster is there.
    pub(crate) fn goes_on(&self, lab: &ClusterLab) -> Result<()> {
        let (machine, number) = (self.machine(lab), self.kind.version.to_string());
        let version = machine.run("ctr version")?.stdout;
        let said = version.lines().filter_map(|line| line.trim().strip_prefix("Version:"));
        let said = said.filter(|said| said.trim().trim_start_matches('v').starts_with(&number)).count();
        // Client and server.
        ensure!(said == 2, "{version}");
        let config = machine.run(&format!("cat {CONFIG}"))?.stdout;
        ensure!(config.contains("nydus-cluster"), "{config}");
        ensure!(self.kind.imported.is_none() || config.contains("conf.d"), "{config}");
        ensure!(process(machine)? == self.container, "its container was started again");
        // Its image is unpacked once more, out of what the node has.
        let pod = format!("of-before-{}", machine.name());
        lab.run_pod(&pod, &self.image, machine, &["sleep", "infinity"])?;
        ensure!(lab.kubectl(&format!("exec {pod} -- cat /outside"))?.trim() == "outside");
        let images = machine.run("ctr --namespace k8s.io snapshots --snapshotter nydus-cluster ls")?.stdout;
        ensure!(images.lines().count() > 1, "{images}");
        Ok(())
    }

    /// And after it.
    pub(crate) fn is_as_before(&self, lab: &ClusterLab) -> Result<()> {
        let (machine, image) = (self.machine(lab), &self.image);
        let file = machine.path(CONFIG)?;
        if let Some(text) = self.kind.config {
            ensure!(fs::read_to_string(&file)? == text);
            ensure!(fs::metadata(&file)?.permissions().mode() & 0o7777 == CONFIG_MODE);
        } else {
            ensure!(!file.exists(), "{CONFIG} was not there");
        }
        machine.run("test ! -e /etc/containerd/certs.d && systemctl is-active containerd")?;
        ensure!(process(machine)? == self.container, "its container was started again");
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

/// The digests of all that a machine's containerd has of images.
pub(crate) fn contents(machine: &Machine) -> Result<BTreeSet<String>> {
    let listed = machine.run("ctr --namespace k8s.io content ls -q")?.stdout;
    Ok(listed.lines().map(ToOwned::to_owned).collect())
}

fn process(machine: &Machine) -> Result<String> {
    let tasks = machine.run("ctr --namespace k8s.io tasks ls")?.stdout;
    let kept = tasks.lines().find(|line| line.starts_with("kept ") && line.contains("RUNNING"));
    let process = kept.and_then(|line| line.split_whitespace().nth(1)).with_context(|| tasks.clone())?;
    Ok(process.to_owned())
}
