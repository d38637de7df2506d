//! Running one command for its time and memory.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a running command is looked at: its time is known to this much, its memory up to this long before its end.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// The longest command is the build of a 10 GB image on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(600);

/// What a command took, and what it said.
pub(crate) struct Ran {
    pub(crate) seconds: f64,
    /// Peak resident memory in MB (10^6 bytes).
    pub(crate) peak_memory_mb: f64,
    pub(crate) stdout: String,
}

/// Runs a command to its end; an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<Ran> {
    observe(command.stdin(Stdio::null()), |_| Ok(()))
}

/// Runs a command whose standard input is what `feed` writes.
pub(crate) fn run_fed(
    command: &mut Command,
    feed: impl FnOnce(&mut dyn Write) -> Result<()> + Send,
) -> Result<Ran> {
    observe(command.stdin(Stdio::piped()), feed)
}

fn observe(command: &mut Command, feed: impl FnOnce(&mut dyn Write) -> Result<()> + Send) -> Result<Ran> {
    // To files, for a command may write more than a pipe holds while we wait for its end.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    // What earlier runs wrote is not to be waited for in this one.
    nix::unistd::sync();
    let start = Instant::now();
    let mut child = command
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("running {command:?}"))?;
    let input = child.stdin.take();
    let ended = thread::scope(|scope| {
        let feeding = input.map(|mut input| scope.spawn(move || feed(&mut input)));
        let ended = wait(&mut child, start);
        if ended.is_err() {
            // Best effort: the error is reported, and a feeder sees its pipe break.
            let _ = child.kill();
            let _ = child.wait();
        }
        let fed =
            feeding.map(|feeding| feeding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        ended.and_then(|ended| fed.unwrap_or(Ok(())).map(|()| ended))
    });
    let (stdout, stderr) = (text(&mut stdout)?, text(&mut stderr)?);
    let (succeeded, seconds, peak_memory_mb) =
        ended.with_context(|| format!("{command:?}\n{stdout}{stderr}"))?;
    if !succeeded {
        bail!("{command:?} failed\n{stdout}{stderr}");
    }
    Ok(Ran { seconds, peak_memory_mb, stdout })
}

/// Whether it succeeded, after how many seconds, and its peak memory in MB.
fn wait(child: &mut Child, start: Instant) -> Result<(bool, f64, f64)> {
    let status_file = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0_u64;
    loop {
        // The figure only grows, and is gone when the process is.
        if let Some(kib) = fs::read_to_string(&status_file).ok().as_deref().and_then(peak_memory_kib) {
            peak_kib = kib;
        }
        if let Some(status) = child.try_wait()? {
            return Ok((status.success(), start.elapsed().as_secs_f64(), peak_kib as f64 * 1024.0 / 1e6));
        }
        if start.elapsed() > DEADLINE {
            bail!("not at its end within {DEADLINE:?}");
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

fn peak_memory_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Removes an output of an earlier run: nydus-image does not cut what it writes over.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
