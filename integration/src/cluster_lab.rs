//! What a cluster is launched on: machines, the registry that they pull from, and `nydus-cluster cluster` in front of both.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster_image::{ClusterImage, Pull, Services};
use crate::machines::{Machine, Machines, MachinesOptions};
use crate::peers::{self, Peers};
use crate::process::{self, Output, Server};
use crate::servers::EmbeddedRegistry;
use crate::{demo, wait};

/// All of a cluster, on a loaded host.
const RUN_DEADLINE: Duration = Duration::from_secs(600);
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// What `nydus-cluster` is told.
const CONFIG: &str = "config.toml";

/// Fields are dropped in this order: machines before what they read from.
#[derive(Debug)]
pub struct ClusterLab {
    machines: Machines,
    registry: EmbeddedRegistry,
    services: Services,
    dir: PathBuf,
}

impl ClusterLab {
    /// Boots three machines with all of their files under `dir`, and serves the image to them.
    pub fn start(peers: &Peers, image: &ClusterImage, services: Services, dir: &Path) -> Result<Self> {
        let machines = Machines::boot(peers, &dir.join("machines"), &MachinesOptions::default())?;
        let registry = image.serve(&dir.join("registry"), machines.host().into())?;
        // Templates are rendered by it.
        fs::write(dir.join(CONFIG), format!("[cluster]\nhelm = {:?}\n", peers.helm()?))?;
        Ok(Self { machines, registry, services, dir: dir.to_owned() })
    }

    /// The machines.
    pub fn machines(&self) -> &Machines {
        &self.machines
    }

    /// The registry.
    pub fn registry(&self) -> &EmbeddedRegistry {
        &self.registry
    }

    /// Ends the registry: whoever asks it finds nobody.
    pub fn end_registry(&mut self) -> Result<()> {
        self.registry.server().stop()
    }

    /// Serves again where nobody was found.
    pub fn begin_registry(&mut self) -> Result<()> {
        self.registry = self.registry.again(&self.dir.join("registry"))?;
        Ok(())
    }

    /// A second registry with the same content, for those alone whom `users` names, the lines of an htpasswd file.
    pub fn private_registry(&self, users: &str) -> Result<EmbeddedRegistry> {
        let (dir, host) = (self.dir.join("private-registry"), self.machines.host().into());
        EmbeddedRegistry::serve_to(&dir, self.registry.root(), host, users)
    }

    /// Leaves all of it running.
    pub fn release(mut self) -> Result<()> {
        self.registry.server().forget();
        self.machines.release()
    }

    /// `nydus-cluster cluster …`, with the record of clusters in this lab's directory.
    pub fn cluster(&self, arguments: &[&str]) -> Result<Output> {
        process::run_within(self.command()?.args(arguments), RUN_DEADLINE)
    }

