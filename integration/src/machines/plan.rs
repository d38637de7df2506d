//! What the guard and the process that keeps the machines agree on: names, addresses, files.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What machines are made of. A file, for the process that keeps them reads it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The root file system of all machines, which is only read.
    pub root: PathBuf,
    /// How many.
    pub count: usize,
    /// What the link between this host and the machines carries, in Mbit/s and each direction.
    pub link_mbit: Option<u32>,
    /// Directories and files of this host that all machines see, read-only: here, and there.
    pub shown: Vec<(PathBuf, PathBuf)>,
    /// The public key that may log in as root by ssh.
    pub key: Option<String>,
}

impl Plan {
    /// Where it is kept.
    pub fn file(dir: &Path) -> PathBuf {
        dir.join("plan.json")
    }

    /// The machines' names.
    pub fn names(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.count).map(name)
    }
}

/// The name of a machine.
pub fn name(index: usize) -> String {
    format!("n{}", index + 1)
}

/// The network that the machines and this host share, which is the only one on this host with its number.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Subnet {
    /// Its number.
    pub number: u8,
}

impl Subnet {
    /// How many there may be at once on a host.
    pub const COUNT: u8 = 200;
    /// Bits of the network's part of an address.
    pub const PREFIX: u8 = 24;

    /// Where it is said once the network is there.
    pub fn file(dir: &Path) -> PathBuf {
        dir.join("subnet.json")
    }

    /// This host's own address.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.number, 1)
    }

    /// A machine's address.
    pub fn machine(self, index: usize) -> Ipv4Addr {
        let last = u8::try_from(index + 11).expect("there are not so many machines");
        Ipv4Addr::new(10, 213, self.number, last)
    }

    /// The name that everything of these machines has on this host: its interface, and a part of its cgroups' names.
    pub fn name(self) -> String {
        format!("machines{}", self.number)
    }
}

/// A machine that is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its process 1, as this host sees it.
    pub init: i32,
    /// Counts its boots, from 1.
    pub boot: u32,
}

impl Running {
    /// Where it is said; absent while the machine is off.
    pub fn file(dir: &Path, name: &str) -> PathBuf {
        dir.join(name).join("running.json")
    }
}

/// What the machines' keeper is told, a line each on its standard input. At its end all machines end, unless they are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Switch a machine on.
    On(String),
    /// Cut its power.
    Off(String),
    /// Go on until a signal.
    Keep,
}

impl Order {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["on", name] => Some(Self::On(name.to_owned())),
            ["off", name] => Some(Self::Off(name.to_owned())),
            ["keep"] => Some(Self::Keep),
            _ => None,
        }
    }
}

impl std::fmt::Display for Order {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::On(name) => write!(out, "on {name}"),
            Self::Off(name) => write!(out, "off {name}"),
            Self::Keep => out.write_str("keep"),
        }
    }
}
