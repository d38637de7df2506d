//! Running a program that is not trusted, to its end or its deadline.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::HelmError;
use crate::sys::{Confinement, Program, confine};

/// The user and group that helm runs as where we are root. No account has this number, and it is within the 65,536 that a
/// user namespace usually has.
pub(super) const USER: u32 = 64_911;

/// The most that is taken of what it prints. Charts render to some megabytes at most.
const OUTPUT_LIMIT_BYTES: usize = 64 << 20;

/// The most that is kept of its complaints.
const ERRORS_LIMIT_BYTES: usize = 64 << 10;

/// What it may have for data: several times what the largest known charts take.
const MEMORY_BYTES: u64 = 2 << 30;

/// How Go's runtime collects garbage in a program that lives for a tenth of a second: once the heap is nine times what is in use,
/// not twice that, and sooner where that would be more than half a gigabyte. By its own rule it takes a fifth of the processor time
/// that a chart of 80 templates needs. That one has 55 MB then instead of 50, and one of 3,000 templates 210 MB instead of 95.
const GARBAGE: [(&str, &str); 2] = [("GOGC", "800"), ("GOMEMLIMIT", "512MiB")];

/// Runs `program` with `words` in the directory `stage`, whose `home` is its home, and returns what it prints.
pub(super) async fn run(
    program: &Path,
    words: &[OsString],
    stage: &Path,
    deadline: Duration,
) -> Result<String, HelmError> {
    let mut environment = vec![("HOME", stage.join("home")), ("HELM_PLUGINS", stage.join("home/plugins"))];
    environment.extend(GARBAGE.map(|(name, value)| (name, value.into())));
    let mut command = Command::new(program);
    command.args(words).env_clear().envs(environment.clone()).current_dir(stage);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let confinement = Confinement {
        user: USER,
        memory_bytes: MEMORY_BYTES,
        file_bytes: OUTPUT_LIMIT_BYTES as u64,
        // On several processors it goes by faster than time.
        cpu_seconds: deadline.as_secs().saturating_mul(4).max(1),
    };
    let by_descriptor = by_descriptor(program, words, &environment).map_err(HelmError::io)?;
    confine(&mut command, confinement, by_descriptor);
    let mut child = tokio::process::Command::from(command).spawn().map_err(HelmError::io)?;
    // Whatever happens from here on, also when nobody waits any more, all that it started ends.
    let group = Group::of(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async {
        let (output, errors) =
            tokio::join!(take(stdout, OUTPUT_LIMIT_BYTES), take(stderr, ERRORS_LIMIT_BYTES));
        let (output, errors) = (output?, errors?);
        if output.len() > OUTPUT_LIMIT_BYTES {
            return Ok((None, errors, None));
        }
        io::Result::Ok((Some(output), errors, Some(child.wait().await?)))
    };
    let ended = tokio::time::timeout(deadline, ended).await;
    drop(group);
    let (output, errors, status) =
        ended.map_err(|_| HelmError::Deadline(deadline))?.map_err(HelmError::io)?;
    let (Some(output), Some(status)) = (output, status) else {
        return Err(HelmError::TooLarge(OUTPUT_LIMIT_BYTES));
    };
    if !status.success() {
        let errors = String::from_utf8_lossy(&errors);
        let said =
            errors.lines().filter(|line| !line.trim().is_empty() && !line.contains("Use --debug flag"));
        let said: Vec<&str> = said.collect();
        let said = if said.is_empty() { format!("helm ended with {status}") } else { said.join("; ") };
        return Err(HelmError::Failed(said.trim_start_matches("Error: ").to_owned()));
    }
    String::from_utf8(output).map_err(|error| HelmError::Failed(format!("the rendering is no text: {error}")))
}

/// The program as a descriptor, unless it is a script, whose interpreter needs a path.
fn by_descriptor(
    program: &Path,
    words: &[OsString],
    environment: &[(&str, std::path::PathBuf)],
) -> io::Result<Option<Program>> {
    let mut file = File::open(program)?;
    let mut magic = [0; 2];
    if file.read_exact(&mut magic).is_ok() && &magic == b"#!" {
        return Ok(None);
    }
    let c = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::other);
    let words = [program.as_os_str()].into_iter().chain(words.iter().map(OsString::as_os_str));
    let pair = |(name, value): &(&str, std::path::PathBuf)| {
        let mut pair = OsString::from(name);
        pair.push("=");
        pair.push(value);
        c(&pair)
    };
    let environment = environment.iter().map(pair).collect::<io::Result<_>>()?;
    Ok(Some(Program { file, words: words.map(c).collect::<io::Result<_>>()?, environment }))
}

/// Up to a byte more than `limit` of what comes; the rest is left.
async fn take(from: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(from) = from {
        from.take(limit as u64 + 1).read_to_end(&mut all).await?;
    }
    Ok(all)
}

/// A process group that is killed when this goes.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It is gone already, as a rule.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}
