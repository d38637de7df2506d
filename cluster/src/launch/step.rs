//! One step on one node: what it says is shown as it comes, kept in a file, and its last lines are in the error.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Child;

use super::error::LaunchError;
use super::package::PackageSource;
use super::place::{Place, Ssh, quoted};
use super::task::Task;

/// Where our program goes on a node.
const PROGRAM: &str = "/var/lib/nydus-cluster/bin/nydus-cluster";
/// Where packages go.
const PACKAGES: &str = "/var/lib/nydus-cluster/packages";
/// A package comes at least so fast: 8 Mbit/s.
const PACKAGE_BYTES_PER_SECOND: u64 = 1_000_000;
/// How many of the last lines are in an error.
const LAST_LINES: usize = 12;
/// The most that a node answers.
const ANSWER_LIMIT_BYTES: u64 = 4 << 20;
/// A line longer than this is cut.
const LINE_LIMIT_BYTES: u64 = 64 << 10;
/// How long what was said may take to come, once the program that said it has ended.
const OUTPUT_GRACE: Duration = Duration::from_secs(3);

/// Who is told what nodes say: the node's name, and a line.
pub type Say<'a> = &'a (dyn Fn(&str, &str) + Sync);

/// A node, and the way to it.
pub(super) struct Node<'a> {
    pub(super) place: Place,
    pub(super) ssh: &'a Ssh,
    pub(super) logs: &'a Path,
    pub(super) say: Say<'a>,
}

impl Node<'_> {
    /// Brings our program, if the node does not have this very one.
    pub(super) async fn bring_program(&self, program: &Path, digest: &str) -> Result<(), LaunchError> {
        let step = "bringing nydus-cluster";
        let check = format!("sha256sum {PROGRAM} 2>/dev/null || true");
        let there = self.run(step, &check, Input::Nothing, Duration::from_secs(60)).await?;
        if there.starts_with(digest) {
            return Ok(());
        }
        (self.say)(&self.place.name(), step);
        let bring = format!(
            "set -e; mkdir -p \"$(dirname {PROGRAM})\"; cat >{PROGRAM}.new; chmod 755 {PROGRAM}.new; mv {PROGRAM}.new {PROGRAM}"
        );
        self.run(step, &bring, Input::File(program), Duration::from_secs(600)).await.map(drop)
    }

    /// Brings a package as a file, unless the node has it; returns where it is.
    pub(super) async fn bring_package(&self, package: &PackageSource) -> Result<PathBuf, LaunchError> {
        let step = "bringing the package";
        let file = format!("{PACKAGES}/{}.tar", package.id);
        let check = format!("test ! -e {file} || echo there");
        if !self.run(step, &check, Input::Nothing, Duration::from_secs(60)).await?.is_empty() {
            return Ok(file.into());
        }
        let bytes = package.bytes().await?;
        (self.say)(&self.place.name(), &format!("{step}: {} MB", bytes / 1_000_000));
        // What is cut off on the way ends like what is whole.
        let bring = format!(
            "set -e; mkdir -p {PACKAGES}; cat >{file}.new; size=$(stat -c %s {file}.new); \
             [ \"$size\" = {bytes} ] || {{ echo \"$size bytes of {bytes} came\" >&2; exit 1; }}; mv {file}.new {file}"
        );
        let deadline = Duration::from_secs(600 + bytes / PACKAGE_BYTES_PER_SECOND);
        self.run(step, &bring, Input::Package(package), deadline).await?;
        Ok(file.into())
    }

    /// Has a task done, and returns what came of it.
    pub(super) async fn work(
        &self,
        step: &'static str,
        task: &Task,
        deadline: Duration,
    ) -> Result<Value, LaunchError> {
        let line =
            serde_json::to_string(task).map_err(|error| LaunchError::wrong(step, error.to_string()))?;
        let script = format!("exec {} cluster node", quoted(PROGRAM));
        let answer = self.run(step, &script, Input::Line(line), deadline).await?;
        // The shell of whoever logs in may have written before it.
        let last = answer.lines().last().unwrap_or("null");
        serde_json::from_str(last).map_err(|error| self.failed(step, error.to_string(), Vec::new()))
    }

    /// Whether the node has our program.
    pub(super) async fn has_program(&self) -> Result<bool, LaunchError> {
        let check = format!("test ! -x {PROGRAM} || echo there");
        let said = self.run("looking", &check, Input::Nothing, Duration::from_secs(60)).await?;
        Ok(!said.is_empty())
    }

    /// Removes our program, and packages.
    pub(super) async fn remove_program(&self) -> Result<(), LaunchError> {
        let script =
            format!("rm -rf {PROGRAM} {PACKAGES}; rmdir \"$(dirname {PROGRAM})\" 2>/dev/null || true");
        self.run("removing", &script, Input::Nothing, Duration::from_secs(60)).await.map(drop)
    }

    fn failed(&self, step: &'static str, reason: String, last: Vec<String>) -> LaunchError {
        LaunchError::Step { node: self.place.name(), step, reason, last }
    }

    async fn run(
        &self,
        step: &'static str,
        script: &str,
        input: Input<'_>,
        deadline: Duration,
    ) -> Result<String, LaunchError> {
        let mut last = VecDeque::new();
        let run = self.run_on(script, input, &mut last);
        let reason = match tokio::time::timeout(deadline, run).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(reason)) => reason,
            Err(_) => format!("did not end within {} seconds", deadline.as_secs()),
        };
        Err(self.failed(step, reason, last.into()))
    }

    async fn run_on(
        &self,
        script: &str,
        input: Input<'_>,
        last: &mut VecDeque<String>,
    ) -> Result<String, String> {
        let mut command = self.ssh.command(&self.place, script);
        match &input {
            Input::File(path) => {
                let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
                command.stdin(file);
            }
            Input::Package(package) => {
                _ = command.stdin(package.stream().map_err(|error| error.to_string())?)
            }
            Input::Line(_) => _ = command.stdin(std::process::Stdio::piped()),
            Input::Nothing => _ = command.stdin(std::process::Stdio::null()),
        }
        let text = |error: std::io::Error| error.to_string();
        let mut child = command.spawn().map_err(|error| format!("ssh: {error}"))?;
        // Open until the end, which tells the node that we are still there.
        let mut stdin = child.stdin.take();
        if let (Some(stdin), Input::Line(line)) = (&mut stdin, &input) {
            stdin.write_all(format!("{line}\n").as_bytes()).await.map_err(text)?;
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut answer = Vec::new();
        let reading = async {
            let answer = async {
                let Some(stdout) = stdout else { return Ok(()) };
                let mut stdout = stdout.take(ANSWER_LIMIT_BYTES);
                while stdout.read_buf(&mut answer).await? > 0 {}
                Ok(())
            };
            let lines = async {
                match stderr {
                    Some(stderr) => self.follow(stderr, last).await,
                    None => Ok(()),
                }
            };
            tokio::join!(answer, lines)
        };
        let (status, read) = to_end(&mut child, reading).await.map_err(text)?;
        drop(stdin);
        let (answered, lines) = read.unwrap_or((Ok(()), Ok(())));
        lines.map_err(text)?;
        if !status.success() {
            return Err(status.to_string());
        }
        answered.map_err(text)?;
        String::from_utf8(answer).map_err(|error| error.to_string())
    }

    /// Shows and keeps what comes, line by line.
    async fn follow(&self, from: impl AsyncRead + Unpin, last: &mut VecDeque<String>) -> std::io::Result<()> {
        let mut log = File::options().create(true).append(true).open(self.log())?;
        let mut from = BufReader::new(from);
        loop {
            let mut line = Vec::new();
            if (&mut from).take(LINE_LIMIT_BYTES).read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            writeln!(log, "{line}")?;
            (self.say)(&self.place.name(), &line);
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(line);
        }
    }

    fn log(&self) -> PathBuf {
        self.logs.join(format!("{}.log", log_name(&self.place.name())))
    }
}

