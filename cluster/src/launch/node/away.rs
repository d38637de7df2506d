//! What takes a cluster away from a node again: all of it, or what another image would find there.

use std::fs;
use std::path::Path;

use super::commands::{progress, systemctl};
use super::ledger::Ledger;
use super::state::State;
use super::{
    by_daemon, by_hooks, clear, foreign, hooks, image, install, lazy, member, own_registry, package,
};
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
    stop(&state, true);
    if state.saved.own_containerd {
        clear::containerd()?;
    }
    clear::remove(&[lazy::snapshotter_root(dir)])?;
    undo(&mut ledger, told)?;
    fs::remove_dir_all(dir).map_err(LaunchError::io(dir))
}

/// Takes away what was put here of an image that another one is to follow, on a node that is in no cluster. Container images stay, and what
/// was fetched, unless the other one is `plain`, for then no daemon mounts it.
pub(super) fn image(state: &mut State, ledger: &mut Ledger, plain: bool) -> Result<(), LaunchError> {
    progress("taking away what was there of another image");
    if state.saved.role.is_some() {
        member::leave(state)?;
    }
    if !state.saved.hooks_done.is_empty() {
        hooks::clean(state, false)?;
    }
    state.left()?;
    let told = is_told(state, ledger)?;
    // The next one may have the same blobs: what the daemon has of this one goes once that is mounted.
    stop(state, plain);
    undo(ledger, told)?;
    image::remove(&state.dir)?;
    state.saved.own_containerd = false;
    state.saved.by_daemon = false;
    state.saved.containerd_told = false;
    state.saved.containerd_by_hooks = false;
    state.saved.registry = None;
    state.save()
}

/// Whether a containerd that the node has from elsewhere runs with what it was told.
fn is_told(state: &State, ledger: &Ledger) -> Result<bool, LaunchError> {
    Ok(!install::has_no_containerd(ledger) && (state.saved.containerd_told || foreign::is_told(ledger)?))
}

/// The services that use the image, in the order in which they end.
fn users(state: &State) -> Vec<&'static str> {
    let mut services = Vec::new();
    if !by_hooks::makes(state) {
        services.push("kubelet.service");
    }
    if state.saved.own_containerd {
        services.push("containerd.service");
    }
    if state.saved.port.is_some() {
        services.push(lazy::SERVE);
    }
    if state.saved.registry.is_some() {
        services.push(own_registry::UNIT);
    }
    services.push(image::UNIT);
    services
}

/// The services that it, and container images, are read by, in the order in which they end.
fn readers(state: &State) -> Vec<&'static str> {
    // What is asked ends before whom it asks.
    let mut services: Vec<_> =
        state.lazy_services().rev().filter(|service| *service != lazy::SERVE).collect();
    if state.saved.prepare.package.is_some() {
        services.push(package::UNIT);
    }
    services
}

/// Ends all that runs for a cluster. `releases`: the daemon is not to mount its image again.
fn stop(state: &State, releases: bool) {
    end(&users(state));
    if releases && state.saved.by_daemon {
        // While it can be asked.
        by_daemon::release(None);
    }
    end(&readers(state));
}

fn end(services: &[&str]) {
    if services.is_empty() {
        return;
    }
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
