//! How commands end: one table for all of them, which `--help` and docs/images.md show.

use std::fmt::Write as _;
use std::process::ExitCode;

/// A command did what it was asked to do, and found something.
const FOUND: u8 = 1;

/// It could not be done, or nobody can tell. What the command line's parser says of wrong usage too.
const FAILED: u8 = 2;

/// What a shell says of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// What a shell says of a program that SIGPIPE ended.
const CLOSED: u8 = 141;

/// What a command can find. No command ends with 1 for any other reason.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found {
    Damage,
    Differences,
    BadChunks,
    UnclearImages,
    UnreadImages,
    SilentNodes,
    UnsavedImages,
}

impl Found {
    const ALL: [Self; 7] = [
        Self::Damage,
        Self::Differences,
        Self::BadChunks,
        Self::UnclearImages,
        Self::UnreadImages,
        Self::SilentNodes,
        Self::UnsavedImages,
    ];

    /// The command that finds it, and what that is.
    fn said(self) -> (&'static str, &'static str) {
        match self {
            Self::Damage => ("image check", "damaged, or not what it was made from"),
            Self::Differences => ("image diff", "they differ"),
            Self::BadChunks => ("cache verify", "chunks were bad"),
            Self::UnclearImages => (
                "cluster images",
                "something is not clear, nothing asks for the image, an image is not there, or the lock says otherwise",
            ),
            Self::UnreadImages => ("cluster inspect", "an image cannot be read"),
            Self::SilentNodes => ("cluster ps", "a node does not answer"),
            Self::UnsavedImages => ("cluster save", "an image is missing or not saved"),
        }
    }

    /// How the command ends that found it.
    pub(crate) fn status(self) -> ExitCode {
        ExitCode::from(FOUND)
    }

    /// How the command ends that looked for it.
    pub(crate) fn status_if(self, is_found: bool) -> ExitCode {
        if is_found { self.status() } else { ExitCode::SUCCESS }
    }
}

/// The table. Terminals wrap it.
pub(crate) fn help() -> String {
    let mut text =
        "Exit status:\n  0    Done, and none of what 1 means\n  1    Done, and found:\n".to_owned();
    for (command, found) in Found::ALL.map(Found::said) {
        let _ = writeln!(text, "       {command}: {found}");
    }
    text + "  2    It could not be done, or nobody can tell: wrong usage, a configuration that is missing or broken,
       something that cannot be read or reached, or is not supported
  130  Interrupted by SIGINT or SIGTERM (143 by a second SIGTERM)
  141  Nobody reads standard output any more"
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
    use std::path::Path;

    use clap::CommandFactory as _;

    use super::*;

    const DOCUMENTED: &str = include_str!("../../docs/images.md");

    #[test]
    fn the_table_names_every_status() {
        let help = help();
        for status in [0, FOUND, FAILED, INTERRUPTED, CLOSED] {
            assert!(help.lines().any(|line| line.starts_with(&format!("  {status:<5}"))), "{status}");
            assert!(DOCUMENTED.contains(&format!("\n| {status} | ")), "{status}");
        }
    }

    #[test]
    fn what_a_command_finds_is_in_its_help_and_in_the_documents() {
        for (name, found) in Found::ALL.map(Found::said) {
            let mut command = crate::args::Arguments::command();
            for word in name.split(' ') {
                command = command.find_subcommand(word).unwrap().clone();
            }
            let help = command.render_long_help().to_string();
            // Long lines are wrapped.
            let said = help.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(said.contains(&format!("{name}: {found}")), "{name}: {help}");
            assert!(DOCUMENTED.contains(&format!("`{name}`: {found}")), "{name}");
        }
    }

    /// A status that is said without this module is in no table.
    #[test]
    fn nothing_else_says_how_commands_end() {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("status.rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    for other in ["ExitCode::FAILURE", "ExitCode::from"] {
                        assert!(!text.contains(other), "{}: {other}", path.display());
                    }
                }
            }
        }
    }
}