/// Waits until `child` has ended and all is read that it said; not for long, if somebody else has its output open still, such as an ssh
/// that stays for those that follow, or what was started in the background.
async fn to_end<T>(
    child: &mut Child,
    reading: impl Future<Output = T>,
) -> std::io::Result<(ExitStatus, Option<T>)> {
    let mut reading = pin!(reading);
    tokio::select! {
        read = &mut reading => Ok((child.wait().await?, Some(read))),
        status = child.wait() => Ok((status?, tokio::time::timeout(OUTPUT_GRACE, reading).await.ok())),
    }
}

/// What the file is called, without `.log`, that keeps what a node of this name said.
pub fn log_name(node: &str) -> String {
    node.replace(['/', ' '], "_")
}

/// What a command reads.
enum Input<'a> {
    Nothing,
    /// A line, and no end before its own.
    Line(String),
    File(&'a Path),
    Package(&'a PackageSource),
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::launch::place::SshOptions;

    #[tokio::test]
    async fn a_step_ends_with_its_program_whoever_has_its_output_open() {
        let dir = tempfile::tempdir().unwrap();
        let ssh = Ssh::new(&SshOptions::default(), dir.path()).unwrap();
        let said = Mutex::new(Vec::new());
        let say = |_: &str, line: &str| said.lock().unwrap().push(line.to_owned());
        let node = Node { place: Place::Here, ssh: &ssh, logs: dir.path(), say: &say };
        let left = dir.path().join("left");
        let script = format!("sleep 300 & echo $! >{}; echo word >&2; echo answer", left.display());
        let answer = node.run("waiting", &script, Input::Nothing, Duration::from_secs(60)).await;
        let failing = format!("{script}; exit 3");
        let pid = std::fs::read_to_string(&left).unwrap();
        let failed = node.run("waiting", &failing, Input::Nothing, Duration::from_secs(60)).await;
        for pid in [pid, std::fs::read_to_string(&left).unwrap()] {
            let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        assert_eq!(answer.unwrap(), "answer\n");
        let failed = failed.unwrap_err().to_string();
        assert!(failed.contains("exit status: 3; its last lines:\n  word"), "{failed}");
        assert_eq!(said.into_inner().unwrap(), ["word", "word"]);
    }
}
