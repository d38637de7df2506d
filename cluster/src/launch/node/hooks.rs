//! Hooks of sealos' kind, at the places where sealos runs them. Those by which an image makes its cluster are elsewhere ([`super::by_hooks`]).

use std::process::Command;

use super::State;
use super::commands::{LONG, progress, run};
use crate::launch::error::LaunchError;

const CHECK: &str = "check";
/// What is run once on a node, in this order.
const INIT_REGISTRY: &str = "init-registry";
const INIT_CRI: &str = "init-cri";
const INITS: [&str; 3] = [INIT_REGISTRY, INIT_CRI, "init"];
/// What is run at the end, in sealos' order.
const CLEAN_REGISTRY: &str = "clean-registry";
const CLEAN_CRI: &str = "clean-cri";
const CLEANS: [&str; 3] = [CLEAN_REGISTRY, CLEAN_CRI, "clean"];

/// Whether they may install a containerd.
pub(super) fn bring_containerd(state: &State) -> bool {
    state.saved.prepare.hooks.contains_key(INIT_CRI)
}

/// Says whether the image can be installed here.
pub(super) fn check(state: &State) -> Result<(), LaunchError> {
    hook(state, CHECK)
}

/// Prepares the node, unless that was done. The registry is the first node's, which sealos has there too; in a cluster that runs it is
/// not begun any more.
pub(super) fn init(state: &mut State) -> Result<(), LaunchError> {
    let registry = state.saved.prepare.first && state.role().is_empty();
    for name in INITS.into_iter().filter(|name| registry || *name != INIT_REGISTRY) {
        if !state.saved.hooks_done.iter().any(|done| done == name) {
            hook(state, name)?;
            state.saved.hooks_done.push(name.to_owned());
            state.save()?;
        }
    }
    Ok(())
}

/// Takes away what the others did: the registry where there is one, and with `container_runtime` that, unless the node has its own.
pub(super) fn clean(state: &State, container_runtime: bool) -> Result<(), LaunchError> {
    let runtime =
        container_runtime && (state.saved.own_containerd || state.saved.had_containerd == Some(false));
    for name in CLEANS {
        let is_due = match name {
            CLEAN_REGISTRY => state.saved.prepare.first,
            CLEAN_CRI => runtime,
            _ => true,
        };
        if is_due {
            hook(state, name)?;
        }
    }
    Ok(())
}

/// Runs a hook, if the image has it.
fn hook(state: &State, name: &str) -> Result<(), LaunchError> {
    let Some(command) = state.saved.prepare.hooks.get(name) else { return Ok(()) };
    progress(format_args!("running the hook {name}: {command}"));
    run(&mut shell(state, command), LONG)
}

/// A shell's command in the image's tree. One that begins with the name of a script is run as sealos does it.
fn shell(state: &State, command: &str) -> Command {
    let scripts = state.tree().join("scripts");
    let first = command.split_whitespace().next().unwrap_or_default();
    if first.contains('/') || !scripts.join(first).is_file() {
        return state.shell(command);
    }
    let mut shell = state.shell(&format!("bash {command}"));
    shell.current_dir(scripts);
    shell
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::launch::hooks::not_run;
    use crate::launch::task::{Image, Prepare};

    const ALL: [&str; 7] = [CHECK, INIT_REGISTRY, INIT_CRI, "init", CLEAN_REGISTRY, CLEAN_CRI, "clean"];

    /// A node of an image whose hooks write which of them has run.
    fn node(dir: &Path, first: bool, had_containerd: bool) -> State {
        let hooks = ALL.map(|name| (name.to_owned(), format!("echo {name} >>said")));
        let prepare = Prepare {
            image: Image::Directory(dir.to_owned()),
            hooks: hooks.into(),
            first,
            ..Prepare::named("of-hooks")
        };
        let mut state = State::new(dir, &prepare).unwrap();
        state.saved.had_containerd = Some(had_containerd);
        state
    }

    /// Which hooks have run since it was last asked.
    fn said(dir: &Path) -> String {
        let said = fs::read_to_string(dir.join("said")).unwrap_or_default();
        _ = fs::remove_file(dir.join("said"));
        said.lines().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_first_node_has_the_images_registry_and_takes_it_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = node(dir.path(), true, false);
        check(&first).unwrap();
        init(&mut first).unwrap();
        assert_eq!(said(dir.path()), "check init-registry init-cri init");
        init(&mut first).unwrap();
        assert_eq!(said(dir.path()), "");
        clean(&first, true).unwrap();
        assert_eq!(said(dir.path()), "clean-registry clean-cri clean");
        // One that a version began which did not know of it.
        first.saved.hooks_done.retain(|done| done != INIT_REGISTRY);
        first.saved.role = Some("master".to_owned());
        init(&mut first).unwrap();
        assert_eq!(said(dir.path()), "");
    }

    #[test]
    fn a_containerd_that_stays_is_not_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let mut other = node(dir.path(), false, true);
        init(&mut other).unwrap();
        assert_eq!(said(dir.path()), "init-cri init");
        clean(&other, true).unwrap();
        assert_eq!(said(dir.path()), "clean");
        // Container images are to stay.
        clean(&node(dir.path(), false, false), false).unwrap();
        assert_eq!(said(dir.path()), "clean");
    }

    #[test]
    fn a_script_of_the_image_runs_as_with_sealos() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = dir.path().join("scripts");
        fs::create_dir(&scripts).unwrap();
        fs::write(scripts.join("init.sh"), "[[ -e init.sh ]] && echo \"$@\" >>../said\n").unwrap();
        let mut state = node(dir.path(), false, false);
        state.saved.prepare.environment.insert("criData".to_owned(), "/data".to_owned());
        let command = "init.sh $criData && bash init.sh again".to_owned();
        state.saved.prepare.hooks = [("init".to_owned(), command)].into();
        init(&mut state).unwrap();
        assert_eq!(said(dir.path()), "/data again");
    }

    #[test]
    fn what_no_node_runs_is_named() {
        let named = |name: &str| not_run([&name.to_owned()].into_iter()).count() == 1;
        assert!(ALL.into_iter().all(|name| !named(name)));
        assert!(named("auth") && named("image"));
    }
}
