//! Programs that a node runs for a task. What they say goes to our standard error, line by line, to whoever waits.

use std::fmt::Write as _;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::launch::error::LaunchError;

/// How long a program may take that only changes this node.
pub(super) const SHORT: Duration = Duration::from_secs(90);
/// How long kubeadm may take: most of it is images that come.
pub(super) const LONG: Duration = Duration::from_secs(900);
/// How often it is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Runs `command` to its end.
///
/// # Errors
///
/// When it cannot be run, fails, or does not end within `deadline`.
pub(super) fn run(command: &mut Command, deadline: Duration) -> Result<(), LaunchError> {
    output(command.stdout(Stdio::inherit()), deadline).map(drop)
}

/// Runs `command` and returns what it says, where its standard output is not set.
pub(super) fn say(command: &mut Command) -> Result<String, LaunchError> {
    output(command.stdout(Stdio::piped()), SHORT)
}

fn output(command: &mut Command, deadline: Duration) -> Result<String, LaunchError> {
    let shown = shown(command);
    let failed = |reason: String| LaunchError::Command { command: shown.clone(), reason };
    let mut child = command.stdin(Stdio::null()).spawn().map_err(|error| failed(error.to_string()))?;
    let reader = child.stdout.take().map(|mut stdout| {
        thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text)
        })
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| failed(error.to_string()))? {
            break status;
        }
        if start.elapsed() > deadline {
            // Either way it is not ours any more.
            _ = child.kill();
            _ = child.wait();
            return Err(failed(format!("did not end within {} seconds", deadline.as_secs())));
        }
        thread::sleep(POLL_INTERVAL);
    };
    if !status.success() {
        return Err(failed(status.to_string()));
    }
    let text = reader.map(thread::JoinHandle::join).transpose();
    let text = text.map_err(|_| failed("its output could not be read".to_owned()))?;
    text.transpose().map(Option::unwrap_or_default).map_err(|error| failed(error.to_string()))
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
    use super::*;

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
}
