//! Whole machines: a Linux booted by systemd-nspawn with an init, ssh and a network of its own. Several of them on one
//! link are what a cluster is launched on.
//!
//! The program `machines` keeps them. It ends with its guard, or when that is killed, and all that is theirs ends with it:
//! processes, network, cgroups. Their mounts are in a namespace of that program's.

mod machine;
pub mod plan;

use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

pub use machine::Machine;
use plan::{Order, Plan, Subnet};

use crate::peers::{self, Peers};
use crate::{process, wait};

/// How long machines may take to boot on a loaded host.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// How long their end may take.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How machines are to be.
#[derive(Debug, Clone)]
pub struct MachinesOptions {
    /// How many.
    pub count: usize,
    /// What the link between this host and the machines carries, in Mbit/s and each direction.
    pub link_mbit: Option<u32>,
    /// Directories and files of this host that all machines see, read-only: here, and there.
    pub shown: Vec<(PathBuf, PathBuf)>,
}

impl Default for MachinesOptions {
    fn default() -> Self {
        Self { count: 3, link_mbit: Some(1000), shown: Vec::new() }
    }
}

/// Running machines. Dropping it ends them.
#[derive(Debug)]
pub struct Machines {
    dir: PathBuf,
    keeper: Child,
    orders: Arc<Mutex<Option<ChildStdin>>>,
    subnet: Subnet,
    machines: Vec<Machine>,
}

impl Machines {
    /// Fails with what this host lacks for them.
    pub fn require(peers: &Peers) -> Result<()> {
        if !nix::unistd::Uid::effective().is_root() {
            bail!("root");
        }
        for program in ["systemd-nspawn", "ip", "tc", "nsenter", "ssh-keygen", "setpriv"] {
            peers::system(program)?;
        }
        peers.node_root()?;
        peers::of_integration("machines")?;
        Ok(())
    }

    /// Boots machines with all of their files under `dir`, and waits until their services are up.
    pub fn boot(peers: &Peers, dir: &Path, options: &MachinesOptions) -> Result<Self> {
        fs::create_dir_all(dir)?;
        // Mounts are found by their paths.
        let dir = fs::canonicalize(dir)?;
        let plan = Plan {
            root: peers.node_root()?,
            count: options.count,
            link_mbit: options.link_mbit,
            shown: options.shown.clone(),
            key: Some(make_key(&dir)?),
        };
        fs::write(Plan::file(&dir), serde_json::to_vec_pretty(&plan)?)?;
        let log = log(&dir);
        let output = File::options().create(true).append(true).open(&log)?;
        let mut keeper = Command::new(peers::of_integration("machines")?)
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            // An interrupt at the terminal reaches the guard, which ends the machines.
            .process_group(0)
            .spawn()
            .context("starting the keeper of the machines")?;
        let orders = Arc::new(Mutex::new(keeper.stdin.take()));
        let mut machines = Self { dir, keeper, orders, subnet: Subnet { number: 0 }, machines: Vec::new() };
        machines.wait_booted(&plan).with_context(|| process::tail(&log))?;
        Ok(machines)
    }

    fn wait_booted(&mut self, plan: &Plan) -> Result<()> {
        let machine = |index: usize, name: String, subnet: Subnet| {
            Machine::new(&self.dir, name, subnet.machine(index), self.orders.clone())
        };
        let file = Subnet::file(&self.dir);
        (self.subnet, self.machines) = wait::until("the machines are on", BOOT_DEADLINE, || {
            if let Some(status) = self.keeper.try_wait()? {
                bail!("the keeper of the machines ended: {status}");
            }
            let Ok(text) = fs::read(&file) else { return Ok(None) };
            let subnet = serde_json::from_slice(&text).context("reading the machines' network")?;
            let machines = plan.names().enumerate().map(|(index, name)| machine(index, name, subnet));
            let machines: Vec<_> = machines.collect();
            Ok(machines.iter().all(|machine| machine.running().is_some()).then_some((subnet, machines)))
        })?;
        self.machines.iter().try_for_each(|machine| machine.wait_booted(1))
    }

    /// All of them.
    pub fn all(&self) -> &[Machine] {
        &self.machines
    }

    /// The address of this host on the machines' network.
    pub fn host(&self) -> Ipv4Addr {
        self.subnet.host()
    }

    /// The private key with which root may log in to all of them by ssh.
    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// The name that their interface on this host has, and with which their cgroups' names begin.
    pub fn name(&self) -> String {
        self.subnet.name()
    }

    /// The process that keeps them.
    pub fn keeper(&self) -> u32 {
        self.keeper.id()
    }

    /// Leaves them running until the keeper gets a signal.
    pub fn release(self) -> Result<()> {
        give(&self.orders, &Order::Keep)?;
        // Not dropped, which would end the keeper.
        std::mem::forget(self);
        Ok(())
    }

    /// Ends them, and says what went wrong on the way.
    pub fn end(&mut self) -> Result<()> {
        drop(self.orders.lock().map_err(|_| anyhow!("a thread panicked"))?.take());
        let keeper = &mut self.keeper;
        let ended = wait::until("the keeper of the machines ended", STOP_DEADLINE, || Ok(keeper.try_wait()?));
        if ended.is_err() {
            keeper.kill()?;
            keeper.wait()?;
        }
        let status = ended.with_context(|| process::tail(&log(&self.dir)))?;
        if !status.success() {
            bail!("the keeper of the machines: {status}\n{}", process::tail(&log(&self.dir)));
        }
        Ok(())
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for machine in &self.machines {
                let console = process::tail(&machine.console());
                process::tell(format_args!("--- console of {} ---\n{console}", machine.name()));
            }
        }
        if let Err(error) = self.end() {
            process::tell(format_args!("ending the machines in {}: {error:#}", self.dir.display()));
        }
    }
}

/// Where the keeper writes what it does.
fn log(dir: &Path) -> PathBuf {
    dir.join("machines.log")
}

/// Makes a key for ssh; returns its public half.
fn make_key(dir: &Path) -> Result<String> {
    let file = dir.join("key");
    if !file.exists() {
        let mut command = Command::new(peers::system("ssh-keygen")?);
        process::run(command.args(["-q", "-t", "ed25519", "-N", "", "-C", "machines", "-f"]).arg(&file))?;
    }
    let public = file.with_extension("pub");
    fs::read_to_string(&public).with_context(|| format!("reading {}", public.display()))
}

/// Tells the keeper something.
fn give(orders: &Mutex<Option<ChildStdin>>, order: &Order) -> Result<()> {
    let mut orders = orders.lock().map_err(|_| anyhow!("a thread panicked"))?;
    let keeper = orders.as_mut().ok_or_else(|| anyhow!("the machines have ended"))?;
    writeln!(keeper, "{order}").context("telling the keeper of the machines")
}
