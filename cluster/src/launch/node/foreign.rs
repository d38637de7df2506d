//! A containerd that the node has from elsewhere: it is told of our snapshotter, and goes on without it afterwards.
//!
//! Its programs, its unit and its data stay its own. What it has pulled and what runs is bound to the snapshotter of then and goes on with
//! it; an image of that time is unpacked once more when the next container of it is made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use snapshotter::SnapshotterConfig;
use tokio::runtime::Handle;
use toml::{Table, Value};

use super::commands::{progress, say, systemctl};
use super::ledger::Ledger;
use super::{State, containerd, lazy};
use crate::launch::error::LaunchError;

/// Its unit.
const UNIT: &str = "containerd.service";
/// Settings with which images that are there could not be unpacked once more.
const DISCARD: &str = "discard_unpacked_layers";

/// Puts where we have mirrors into its configuration, and, to read images lazily, our snapshotter; and starts it again with that.
pub(super) fn tell(ledger: &mut Ledger, state: &mut State, lazily: bool) -> Result<(), LaunchError> {
    let unit = Unit::find()?;
    let before = ledger.before(&unit.config)?;
    if let Some(reason) = before.as_deref().filter(|_| lazily).and_then(hindrance) {
        let reason = format!("{reason}, or run the cluster with --keep-containerd");
        return Err(LaunchError::wrong(unit.config.display().to_string(), reason));
    }
    let default = || containerd::default_of(&unit.program);
    let socket = Some(lazy::socket()).filter(|_| lazily);
    let text = containerd::configured(&unit.config, before.as_deref(), socket.as_deref(), default)?;
    if fs::read(&unit.config).map_or(true, |found| found != text.as_bytes()) {
        // Whatever interrupts us now, the next run starts it again.
        state.saved.containerd_told = false;
        state.save()?;
        ledger.file(&unit.config, &text)?;
    }
    if !state.saved.containerd_told {
        progress("starting the node's own containerd again, with what it was told; what runs goes on");
        systemctl(&["restart", UNIT])?;
        state.saved.containerd_told = true;
        state.save()?;
    }
    Ok(())
}

/// Whether its configuration is of our making.
pub(super) fn is_told(ledger: &Ledger) -> Result<bool, LaunchError> {
    Ok(ledger.has(&Unit::find()?.config))
}

/// Takes from it what it cannot have without us, while it still knows us: snapshots of ours, and images that came lazily.
pub(super) fn forget(ledger: &Ledger) -> Result<(), LaunchError> {
    if !is_told(ledger)? {
        return Ok(());
    }
    let socket = SnapshotterConfig::default().containerd;
    let forgotten = Handle::current().block_on(snapshotter::forget(socket.path(), containerd::NAME));
    let forgotten = forgotten.map_err(|error| LaunchError::wrong("containerd", error.to_string()))?;
    progress(format_args!(
        "removed {} names of images that the node's own containerd had lazily",
        forgotten.len()
    ));
    Ok(())
}

/// Has it go on with what was its own.
pub(super) fn restore() -> Result<(), LaunchError> {
    systemctl(&["try-restart", UNIT])
}

/// What keeps a configuration from being changed, and what is to be done.
fn hindrance(text: &str) -> Option<String> {
    // What is no configuration is said elsewhere.
    let config: Table = toml::from_str(text).ok()?;
    let disabled = config.get("disabled_plugins").and_then(Value::as_array).into_iter().flatten();
    if let Some(name) = disabled.filter_map(Value::as_str).find(|name| is_cri(name)) {
        return Some(format!(
            "disabled_plugins has {name}, without which there is no Kubernetes: take it out"
        ));
    }
    let plugins = config.get("plugins")?.as_table()?;
    let tables = plugins.values().filter_map(Value::as_table);
    let mut tables =
        tables.flat_map(|plugin| [Some(plugin), plugin.get("containerd").and_then(Value::as_table)]);
    let discards =
        tables.any(|table| table.is_some_and(|table| table.get(DISCARD) == Some(&Value::Boolean(true))));
    discards.then(|| {
        format!(
            "with {DISCARD} the images that the node has cannot be run by another snapshotter: take it out"
        )
    })
}

fn is_cri(name: &str) -> bool {
    name == "cri"
        || name.starts_with("io.containerd.grpc.v1.cri")
        || name.starts_with("io.containerd.cri.v1.")
}

/// What systemd says of it.
#[derive(Debug, PartialEq, Eq)]
struct Unit {
    program: PathBuf,
    /// The file itself, where links lead to it.
    config: PathBuf,
}

impl Unit {
    fn find() -> Result<Self, LaunchError> {
        let said = say(Command::new("systemctl").args(["show", "--property=ExecStart", UNIT]))?;
        let mut unit = Self::of(&said);
        if let Ok(config) = fs::canonicalize(&unit.config) {
            unit.config = config;
        }
        Ok(unit)
    }

    /// Reads `ExecStart={ path=… ; argv[]=PROGRAM ARGUMENT… ; … }`.
    fn of(said: &str) -> Self {
        let command = said.split_once("argv[]=").and_then(|(_, rest)| rest.split(" ;").next());
        let mut words = command.unwrap_or_default().split_whitespace();
        let program = words.next().unwrap_or("containerd");
        let mut config = containerd::CONFIG;
        while let Some(word) = words.next() {
            match word.split_once('=') {
                Some(("--config" | "-c", file)) => config = file,
                None if word == "--config" || word == "-c" => config = words.next().unwrap_or(config),
                _ => {}
            }
        }
        Self { program: program.into(), config: Path::new(config).to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_says_which_program_reads_which_file() {
        let unit = |command: &str| {
            let unit =
                Unit::of(&format!("ExecStart={{ path=/x ; argv[]={command} ; ignore_errors=no ; pid=0 }}\n"));
            (unit.program.display().to_string(), unit.config.display().to_string())
        };
        let own = |program: &str, config: &str| (program.to_owned(), config.to_owned());
        assert_eq!(unit("/usr/bin/containerd"), own("/usr/bin/containerd", containerd::CONFIG));
        assert_eq!(unit("/b/containerd --config /e/c.toml -l info"), own("/b/containerd", "/e/c.toml"));
        assert_eq!(unit("/b/containerd -l=info --config=/e/c.toml"), own("/b/containerd", "/e/c.toml"));
        assert_eq!(Unit::of("ExecStart=\n").program, Path::new("containerd"));
    }

    #[test]
    fn what_would_keep_images_from_running_is_said() {
        let discards = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndiscard_unpacked_layers = true\n";
        let said = hindrance(discards).unwrap();
        assert!(said.starts_with("with discard_unpacked_layers"), "{said}");
        let discards =
            "version = 4\n[plugins.\"io.containerd.cri.v1.images\"]\ndiscard_unpacked_layers = true\n";
        assert!(hindrance(discards).is_some());
        // As Docker's packages have it.
        let said = hindrance("disabled_plugins = [\"cri\"]\n").unwrap();
        assert!(said.starts_with("disabled_plugins has cri"), "{said}");
        assert_eq!(hindrance(&discards.replace("true", "false")), None);
        assert_eq!(
            hindrance("version = 2\ndisabled_plugins = [\"io.containerd.snapshotter.v1.zfs\"]\n"),
            None
        );
        assert_eq!(hindrance(""), None);
    }
}
