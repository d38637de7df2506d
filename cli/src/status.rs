//! How commands end: one table for all of them, which `--help` and docs/images.md show.

use std::process::ExitCode;

/// `image check` found damage, `image diff` a difference.
const FOUND: u8 = 1;

/// It could not be done, or nobody can tell. What the command line's parser says of wrong usage too.
const FAILED: u8 = 2;

/// What a shell says of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// What a shell says of a program that SIGPIPE ended.
const CLOSED: u8 = 141;

/// The table.
pub(crate) const HELP: &str = "\
Exit status:
  0    Done. `image check`: sound. `image diff`: no difference
  1    `image check`: damaged, or not what it was made from. `image diff`: they differ.
       `cluster images`: something is not clear, or nothing asks for the image
  2    It could not be done, or nobody can tell: wrong usage, a configuration that is missing or broken,
       something that cannot be read or reached, or is not supported
  130  Interrupted by SIGINT or SIGTERM (143 by a second SIGTERM)
  141  Nobody reads standard output any more";

pub(crate) fn found() -> ExitCode {
    ExitCode::from(FOUND)
}

pub(crate) fn failed() -> ExitCode {
    ExitCode::from(FAILED)
}

pub(crate) fn interrupted() -> ExitCode {
    ExitCode::from(INTERRUPTED)
}

pub(crate) fn closed() -> ExitCode {
    ExitCode::from(CLOSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_status() {
        for status in [0, FOUND, FAILED, INTERRUPTED, CLOSED] {
            assert!(HELP.lines().any(|line| line.starts_with(&format!("  {status:<5}"))), "{status}");
        }
        let documented = include_str!("../../docs/images.md");
        for status in [0, FOUND, FAILED, INTERRUPTED, CLOSED] {
            assert!(documented.contains(&format!("\n| {status} | ")), "{status}");
        }
    }
}
