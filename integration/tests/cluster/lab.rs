//! Machines, the registry that they pull from, and `nydus-cluster cluster` in front of both.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cluster_image::{ClusterImage, Services};
use integration::machines::{Machines, MachinesOptions};
use integration::peers::{self, Peers};
use integration::process::{self, Output, Server};
use integration::servers::EmbeddedRegistry;
use integration::{demo, wait};
use tempfile::TempDir;

/// All of a cluster, on a loaded host.
const RUN_DEADLINE: Duration = Duration::from_secs(600);
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// Fields are dropped in this order: machines before what they read from.
pub(crate) struct Lab {
    machines: Machines,
    registry: EmbeddedRegistry,
    services: Services,
    dir: TempDir,
}

impl Lab {
    pub(crate) fn start(peers: &Peers, services: Services) -> Result<Self> {
        let image = ClusterImage::make(peers, services)?;
        let dir = tempfile::Builder::new().prefix("cluster-").tempdir_in(peers.cache())?;
        let machines = Machines::boot(peers, &dir.path().join("machines"), &MachinesOptions::default())?;
        let registry = image.serve(&dir.path().join("registry"), machines.host().into())?;
        Ok(Self { machines, registry, services, dir })
    }

    pub(crate) fn machines(&self) -> &Machines {
        &self.machines
    }

    /// `nydus-cluster cluster …`, with the record of clusters in this lab's directory.
    pub(crate) fn cluster(&self, arguments: &[&str]) -> Result<Output> {
        process::run_within(self.command()?.args(arguments), RUN_DEADLINE)
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(peers::nydus_cluster()?);
        command.arg("cluster").env("XDG_STATE_HOME", self.dir.path().join("state"));
        Ok(command)
    }

    fn run_command(&self) -> Result<Command> {
        let addresses: Vec<_> =
            self.machines.all().iter().map(|machine| machine.address().to_string()).collect();
        let (master, nodes) = addresses.split_first().context("no machines")?;
        let mut command = self.command()?;
        command.args(["run", self.services.image(), "--masters", master, "--nodes", &nodes.join(",")]);
        command.args(["--user", "root", "--key"]).arg(self.machines.key());
        command.arg("--registry").arg(format!("http://{}/v2", self.registry.address()));
        Ok(command)
    }

    pub(crate) fn cluster_run(&self) -> Result<Output> {
        process::run_within(&mut self.run_command()?, RUN_DEADLINE)
    }

    /// Runs until the first node says `word`, and is killed then.
    pub(crate) fn killed_run(&self, word: &str) -> Result<()> {
        let log = self.dir.path().join("killed.log");
        let mut server = Server::spawn("cluster run", self.run_command()?, log)?;
        let first = self.machines.all().first().context("no machines")?.address();
        let said = format!("{first}: ");
        wait::until("the first node has come so far", RUN_DEADLINE, || {
            let text = server.log_text();
            ensure!(server.exited()?.is_none(), "cluster run ended before:\n{text}");
            let so_far = text.lines().any(|line| line.starts_with(&said) && line.contains(word));
            Ok(so_far.then_some(()))
        })?;
        server.kill()
    }

    /// `kubectl` as the administrator, on the first machine.
    fn kubectl(&self, arguments: &str) -> Result<String> {
        let first = self.machines.all().first().context("no machines")?;
        Ok(first.run(&format!("kubectl --kubeconfig /etc/kubernetes/admin.conf {arguments}"))?.stdout)
    }

    pub(crate) fn wait_nodes_ready(&self, count: usize) -> Result<()> {
        wait::until("all nodes are ready", READY_DEADLINE, || {
            let nodes = self.kubectl("get nodes --no-headers")?;
            let ready = nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready"));
            Ok((ready.count() == count).then_some(()))
        })
        .with_context(|| self.kubectl("get nodes,pods -A -o wide").unwrap_or_default())
    }

    /// Waits until all services answer on all machines.
    pub(crate) fn wait_serving(&self, deadline: Duration) -> Result<()> {
        for machine in self.machines.all() {
            for &port in self.services.ports() {
                let address = SocketAddr::new(machine.address().into(), port);
                demo::ask_until_answered(address, deadline).with_context(|| {
                    let pods = self.kubectl("get nodes,pods -A -o wide; kubectl --kubeconfig /etc/kubernetes/admin.conf get events -A | tail -40");
                    format!("{address}\n{}", pods.unwrap_or_default())
                })?;
            }
        }
        let what = format!("{} pods are ready", self.services.pods());
        wait::until(&what, deadline, || {
            let pods = self.kubectl("get pods -l part=services --no-headers")?;
            let ready = pods.lines().filter(|line| line.split_whitespace().nth(1) == Some("1/1")).count();
            Ok((ready == self.services.pods()).then_some(()))
        })
        .with_context(|| self.kubectl("get pods -A -o wide").unwrap_or_default())
    }

    /// What a run could change on the nodes.
    pub(crate) fn state_of_nodes(&self) -> Result<Vec<String>> {
        let script = "find /etc /usr/bin /var/lib/nydus-cluster /opt -xdev '(' -type f -o -type l ')' -printf '%p %T@ %i\\n' \
                      | grep -v /cache/ | sort; systemctl show -P ActiveEnterTimestamp containerd kubelet";
        self.machines.all().iter().map(|machine| Ok(machine.run(script)?.stdout)).collect()
    }
}
