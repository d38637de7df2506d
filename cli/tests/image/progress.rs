//! What somebody sees at a terminal while a command works.

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::pty::{Winsize, openpty};

use crate::lab::{Lab, expect};

/// Runs the command with a terminal as its standard error; all that it drew there.
fn drawn(mut command: Command) -> String {
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).unwrap();
    command.env("TERM", "xterm").stdout(Stdio::null()).stderr(terminal.slave);
    let mut child = command.spawn().unwrap();
    // It holds this end of the terminal as well, and the last one who does ends what is read.
    drop(command);
    let mut drawn = Vec::new();
    let end = File::from(terminal.master).read_to_end(&mut drawn).unwrap_err();
    let drawn = String::from_utf8_lossy(&drawn).into_owned();
    assert_eq!(end.raw_os_error(), Some(Errno::EIO as i32), "a terminal that nobody holds: {drawn}");
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}: {drawn}");
    drawn
}

/// The amount that was drawn last for a task, in whatever unit.
fn amount(drawn: &str, task: &str) -> f64 {
    let (_, behind) = drawn.rsplit_once(task).unwrap_or_else(|| panic!("no task {task:?}: {drawn}"));
    let amount = behind.split_whitespace().find_map(|word| word.parse().ok());
    amount.unwrap_or_else(|| panic!("no amount of {task:?}: {drawn}"))
}

#[test]
fn an_inspection_and_a_comparison_show_what_they_read() {
    let lab = Lab::new();
    for (destination, option, size) in [
        ("oci:layout:v1", "--batch-size", "16K"),
        ("files:small", "--chunk-size", "64K"),
        ("files:large", "--chunk-size", "128K"),
    ] {
        expect(0, &mut lab.image(&["convert", "--fresh", "directory:root", destination, option, size]));
    }
    // Chunks in batches are described in the blob alone.
    let inspected = drawn(lab.image(&["inspect", "oci:layout:v1"]));
    for task in ["fetch bootstrap", "read chunk information"] {
        assert!(amount(&inspected, task) > 0.0, "{task}: {inspected}");
    }
    // Chunks of different sizes have no digests in common, so the files themselves are read.
    let compared = drawn(lab.image(&["diff", "files:small", "files:large"]));
    for task in ["read files:small", "read files:large"] {
        assert!(amount(&compared, task) > 0.0, "{task}: {compared}");
    }
}
