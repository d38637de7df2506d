//! Why a cluster does not run.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a step failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file, or the program.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A program failed.
    #[error("{command}: {reason}")]
    Command {
        /// What ran.
        command: String,
        /// How it ended.
        reason: String,
    },
    /// A step on a node failed.
    #[error("{node}: {step}: {reason}{}", lines(last))]
    Step {
        /// The node.
        node: String,
        /// What was to be done.
        step: &'static str,
        /// How it ended.
        reason: String,
        /// The last lines that came of it.
        last: Vec<String>,
    },
    /// Something is there that is not understood.
    #[error("{place}: {reason}")]
    Wrong {
        /// A file, or an argument.
        place: String,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// Several nodes failed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<LaunchError>),
}

fn lines(last: &[String]) -> String {
    if last.is_empty() { String::new() } else { format!("; its last lines:\n  {}", last.join("\n  ")) }
}

impl LaunchError {
    /// For what a file or program does not let us do.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }

    pub(super) fn wrong(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Wrong { place: place.into(), reason: reason.into() }
    }
}
