//! Making place for another version of the program, while containers read.
//!
//! ```text
//!   upgrade ──> old daemon ──runs──> new program, to the point where only one can go on
//!                   │ <── it would work, and what it speaks
//!                   └── ends; the mounts stay, held by the snapshotter, which starts the new program and has it go on
//! ```
//!
//! A new program that would not work is found out while the old one still serves, and nothing changes.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::control::protocol::{OLDEST_VERSION, VERSION};

/// What the new program may take to say that it would work.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// Bytes of its complaints that are passed on.
const COMPLAINT_LIMIT: usize = 2048;

/// What a program says of itself that would work as a daemon.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Its version.
    pub version: String,
    /// The oldest and the newest version of the control protocol that it speaks.
    pub control: (u32, u32),
}

impl Probe {
    /// Of this program.
    pub(crate) fn own() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), control: (OLDEST_VERSION, VERSION) }
    }
}

/// Why the daemon does not make place.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Nobody would have mounts served on.
    #[error("nobody holds mounts {}: their containers would lose them; is the snapshotter running?", .0.join(", "))]
    NotHeld(Vec<String>),
    /// The new program would not work.
    #[error("{} would not work as a daemon, the old one goes on: {reason}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What it said, or did.
        reason: String,
    },
}

/// Runs the program that is where this one was started from, with `arguments`, to see whether it would work.
pub(crate) async fn probe(arguments: &[String]) -> Result<Probe, UpgradeError> {
    let program = service::program::path().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let failed = |reason: String| UpgradeError::Program { program: program.clone(), reason };
    let mut command = Command::new(&program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = tokio::time::timeout(PROBE_DEADLINE, command.kill_on_drop(true).output()).await;
    let output = output.map_err(|_| failed(format!("it did not say so within {PROBE_DEADLINE:?}")))?;
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        let start = said.len().saturating_sub(COMPLAINT_LIMIT);
        let said = said.get(start..).unwrap_or(said);
        return Err(failed(format!("{}: {said}", output.status)));
    }
    let probe: Probe =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("what it says: {error}")))?;
    let (oldest, newest) = probe.control;
    if oldest > VERSION || newest < OLDEST_VERSION {
        let ours = format!("{OLDEST_VERSION} to {VERSION}");
        return Err(failed(format!(
            "it speaks versions {oldest} to {newest} of the protocol, expected {ours}"
        )));
    }
    tracing::info!(program = %Path::new(&program).display(), version = probe.version, "making place for another program");
    Ok(probe)
}
