//! What takes a cluster away from a node again: all of it, or what another image would find there.

use std::fs;
use std::path::Path;

use super::commands::{progress, systemctl};
use super::ledger::Ledger;
use super::state::State;
use super::{by_hooks, clear, foreign, hooks, image, install, lazy, member, own_registry, package};
use crate::launch::error::LaunchError;

/// Takes this node out of its cluster, and all away that was put here. With `keep` that stays, for a next run.
pub(super) fn remove(dir: &Path, keep: bool) -> Result<(), LaunchError> {
    let Some(mut state) = State::read(dir)? else { return clear::remove(&[dir]) };
    if state.saved.role.is_some() {
        progress("leaving the cluster");
        member::leave(&state)?;
    }
    hooks::clean(&state, !keep)?;
    if keep {
        return state.left();
    }
    let mut ledger = Ledger::open(dir)?;
    let told = is_told(&state, &ledger)?;
    if told && state.saved.port.is_some() {
        foreign::forget(&ledger)?;
    }
    stop(&services(&state));
    if state.saved.own_containerd {
        clear::containerd()?;
    }
    clear::remove(&[lazy::snapshotter_root(dir)])?;
    undo(&mut ledger, told)?;
    fs::remove_dir_all(dir).map_err(LaunchError::io(dir))
}

/// Takes away what was put here of an image that another one is to follow, on a node that is in no cluster. Container images stay, and what
/// was fetched.
pub(super) fn image(state: &mut State, ledger: &mut Ledger) -> Result<(), LaunchError> {
    progress("taking away what was there of another image");
    if state.saved.role.is_some() {
        member::leave(state)?;
    }
    if !state.saved.hooks_done.is_empty() {
        hooks::clean(state, false)?;
    }
    state.left()?;
    let told = is_told(state, ledger)?;
    stop(&services(state));
    undo(ledger, told)?;
    image::remove(&state.dir)?;
    state.saved.own_containerd = false;
    state.saved.containerd_told = false;
    state.saved.containerd_by_hooks = false;
    state.saved.registry = None;
    state.save()
}

/// Whether a containerd that the node has from elsewhere runs with what it was told.
fn is_told(state: &State, ledger: &Ledger) -> Result<bool, LaunchError> {
    Ok(!install::has_no_containerd(ledger) && (state.saved.containerd_told || foreign::is_told(ledger)?))
}

/// The services that run for a cluster, in the order in which they end.
fn services(state: &State) -> Vec<&'static str> {
    let mut services = Vec::new();
    if !by_hooks::makes(state) {
        services.push("kubelet.service");
    }
    if state.saved.own_containerd {
        services.push("containerd.service");
    }
    if state.saved.port.is_some() {
        // What is asked ends before whom it asks.
        services.extend(lazy::SERVICES.iter().rev());
    }
    if state.saved.registry.is_some() {
        services.push(own_registry::UNIT);
    }
    services.push(image::UNIT);
    if state.saved.prepare.package.is_some() {
        services.push(package::UNIT);
    }
    services
}

fn stop(services: &[&str]) {
    for service in services {
        // One that is not there, since it never came that far, cannot be disabled.
        if let Err(error) = systemctl(&["disable", "--now", service]) {
            progress(error);
        }
    }
    // One that had to be killed would be shown as failed for as long as the node is up.
    if let Err(error) = systemctl(&[&["reset-failed"], services].concat()) {
        progress(error);
    }
}

/// Brings back what was on the node before, and has a containerd from elsewhere that was told of us go on with it.
fn undo(ledger: &mut Ledger, told: bool) -> Result<(), LaunchError> {
    ledger.undo()?;
    systemctl(&["daemon-reload"])?;
    if told { foreign::restore() } else { Ok(()) }
}
