//! Programs of a test's own.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes a program of `content`, which anybody may run.
///
/// Another process writes it. A file that is open for writing cannot be run (ETXTBSY), and a child that some other test starts
/// while this process writes has it open until its own program begins.
///
/// # Panics
///
/// If it cannot be written.
pub fn write_program(path: &Path, content: &[u8]) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut writer = shell.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(content).unwrap();
    assert!(writer.wait().unwrap().success(), "cannot write {}", path.display());
}
