//! Child processes: servers that are stopped when their guard goes, and commands that must succeed.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, PipeWriter, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::wait;

/// How long a server may take to stop on SIGTERM before it is killed, on a busy machine.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long a command may take: the longest are exports of large images on a loaded machine.
const COMMAND_DEADLINE: Duration = Duration::from_secs(300);
/// How much of a log is shown with a failure.
const LOG_TAIL_BYTES: usize = 12 * 1024;

/// A running server. Dropping it stops the process, and shows the end of its log if a test is failing.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Server {
    /// Starts `command` with both outputs appended to `log`, in a process group of its own so that a Ctrl-C at
    /// the terminal reaches only us.
    pub fn spawn(name: &str, command: Command, log: PathBuf) -> Result<Self> {
        Self::spawn_with_input(name, command, log, Stdio::null())
    }

    fn spawn_with_input(name: &str, mut command: Command, log: PathBuf, input: Stdio) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening the log {}", log.display()))?;
        let child = command
            .stdin(input)
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child: Some(child), log })
    }

    /// Waits until `ready`; fails at once, with the end of the log, if the process ends before.
    pub fn wait_ready(&mut self, deadline: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let name = self.name.clone();
        let outcome = wait::until(&format!("{name} ready"), deadline, || {
            if ready() {
                return Ok(Some(()));
            }
            match self.exited()? {
                Some(status) => bail!("{name} ended before it was ready: {status}"),
                None => Ok(None),
            }
        });
        outcome.with_context(|| format!("end of {}:\n{}", self.log.display(), tail(&self.log)))
    }

    /// The process id.
    pub fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().ok_or_else(|| anyhow!("{} is not running", self.name))?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }

    /// The exit status, if the process has ended by itself.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Everything the process has written so far.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends SIGTERM and waits; kills what does not stop in time. Does nothing if it is already stopped.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// Kills the process at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Leaves the process running beyond this guard; returns its id.
    pub fn release(mut self) -> Result<Pid> {
        let pid = self.pid()?;
        self.forget();
        Ok(pid)
    }

    /// From now on the process is not ours to stop.
    pub fn forget(&mut self) {
        self.child = None;
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        // The child has not been waited for, so its id is still its own.
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        let stopped = wait::until(&format!("{} stopped", self.name), STOP_DEADLINE, || Ok(child.try_wait()?));
        if let Err(error) = stopped {
            child.kill()?;
            child.wait()?;
            return Err(error.context(format!("{} had to be killed", self.name)));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tell(format_args!("stopping {}: {error:#}", self.name));
        }
        if std::thread::panicking() {
            tell(format_args!("--- end of the log of {} ---\n{}", self.name, tail(&self.log)));
        }
    }
}

/// A server's process that is there already, and waits to be let go. Dropping it ends the process.
///
/// A new process has all open files of ours until its program starts, and closes them then. Where one of them is on a mount whose
/// server is gone, that waits for the server, and we wait for the program to start. Who has such files open makes the process of the
/// next server while the mount is still served.
#[derive(Debug)]
pub struct WaitingServer {
    /// What the process reads from: it ends if this is closed first.
    gate: PipeWriter,
    server: Server,
}

