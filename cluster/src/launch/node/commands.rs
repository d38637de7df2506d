//! Programs that a node runs for a task. What they say goes to our standard error, line by line, to whoever waits: our standard
//! output is for what comes of the task. Both are ours alone, so that nobody waits for what a program leaves in the background.
//!
//! Each leads a process group of its own, so that it ends together with what it has started where it is late.

use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::output::ProgramOutput;
use crate::launch::error::LaunchError;

/// How long a program may take that only changes this node.
pub(super) const SHORT: Duration = Duration::from_secs(90);
/// How long kubeadm may take: most of it is images that come.
pub(super) const LONG: Duration = Duration::from_secs(900);
/// How long one may take to end that is told to: helm then says in the cluster that it failed, and can begin again.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Says what a task does to whoever waits for it, if anybody still does.
pub(super) fn progress(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Runs `command` to its end, whatever it has started goes on.
///
/// # Errors
///
/// When it cannot be run, fails, or does not end within `deadline`.
pub(super) fn run(command: &mut Command, deadline: Duration) -> Result<(), LaunchError> {
    let shown = shown(command);
    let (output, writer) = ProgramOutput::shown().map_err(|error| failed(&shown, error))?;
    let second = writer.try_clone().map_err(|error| failed(&shown, error))?;
    let ended = to_end(command.stdout(second).stderr(writer), &shown, deadline);
    let passed = output.end().map_err(|error| failed(&shown, error));
    ended.and(passed.map(drop))
}

/// Runs `command` and returns what it says.
pub(super) fn say(command: &mut Command) -> Result<String, LaunchError> {
    let shown = shown(command);
    let (output, writer) = ProgramOutput::shown().map_err(|error| failed(&shown, error))?;
    let (answer, answer_writer) = ProgramOutput::kept().map_err(|error| failed(&shown, error))?;
    let ended = to_end(command.stdout(answer_writer).stderr(writer), &shown, SHORT);
    let passed = output.end().and_then(|_| answer.end()).map_err(|error| failed(&shown, error));
    let answer = ended.and(passed)?;
    String::from_utf8(answer).map_err(|error| failed(&shown, error))
}

fn failed(command: &str, reason: impl fmt::Display) -> LaunchError {
    LaunchError::Command { command: command.to_owned(), reason: reason.to_string() }
}

/// Runs `command`, whose output is set, until it has ended.
fn to_end(command: &mut Command, shown: &str, deadline: Duration) -> Result<(), LaunchError> {
    let spawned = command.stdin(Stdio::null()).process_group(0).spawn();
    // It would hold its own output open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(|error| failed(shown, error))?;
    let start = Instant::now();
    loop {
        match child.try_wait().map_err(|error| failed(shown, error))? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(failed(shown, status)),
            None => {}
        }
        if start.elapsed() > deadline {
            end(&mut child);
            return Err(failed(shown, format_args!("did not end within {} seconds", deadline.as_secs())));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Ends a child with all that it has started, by force if it takes long.
fn end(child: &mut Child) {
    let group = Pid::from_raw(child.id().cast_signed());
    _ = killpg(group, Signal::SIGTERM);
    let start = Instant::now();
    // What it has started may outlive it.
    while start.elapsed() < END_DEADLINE && killpg(group, None).is_ok() {
        _ = child.try_wait();
        thread::sleep(POLL_INTERVAL);
    }
    _ = killpg(group, Signal::SIGKILL);
    _ = child.wait();
}

/// Tells all that this process runs to end.
pub(super) fn end_all() {
    for child in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = child.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = fs::read_to_string(child.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        if parent == Some(Pid::this().as_raw()) {
            _ = killpg(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }
}

/// A command line as a person would write it.
fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        _ = write!(text, " {}", argument.to_string_lossy());
    }
    text
}

/// `systemctl` with these arguments.
pub(super) fn systemctl(arguments: &[&str]) -> Result<(), LaunchError> {
    run(Command::new("systemctl").arg("--quiet").args(arguments), SHORT)
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::path::Path;

    use super::*;
    use crate::launch::node::end_with_input;

    /// Within it what is told to end has ended, on a loaded machine.
    const WAIT_DEADLINE: Duration = Duration::from_secs(30);
    /// Where a test that is a process of its own writes which one it runs.
    const PID_FILE: &str = "NYDUS_CLUSTER_TEST_PID_FILE";

    #[test]
    fn what_ran_is_named_with_how_it_ended() {
        let shell = |script: &str, deadline| {
            run(Command::new("/bin/sh").args(["-c", script]), deadline).map_err(|error| error.to_string())
        };
        assert_eq!(shell("exit 0", SHORT), Ok(()));
        assert_eq!(shell("exit 3", SHORT), Err("/bin/sh -c exit 3: exit status: 3".to_owned()));
        let late = shell("sleep 60", Duration::from_millis(100)).unwrap_err();
        assert!(late.ends_with("did not end within 0 seconds"), "{late}");
        assert!(say(&mut Command::new("/no/such/program")).is_err());
        assert_eq!(say(Command::new("/bin/echo").arg("word")).unwrap(), "word\n");
    }

    #[test]
    fn what_a_program_says_is_no_part_of_the_answer() {
        let said = own_process("says_a_word").output().unwrap();
        let (answer, shown) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(said.status.success(), "{shown}");
        assert!(shown.lines().any(|line| line == "word"), "{shown}");
        assert!(!answer.lines().any(|line| line == "word"), "{answer}");
    }

    #[test]
    fn what_a_program_leaves_in_the_background_holds_up_nobody_and_can_go_on_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let (file, ticks) = (dir.path().join("pid"), dir.path().join("pid.ticks"));
        let mut process = own_process("leaves_a_child");
        let mut process = process.env(PID_FILE, &file).spawn().unwrap();
        // As ssh on the node, which waits until nobody has our output open.
        let (tell, said) = std::sync::mpsc::channel();
        let mut stderr = process.stderr.take().unwrap();
        thread::spawn(move || tell.send(io::read_to_string(&mut stderr)));
        let said = said.recv_timeout(WAIT_DEADLINE);
        let stays = is_running(&pid_in(&file));
        let size = || fs::metadata(&ticks).map_or(0, |metadata| metadata.len());
        let before = size();
        let start = Instant::now();
        while stays && size() < before + 5 && start.elapsed() < WAIT_DEADLINE {
            thread::sleep(POLL_INTERVAL);
        }
        let written = size() - before;
        let pid = Pid::from_raw(pid_in(&file).parse().unwrap());
        _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        _ = (process.kill(), process.wait());
        let said = said.expect("somebody has the output open still").unwrap();
        assert!(stays && written >= 5, "{written} ticks, {said}");
        assert!(said.lines().any(|line| line == "word"), "{said}");
    }

    #[test]
    fn what_is_late_ends_with_all_that_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let late = run(&mut shell_with_a_child(&file), Duration::from_millis(500)).unwrap_err();
        assert!(late.to_string().contains("did not end"), "{late}");
        wait_until("the child has ended", || !is_running(&pid_in(&file)));
    }

    #[test]
    fn all_that_runs_ends_with_the_input() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut process = own_process("runs_a_shell_with_a_child");
        let mut process = process.env(PID_FILE, &file).stdin(Stdio::piped()).spawn().unwrap();
        wait_until("the child runs", || !pid_in(&file).is_empty());
        assert!(is_running(&pid_in(&file)));
        // As when ssh is gone: nobody hears either that it ends.
        drop((process.stderr.take(), process.stdin.take()));
        wait_until("the child has ended", || !is_running(&pid_in(&file)));
        process.wait().unwrap();
    }

    #[test]
    #[ignore = "is run by another test"]
    fn says_a_word() {
        run(Command::new("echo").arg("word"), SHORT).unwrap();
    }

    #[test]
    #[ignore = "is run by another test"]
    fn leaves_a_child() {
        let Some(file) = env::var_os(PID_FILE) else { return };
        // It ends when it cannot write.
        let script = "while echo tick; do echo >>$0.ticks; sleep 0.1; done & echo $! >$0; echo word";
        run(Command::new("/bin/sh").args(["-c", script]).arg(file), SHORT).unwrap();
    }

    #[test]
    #[ignore = "is run by another test"]
    fn runs_a_shell_with_a_child() {
        let Some(file) = env::var_os(PID_FILE) else { return };
        end_with_input();
        run(&mut shell_with_a_child(Path::new(&file)), SHORT).unwrap();
    }

    /// A test of this module as a process of its own, for it has a standard input and output.
    fn own_process(test: &str) -> Command {
        let (_, module) = module_path!().split_once("::").unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([&format!("{module}::{test}"), "--exact", "--ignored", "--nocapture"]).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A shell that writes which process it has started.
    fn shell_with_a_child(file: &Path) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "sleep 300 & echo $! >$0.new; mv $0.new $0; wait"]).arg(file);
        shell
    }

    fn pid_in(file: &Path) -> String {
        fs::read_to_string(file).unwrap_or_default().trim().to_owned()
    }

    /// Nobody may have waited for one that has ended.
    fn is_running(pid: &str) -> bool {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    }

    fn wait_until(what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(
                start.elapsed() < WAIT_DEADLINE,
                "not within {} seconds: {what}",
                WAIT_DEADLINE.as_secs()
            );
            thread::sleep(POLL_INTERVAL);
        }
    }
}
