//! What servers leave behind under a directory: processes that outlive them on purpose, and mounts.
//!
//! Both are found by the directory, which nothing else uses: a process by its arguments, a mount by its place.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{process, wait};

/// How long a process may take to end on SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// A running process.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its id.
    pub pid: Pid,
    /// Its command line.
    pub arguments: Vec<OsString>,
}

/// Processes with a path under `dir` among their arguments, other than this one.
pub fn processes(dir: &Path) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process may end while we look.
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let words = line.split(|&byte| byte == 0).filter(|word| !word.is_empty());
        let arguments: Vec<OsString> = words.map(|word| OsString::from_vec(word.to_vec())).collect();
        if pid != Pid::this().as_raw() && arguments.iter().skip(1).any(|word| names_path_under(word, dir)) {
            found.push(Process { pid: Pid::from_raw(pid), arguments });
        }
    }
    Ok(found)
}

/// Whether an argument (`PATH`, `--flag=PATH`, `unix://PATH`) is a path in `dir`.
fn names_path_under(word: &OsString, dir: &Path) -> bool {
    let word = word.as_bytes();
    let start = word.iter().position(|&byte| byte == b'/').unwrap_or(word.len());
    let path = &word[start..];
    let path = path.strip_prefix(b"//").unwrap_or(path);
    Path::new(std::ffi::OsStr::from_bytes(path)).starts_with(dir)
}

/// Mount points under `dir`, innermost first.
pub fn mounts(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo").context("reading the table of mounts")?;
    let points =
        table.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    let paths = points.map(|point| PathBuf::from(OsString::from_vec(point.to_vec())));
    let mut found: Vec<PathBuf> = paths.filter(|path| path.starts_with(dir)).collect();
    // Later mounts lie on earlier ones.
    found.reverse();
    Ok(found)
}

/// Who uses something below `dir`, and what: that keeps a mount there from being unmounted. As much as can be looked at.
pub fn users(dir: &Path) -> Vec<String> {
    let entries =
        |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = Vec::new();
    for process in entries("/proc".into()) {
        let fixed = ["cwd", "root", "exe"].map(|name| process.join(name));
        let open = ["fd", "map_files"].into_iter().flat_map(|name| entries(process.join(name)));
        let targets = fixed.into_iter().chain(open).filter_map(|link| fs::read_link(link).ok());
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let used = targets.filter(|target| target.starts_with(dir));
        found.extend(
            used.map(|used| format!("{} {}: {}", process.display(), name.trim_end(), used.display())),
        );
    }
    found
}

/// Ends all processes and mounts that belong to `dir`.
pub fn clear(dir: &Path) -> Result<()> {
    for process in processes(dir)? {
        end(process.pid)?;
    }
    for mount in mounts(dir)? {
        match umount2(&mount, MntFlags::MNT_DETACH) {
            // Gone with the one it lay on.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("unmounting {}", mount.display())),
        }
    }
    Ok(())
}

/// Ends one process: SIGTERM, and SIGKILL if it does not stop in time.
pub fn end(pid: Pid) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        match kill(pid, signal) {
            Err(Errno::ESRCH) => return Ok(()),
            other => other.with_context(|| format!("ending process {pid}"))?,
        }
        if wait::until_true("the process ended", STOP_DEADLINE, || has_ended(pid)).is_ok() {
            return Ok(());
        }
    }
    anyhow::bail!("process {pid} does not end, not even killed")
}

/// Whether a process is gone, or is a zombie that its parent has not collected.
pub fn has_ended(pid: Pid) -> bool {
    if !process::is_running(pid) {
        return true;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may itself contain some.
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}
