//! One machine.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::plan::{Order, Running};
use super::{BOOT_DEADLINE, give};
use crate::process::{self, Output};
use crate::{peers, wait};

/// A machine: on, or off.
#[derive(Debug)]
pub struct Machine {
    dir: PathBuf,
    name: String,
    address: Ipv4Addr,
    orders: Arc<Mutex<Option<ChildStdin>>>,
}

impl Machine {
    pub(super) fn new(
        dir: &Path,
        name: String,
        address: Ipv4Addr,
        orders: Arc<Mutex<Option<ChildStdin>>>,
    ) -> Self {
        Self { dir: dir.to_owned(), name, address, orders }
    }

    /// Its name, which is its host name too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the network that it shares with the others and with this host.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// What it has written to its console, over all boots.
    pub fn console(&self) -> PathBuf {
        self.dir.join(&self.name).join("console.log")
    }

    /// Its process 1 and the number of its boot, if it is on.
    pub fn running(&self) -> Option<Running> {
        let text = fs::read(Running::file(&self.dir, &self.name)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Where this host sees a file of the running machine.
    pub fn path(&self, path: &str) -> Result<PathBuf> {
        let root = format!("/proc/{}/root", self.on()?.init);
        Ok(Path::new(&root).join(path.trim_start_matches('/')))
    }

    /// Writes a file of the running machine, with the directories above it.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let file = self.path(path)?;
        fs::create_dir_all(file.parent().unwrap_or(&file))?;
        fs::write(&file, content).with_context(|| format!("writing {path} on {}", self.name))
    }

    /// A program that is run in the machine, as root; arguments are to be added.
    pub fn command(&self, program: &str) -> Result<Command> {
        let init = self.on()?.init.to_string();
        let mut command = Command::new(peers::system("nsenter")?);
        command.args(["--target", &init, "--all", "--root", "--wd", "--", program]);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        Ok(command)
    }

    /// Runs a shell's commands in the machine; an error with all that they said if they fail.
    pub fn run(&self, script: &str) -> Result<Output> {
        let mut command = self.command("/bin/sh")?;
        process::run(command.args(["-ec", script])).with_context(|| format!("on {}", self.name))
    }

    /// Waits until a shell's commands succeed in the machine.
    pub fn wait_for(&self, what: &str, deadline: Duration, script: &str) -> Result<()> {
        let mut last = None;
        let waited = wait::until_true(what, deadline, || match self.run(script) {
            Ok(_) => true,
            Err(error) => {
                last = Some(error);
                false
            }
        });
        waited.map_err(|error| match last {
            Some(last) => error.context(format!("{last:#}")),
            None => error,
        })
    }

    /// Waits until its services are up, in its boot with this number or a later one.
    pub fn wait_booted(&self, boot: u32) -> Result<()> {
        let what = format!("{} is up in boot {boot}", self.name);
        let up = wait::until_true(&what, BOOT_DEADLINE, || {
            self.running().is_some_and(|running| running.boot >= boot)
                && self.run("systemctl is-active --quiet multi-user.target").is_ok()
        });
        up.with_context(|| process::tail(&self.console()))
    }

    /// Reboots it in an orderly way, and waits until it is up again.
    pub fn reboot(&self) -> Result<()> {
        let boot = self.on()?.boot;
        self.run("systemctl reboot")?;
        self.wait_booted(boot + 1)
    }

    /// Cuts its power, and waits until it is off.
    pub fn power_off(&self) -> Result<()> {
        give(&self.orders, &Order::Off(self.name.clone()))?;
        let what = format!("{} is off", self.name);
        wait::until_true(&what, BOOT_DEADLINE, || self.running().is_none())
    }

    /// Switches it on. It is up only later: see [`Self::wait_booted`].
    pub fn power_on(&self) -> Result<()> {
        give(&self.orders, &Order::On(self.name.clone()))
    }

    fn on(&self) -> Result<Running> {
        self.running().ok_or_else(|| anyhow!("{} is off", self.name))
    }
}
