//! A machine's cgroups: one of its own in every hierarchy, `systemd` and `unified` too. Machines that share one would take
//! each other's pods for their own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use integration::wait;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long killed processes may take to go.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// One cgroup in each hierarchy, all with the same name.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    directories: Vec<PathBuf>,
}

impl Cgroups {
    /// Those with this name; they need not be there.
    pub(crate) fn named(name: &str) -> Result<Self> {
        Ok(Self { directories: hierarchies()?.into_iter().map(|mount| mount.join(name)).collect() })
    }

    /// All that are there and whose name begins with `prefix`.
    pub(crate) fn beginning_with(prefix: &str) -> Result<Self> {
        let mut directories = Vec::new();
        for mount in hierarchies()? {
            for entry in fs::read_dir(&mount)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    directories.push(entry.path());
                }
            }
        }
        Ok(Self { directories })
    }

    /// Makes them.
    pub(crate) fn make(&self) -> Result<()> {
        for directory in &self.directories {
            match fs::create_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.with_context(|| format!("making {}", directory.display()))?,
            }
            let parent = directory.parent().unwrap_or(directory);
            // Without them no process may enter.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(parent.join(file)) {
                    fs::write(directory.join(file), value)
                        .with_context(|| format!("writing {}/{file}", directory.display()))?;
                }
            }
        }
        Ok(())
    }

    /// The files into which a process writes its id to enter.
    pub(crate) fn entries(&self) -> impl Iterator<Item = PathBuf> {
        self.directories.iter().map(|directory| directory.join("cgroup.procs"))
    }

    /// Kills all that is in them, and waits for its end.
    pub(crate) fn kill(&self) -> Result<()> {
        wait::until("the machine's processes ended", END_DEADLINE, || {
            let processes = self.processes();
            for &process in &processes {
                match kill(process, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error).with_context(|| format!("killing {process}")),
                }
            }
            Ok(processes.is_empty().then_some(()))
        })
    }

    fn processes(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        for directory in self.directories.iter().flat_map(|directory| tree(directory)) {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            let ids = text.lines().filter_map(|line| line.parse().ok());
            // 0 is a process that we cannot see, and would be ourselves.
            found.extend(ids.filter(|&id: &i32| id > 1).map(Pid::from_raw));
        }
        found
    }

    /// Removes them with all below them. There must be no process in them.
    pub(crate) fn remove(&self) -> Result<()> {
        for directory in self.directories.iter().flat_map(|directory| tree(directory)) {
            // A cgroup is busy for a moment after its last process has gone.
            wait::until("a cgroup was removed", END_DEADLINE, || match fs::remove_dir(&directory) {
                Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(None),
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(Some(())),
            })
            .with_context(|| format!("removing {}", directory.display()))?;
        }
        Ok(())
    }
}

/// A directory and all below it, the innermost first.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            found.extend(tree(&entry.path()));
        }
    }
    found.push(directory.to_owned());
    found
}

/// Where cgroup hierarchies are mounted, of either version.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_cgroups = fields.filter(|fields| matches!(fields[..], [_, _, "cgroup" | "cgroup2", ..]));
    Ok(of_cgroups.map(|fields| PathBuf::from(fields[1])).collect())
}