    /// `nydus-cluster cluster`, to be completed.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(peers::nydus_cluster()?);
        command
            .arg("--config")
            .arg(self.dir.join(CONFIG))
            .arg("cluster")
            .env("XDG_STATE_HOME", self.dir.join("state"));
        Ok(command)
    }

    /// `cluster run` on the machines: the first is the master.
    pub fn run_command(&self, pull: Pull) -> Result<Command> {
        let mut command = self.run_of_image(self.services.image())?;
        command.args((pull == Pull::Plain).then_some("--plain"));
        Ok(command)
    }

    /// Runs another cluster image of the lab's registry, of which no container images were saved, with `flags` more.
    pub fn run_of(&self, image: &str, flags: &[&str]) -> Result<Output> {
        process::run_within(self.run_of_image(image)?.arg("--plain").args(flags), RUN_DEADLINE)
    }

    /// The same of one that cannot be run.
    pub fn failing_run_of(&self, image: &str, flags: &[&str]) -> Result<Output> {
        process::run_failing(self.run_of_image(image)?.arg("--plain").args(flags))
    }

    fn run_of_image(&self, image: &str) -> Result<Command> {
        let addresses: Vec<_> =
            self.machines.all().iter().map(|machine| machine.address().to_string()).collect();
        let (master, nodes) = addresses.split_first().context("no machines")?;
        let mut command = self.command()?;
        command.args(["run", image, "--masters", master, "--nodes", &nodes.join(",")]);
        command.args(["--user", "root", "--key"]).arg(self.machines.key());
        command.arg("--registry").arg(format!("http://{}/v2", self.registry.address()));
        Ok(command)
    }

    /// `cluster run` of a package: the first `masters` machines have the control plane.
    pub fn package_command(&self, package: &Path, masters: usize) -> Result<Command> {
        let addresses = |machines: &[Machine]| -> String {
            let addresses: Vec<_> = machines.iter().map(|machine| machine.address().to_string()).collect();
            addresses.join(",")
        };
        let (masters, nodes) = self.machines.all().split_at(masters);
        let mut command = self.command()?;
        command.arg("run").arg(package);
        command.args(["--masters", &addresses(masters), "--nodes", &addresses(nodes)]);
        command.args(["--user", "root", "--key"]).arg(self.machines.key());
        Ok(command)
    }

    /// Runs the package to its end.
    pub fn run_package(&self, package: &Path, masters: usize) -> Result<Output> {
        process::run_within(&mut self.package_command(package, masters)?, RUN_DEADLINE)
    }

    /// Runs it to its end, images lazily.
    pub fn cluster_run(&self) -> Result<Output> {
        process::run_within(&mut self.run_command(Pull::Lazy)?, RUN_DEADLINE)
    }

    /// Runs until the first node says `word`, and is killed then.
    pub fn killed_run(&self, word: &str) -> Result<()> {
        let log = self.dir.join("killed.log");
        let mut server = Server::spawn("cluster run", self.run_command(Pull::Lazy)?, log)?;
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

    /// Runs a pod of an image on one of the machines, and waits until it runs.
    pub fn run_pod(&self, name: &str, image: &str, machine: &Machine, command: &[&str]) -> Result<()> {
        self.run_pod_with(name, image, machine, command, json!({}))
    }

    /// The same with more in the pod's specification.
    pub fn run_pod_with(
        &self,
        name: &str,
        image: &str,
        machine: &Machine,
        command: &[&str],
        mut spec: Value,
    ) -> Result<()> {
        spec["nodeName"] = machine.name().into();
        spec["terminationGracePeriodSeconds"] = 0.into();
        let spec = json!({"apiVersion": "v1", "spec": spec});
        let command =
            if command.is_empty() { String::new() } else { format!("--command -- {}", command.join(" ")) };
        self.kubectl(&format!("run {name} --image={image} --overrides='{spec}' {command}"))?;
        let ready = format!("wait --for=condition=Ready --timeout={}s pod/{name}", READY_DEADLINE.as_secs());
        self.kubectl(&ready)
            .map(drop)
            .with_context(|| self.kubectl(&format!("describe pod {name}")).unwrap_or_default())
    }

    /// The names of the container images of the cluster image that each machine has.
    pub fn images_on_nodes(&self) -> Result<Vec<Vec<String>>> {
        let known: Vec<_> = self.services.images().map(|(_, image)| image).collect();
        let of_machine = |machine: &Machine| {
            let images = machine.run("ctr --namespace k8s.io images ls -q")?.stdout;
            Ok(images.lines().filter(|image| known.contains(image)).map(ToOwned::to_owned).collect())
        };
        self.machines.all().iter().map(of_machine).collect()
    }

    /// `kubectl` as the administrator, on the first machine.
    pub fn kubectl(&self, arguments: &str) -> Result<String> {
        let first = self.machines.all().first().context("no machines")?;
        Ok(first.run(&format!("kubectl --kubeconfig /etc/kubernetes/admin.conf {arguments}"))?.stdout)
    }

    /// How many nodes are ready.
    pub fn nodes_ready(&self) -> Result<usize> {
        let nodes = self.kubectl("get nodes --no-headers")?;
        Ok(nodes.lines().filter(|line| line.split_whitespace().nth(1) == Some("Ready")).count())
    }

    /// How many pods of services are ready.
    pub fn pods_ready(&self) -> Result<usize> {
        let pods = self.kubectl("get pods -l part=services --no-headers")?;
        Ok(pods.lines().filter(|line| line.split_whitespace().nth(1) == Some("1/1")).count())
    }

    /// Waits until so many nodes are ready.
    pub fn wait_nodes_ready(&self, count: usize) -> Result<()> {
        wait::until(
            "all nodes are ready",
            READY_DEADLINE,
            || Ok((self.nodes_ready()? == count).then_some(())),
        )
        .with_context(|| self.kubectl("get nodes,pods -A -o wide").unwrap_or_default())
    }

    /// Waits until all services answer on all machines.
    pub fn wait_serving(&self, deadline: Duration) -> Result<()> {
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
        wait::until(&what, deadline, || Ok((self.pods_ready()? == self.services.pods()).then_some(())))
            .with_context(|| self.kubectl("get pods -A -o wide").unwrap_or_default())
    }

    /// What a run could change on the nodes.
    pub fn state_of_nodes(&self) -> Result<Vec<String>> {
        let script = "find /etc /usr/bin /var/lib/nydus-cluster /opt -xdev '(' -type f -o -type l ')' -printf '%p %T@ %i\\n' \
                      | grep -v -e /cache/ -e /snapshotter/ | sort; systemctl show -P ActiveEnterTimestamp containerd kubelet";
        self.machines.all().iter().map(|machine| Ok(machine.run(script)?.stdout)).collect()
    }
}
