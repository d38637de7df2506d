//! The machines' network: a bridge in a namespace of its own, a limited link from it to this host, and a namespace a machine.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use integration::machines::plan::{Plan, Subnet};
use integration::{peers, process};

use crate::cgroup::Cgroups;

/// The network. Machines come and go on it.
#[derive(Debug)]
pub(crate) struct Network {
    dir: PathBuf,
    subnet: Subnet,
    /// Holds the number: the name is free again when this process ends, however it does.
    _number: UnixListener,
}

impl Network {
    /// Makes it, and says in a file which one it is.
    pub(crate) fn make(dir: &Path, plan: &Plan) -> Result<Self> {
        clear_left()?;
        let (number, subnet) = free_number()?;
        let network = Self { dir: dir.to_owned(), subnet, _number: number };
        network.connect(plan.link_mbit)?;
        let file = Subnet::file(dir);
        let temporary = file.with_extension("new");
        std::fs::write(&temporary, serde_json::to_vec(&subnet)?)?;
        std::fs::rename(&temporary, &file)?;
        Ok(network)
    }

    /// Which one it is.
    pub(crate) fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The namespace of a machine.
    pub(crate) fn namespace(&self, machine: &str) -> PathBuf {
        self.dir.join("net").join(machine)
    }

    fn hub(&self) -> PathBuf {
        self.namespace("hub")
    }

    /// Removes the link. The rest goes with its namespaces.
    pub(crate) fn remove(&self) -> Result<()> {
        remove_link(self.subnet)
    }

    fn connect(&self, mbit: Option<u32>) -> Result<()> {
        let (interface, hub) = (self.subnet.name(), self.hub());
        make_namespace(&hub)?;
        within(&hub, "ip", &["link", "add", "bridge", "type", "bridge"])?;
        within(&hub, "ip", &["link", "set", "bridge", "up"])?;
        let hub_path = hub.to_string_lossy();
        ip(&["link", "add", &interface, "type", "veth", "peer", "name", "host", "netns", &hub_path])?;
        within(&hub, "ip", &["link", "set", "host", "master", "bridge", "up"])?;
        let address = format!("{}/{}", self.subnet.host(), Subnet::PREFIX);
        ip(&["address", "add", &address, "dev", &interface])?;
        keep_to_host(&interface)?;
        ip(&["link", "set", &interface, "up"])?;
        if let Some(mbit) = mbit {
            let rate = format!("{mbit}mbit");
            let limit = |device| {
                [
                    "qdisc", "add", "dev", device, "root", "tbf", "rate", &rate, "burst", "256kb", "latency",
                    "50ms",
                ]
            };
            process::run(Command::new(peers::system("tc")?).args(limit(&interface)))?;
            within(&hub, "tc", &limit("host"))?;
        }
        Ok(())
    }

    /// Makes a machine's namespace, with an address on the network.
    pub(crate) fn attach(&self, index: usize, machine: &str) -> Result<()> {
        self.detach(machine)?;
        let (namespace, hub) = (self.namespace(machine), self.hub());
        make_namespace(&namespace)?;
        let path = namespace.to_string_lossy();
        within(
            &hub,
            "ip",
            &["link", "add", machine, "type", "veth", "peer", "name", "eth0", "netns", &path],
        )?;
        within(&hub, "ip", &["link", "set", machine, "master", "bridge", "up"])?;
        let address = format!("{}/{}", self.subnet.machine(index), Subnet::PREFIX);
        // The same in all boots, or the others would send to the old one for a while.
        let [.., third, fourth] = self.subnet.machine(index).octets();
        let hardware = format!("02:00:00:00:{third:02x}:{fourth:02x}");
        for command in [
            &["link", "set", "lo", "up"][..],
            &["link", "set", "eth0", "address", &hardware],
            &["address", "add", &address, "dev", "eth0"],
            &["link", "set", "eth0", "up"],
            &["route", "add", "default", "via", &self.subnet.host().to_string()],
        ] {
            within(&namespace, "ip", command)?;
        }
        Ok(())
    }

    /// Takes a machine off: its namespace goes, with all that a machine loses when it is switched off.
    pub(crate) fn detach(&self, machine: &str) -> Result<()> {
        let namespace = self.namespace(machine);
        if namespace.exists() {
            // At once; with its namespace it would go only after a while.
            within(&self.hub(), "ip", &["link", "delete", machine])?;
            nix::mount::umount(&namespace).context("removing a network namespace")?;
            std::fs::remove_file(&namespace)?;
        }
        Ok(())
    }
}

/// A number that nobody has.
fn free_number() -> Result<(UnixListener, Subnet)> {
    let taken = (1..=Subnet::COUNT).find_map(|number| Some((take(number)?, Subnet { number })));
    taken.with_context(|| {
        format!("this host has all {} networks for machines that there may be", Subnet::COUNT)
    })
}

/// Takes a number, if nobody has it.
fn take(number: u8) -> Option<UnixListener> {
    let name = format!("nydus-cluster-{}", Subnet { number }.name());
    let name = SocketAddr::from_abstract_name(name).ok()?;
    UnixListener::bind_addr(&name).ok()
}

/// Removes what killed keepers have left.
fn clear_left() -> Result<()> {
    for number in 1..=Subnet::COUNT {
        // Nobody else begins with this number while we clear it.
        let Some(_taken) = take(number) else { continue };
        let subnet = Subnet { number };
        let cgroups = Cgroups::beginning_with(&format!("{}-", subnet.name()))?;
        cgroups.kill()?;
        cgroups.remove()?;
        remove_link(subnet)?;
    }
    Ok(())
}

fn remove_link(subnet: Subnet) -> Result<()> {
    let interface = subnet.name();
    if Path::new("/sys/class/net").join(&interface).exists() {
        ip(&["link", "delete", &interface])?;
    }
    Ok(())
}

/// Has what comes from the machines end at this host, though it may be one that forwards for others.
fn keep_to_host(interface: &str) -> Result<()> {
    let setting = Path::new("/proc/sys/net/ipv4/conf").join(interface).join("forwarding");
    std::fs::write(&setting, "0").with_context(|| format!("writing {}", setting.display()))
}

/// Makes a network namespace that the file holds.
fn make_namespace(file: &Path) -> Result<()> {
    std::fs::File::create(file).with_context(|| format!("making {}", file.display()))?;
    let mut command = Command::new(peers::system("unshare")?);
    process::run(command.arg(format!("--net={}", file.display())).arg("true"))?;
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::run(Command::new(peers::system("ip")?).args(arguments))?;
    Ok(())
}

/// Runs a program within a network namespace.
fn within(namespace: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(peers::system("nsenter")?);
    command.arg(format!("--net={}", namespace.display())).arg(peers::system(program)?).args(arguments);
    process::run(&mut command)?;
    Ok(())
}
