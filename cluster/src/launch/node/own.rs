//! What the node's own configuration of nydus-cluster says, whatever cluster comes.

use std::fs;
use std::io;

use toml::{Table, Value};

use crate::launch::error::LaunchError;

/// The file.
pub(super) const FILE: &str = "/etc/nydus-cluster/config.toml";

/// So long after its mount an image is fetched whole, so that it needs no registry any more: late enough not to be in the way
/// of a cluster that starts.
const COMPLETE_AFTER_SECONDS: u64 = 300;

/// The file's text; empty if there is none.
pub(super) fn text() -> Result<String, LaunchError> {
    match fs::read_to_string(FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(LaunchError::io(FILE)),
    }
}

/// The settings of a text.
pub(super) fn parse(text: &str) -> Result<Table, String> {
    toml::from_str(text).map_err(|error| error.to_string())
}

/// How many seconds after its mount an image is fetched whole; 0: not.
pub(super) fn complete_after_seconds() -> Result<u64, LaunchError> {
    parse(&text()?)
        .and_then(|settings| complete_after(&settings))
        .map_err(|error| LaunchError::wrong(FILE, error))
}

/// The same, of these settings.
pub(super) fn complete_after(settings: &Table) -> Result<u64, String> {
    let prefetch = ["daemon", "prefetch"].iter().try_fold(settings, |at, part| at.get(*part)?.as_table());
    let Some(said) = prefetch.and_then(|prefetch| prefetch.get("complete_after_seconds")) else {
        return Ok(COMPLETE_AFTER_SECONDS);
    };
    let seconds = said.as_integer().and_then(|seconds| u64::try_from(seconds).ok());
    seconds.ok_or_else(|| {
        format!("daemon.prefetch.complete_after_seconds is {said}: expected a number of seconds")
    })
}

/// A number of seconds as a setting.
pub(super) fn seconds(seconds: u64) -> Value {
    i64::try_from(seconds).unwrap_or(i64::MAX).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_completed_after_a_while_unless_the_node_says_otherwise() {
        let of = |text: &str| complete_after(&parse(text).unwrap());
        assert_eq!(of(""), Ok(COMPLETE_AFTER_SECONDS));
        assert_eq!(of("[daemon.prefetch]\ntable = false\n"), Ok(COMPLETE_AFTER_SECONDS));
        assert_eq!(of("[daemon.prefetch]\ncomplete_after_seconds = 0\n"), Ok(0));
        let error = of("[daemon.prefetch]\ncomplete_after_seconds = \"soon\"\n").unwrap_err();
        assert!(error.contains("complete_after_seconds is \"soon\""), "{error}");
    }
}