impl WaitingServer {
    /// Starts a process that runs `command` when it is let go, else as [`Server::spawn`] does.
    pub fn spawn(name: &str, command: &Command, log: PathBuf) -> Result<Self> {
        let (input, gate) = io::pipe()?;
        let mut waiting = Command::new("sh");
        waiting.args(["-c", r#"read -r line && exec "$@" </dev/null"#, "sh"]);
        waiting.arg(command.get_program()).args(command.get_args());
        let server = Server::spawn_with_input(name, waiting, log, input.into())?;
        Ok(Self { gate, server })
    }

    /// Lets it go.
    pub fn start(self) -> Result<Server> {
        let Self { mut gate, server } = self;
        gate.write_all(b"\n").with_context(|| format!("letting {} go", server.name))?;
        Ok(server)
    }
}

/// Writes a line to standard error if that can be written: what a destructor has to say. `eprintln!` panics where it
/// cannot (a full disk behind it), and a panic in a destructor while a test fails aborts the whole run, without a word
/// of the test's own error.
pub fn tell(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The last part of a log file, for error messages.
pub fn tail(log: &Path) -> String {
    match fs::read(log) {
        Ok(bytes) => {
            String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
        }
        Err(error) => format!("(no log: {error})"),
    }
}

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs a command to its end; an error if it fails, with all it said.
pub fn run(command: &mut Command) -> Result<Output> {
    run_within(command, COMMAND_DEADLINE)
}

/// [`run`] for what may take longer than most.
pub fn run_within(command: &mut Command, deadline: Duration) -> Result<Output> {
    let (status, output) = run_any_within(command, deadline)?;
    if !status.success() {
        bail!("{command:?}: {status}\n{}{}", output.stdout, output.stderr);
    }
    Ok(output)
}

/// Runs a command that must fail; returns what it said.
pub fn run_failing(command: &mut Command) -> Result<Output> {
    let (status, output) = run_any(command)?;
    if status.success() {
        bail!("{command:?} succeeded, but should have failed:\n{}{}", output.stdout, output.stderr);
    }
    Ok(output)
}

/// Runs a command to its end, however that is; returns its status and what it said.
pub fn run_any(command: &mut Command) -> Result<(ExitStatus, Output)> {
    run_any_within(command, COMMAND_DEADLINE)
}

fn run_any_within(command: &mut Command, deadline: Duration) -> Result<(ExitStatus, Output)> {
    // To files, for a command may write more than a pipe holds while we wait for its end.
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("running {command:?}"))?;
    let ended = wait::until("the command ended", deadline, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let output = Output { stdout: text_of(stdout)?, stderr: text_of(stderr)? };
    let status = ended.with_context(|| format!("{command:?}\n{}{}", output.stdout, output.stderr))?;
    Ok((status, output))
}

fn text_of(mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a process with this id exists.
pub fn is_running(pid: Pid) -> bool {
    kill(pid, None).is_ok()
}

/// The processes and all their children.
pub fn families(roots: &[Pid]) -> io::Result<BTreeSet<Pid>> {
    let (mut open, mut seen) = (roots.to_vec(), BTreeSet::new());
    while let Some(pid) = open.pop() {
        if !seen.insert(pid) {
            continue;
        }
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(task?.path().join("children"))?;
            open.extend(
                children.split_whitespace().filter_map(|child| child.parse().ok()).map(Pid::from_raw),
            );
        }
    }
    Ok(seen)
}

/// Memory of a running process in bytes, each page by how many processes share it (`Pss`).
pub fn proportional_memory_bytes(pid: Pid) -> io::Result<u64> {
    Ok(kib_of(pid, "smaps_rollup", "Pss:")? * 1024)
}

/// Peak resident memory of a running process in bytes (`VmHWM`).
pub fn peak_memory_bytes(pid: Pid) -> io::Result<u64> {
    Ok(kib_of(pid, "status", "VmHWM:")? * 1024)
}

/// Has the peak that [`peak_memory_bytes`] tells begin again.
pub fn reset_peak_memory(pid: Pid) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// Processor time that a process has taken so far, in seconds: of all its threads, in user mode and in the kernel.
pub fn processor_seconds(pid: Pid) -> io::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path)?;
    // The name in parentheses may have blanks. Behind it, proc(5) counts from field 3: fields 14 and 15 are wanted.
    let fields = text.rsplit_once(')').map(|(_, fields)| fields.split_whitespace()).into_iter().flatten();
    let ticks: Vec<u64> = fields.skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let second = sysconf(SysconfVar::CLK_TCK)?.filter(|second| *second > 0);
    match (ticks.as_slice(), second) {
        (&[user, system], Some(second)) => Ok((user + system) as f64 / second as f64),
        _ => Err(io::Error::other(format!("no processor time in {path}"))),
    }
}

/// The number after `field` in a file of the process.
fn kib_of(pid: Pid, file: &str, field: &str) -> io::Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path)?;
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .ok_or_else(|| io::Error::other(format!("no {field} in {path}")))
}
