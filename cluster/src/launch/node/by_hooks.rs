//! A cluster that the image makes by its own hooks, in kubeadm's place: k3s, k0s, or what else starts on a node.
//!
//! | hook | runs | leaves |
//! |---|---|---|
//! | `init-cluster` | on the first node | the administrator's credentials at `KUBECONFIG`, and what others need at `CLUSTER_JOIN` |
//! | `join-cluster` | on each other node, masters first | |
//! | `leave-cluster` | on every node, when it leaves | |
//!
//! What they see is in [`Seen`], beside what every hook does.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::commands::{LONG, progress, run};
use super::{State, install, ledger};
use crate::launch::error::LaunchError;
use crate::launch::task::{Begun, ByHooks, Init, Join};

const INIT: &str = "init-cluster";
const JOIN: &str = "join-cluster";
const LEAVE: &str = "leave-cluster";

/// Whether the image makes its cluster itself.
pub(super) fn makes(state: &State) -> bool {
    state.saved.prepare.hooks.contains_key(INIT)
}

/// Where the first node has the administrator's credentials.
pub(super) fn kubeconfig(dir: &Path) -> PathBuf {
    dir.join("kubeconfig")
}

fn words(dir: &Path) -> PathBuf {
    dir.join("join")
}

/// What the hooks see.
struct Seen<'a> {
    /// `NODE_ROLE`: `master` or `node`.
    role: &'a str,
    /// `NODE_ADDRESS`: how the node was named, if by an address; else empty.
    address: Option<&'a str>,
    /// `CLUSTER_ENDPOINT`: where all nodes find the control plane, as `HOST[:PORT]`; empty if nobody said.
    endpoint: Option<&'a str>,
}

/// Makes this node the first, unless it is; returns what the others join with.
pub(super) fn init(state: &mut State, init: &Init) -> Result<Begun, LaunchError> {
    let (address, endpoint) = (init.address.as_deref(), init.endpoint.as_deref());
    if state.role().is_empty() {
        state.began()?;
        // Nobody else may read what is written there.
        for file in [kubeconfig(&state.dir), words(&state.dir)] {
            ledger::write(&file, b"", 0o600)?;
        }
        hook(state, INIT, &Seen { role: "master", address, endpoint })?;
        state.joined("master")?;
    }
    let file = kubeconfig(&state.dir);
    let kubeconfig = install::read(&file)?;
    if kubeconfig.trim().is_empty() {
        let reason = format!("the hook {INIT} left no credentials there: expected them at $KUBECONFIG");
        return Err(LaunchError::wrong(file.display().to_string(), reason));
    }
    let by_hooks = ByHooks {
        words: install::read(&words(&state.dir))?,
        address: None,
        endpoint: endpoint.map(ToOwned::to_owned),
    };
    let join =
        Join { discovery: Value::Null, token: String::new(), control_plane: None, by_hooks: Some(by_hooks) };
    Ok(Begun { kubeconfig, join, authorities: Default::default() })
}

/// Lets this node join, unless it has.
pub(super) fn join(state: &mut State, join: &Join) -> Result<(), LaunchError> {
    if !state.role().is_empty() {
        return Ok(());
    }
    let expected = || LaunchError::wrong(JOIN, "expected what the first node left for others");
    let by_hooks = join.by_hooks.as_ref().ok_or_else(expected)?;
    let role = if join.control_plane.is_some() { "master" } else { "node" };
    state.began()?;
    ledger::write(&words(&state.dir), by_hooks.words.as_bytes(), 0o600)?;
    let (address, endpoint) = (by_hooks.address.as_deref(), by_hooks.endpoint.as_deref());
    hook(state, JOIN, &Seen { role, address, endpoint })?;
    state.joined(role)
}

/// Takes this node out of its cluster, or what an interrupted step left of it.
pub(super) fn leave(state: &State) -> Result<(), LaunchError> {
    let role = Some(state.role()).filter(|role| !role.is_empty()).unwrap_or("node");
    hook(state, LEAVE, &Seen { role, address: None, endpoint: None })?;
    for file in [kubeconfig(&state.dir), words(&state.dir)] {
        ledger::remove(&file)?;
    }
    Ok(())
}

fn hook(state: &State, name: &str, seen: &Seen<'_>) -> Result<(), LaunchError> {
    let Some(command) = state.saved.prepare.hooks.get(name) else { return Ok(()) };
    progress(format_args!("running the hook {name}: {command}"));
    let mut shell = state.shell(command);
    shell.env("NODE_ROLE", seen.role).env("NODE_ADDRESS", seen.address.unwrap_or_default());
    shell.env("CLUSTER_ENDPOINT", seen.endpoint.unwrap_or_default());
    shell.env("CLUSTER_JOIN", words(&state.dir)).env("KUBECONFIG", kubeconfig(&state.dir));
    run(&mut shell, LONG)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::launch::task::{ControlPlane, Image, Prepare};

    fn state(dir: &Path, hooks: &[(&str, &str)]) -> State {
        fs::create_dir_all(dir.join("tree")).unwrap();
        let hooks = hooks.iter().map(|(name, command)| ((*name).to_owned(), (*command).to_owned()));
        let prepare = Prepare {
            image: Image::Directory(dir.join("tree")),
            hooks: hooks.collect(),
            environment: BTreeMap::from([("WORD".to_owned(), "of-image".to_owned())]),
            ..Prepare::named("c")
        };
        State::new(dir, &prepare).unwrap()
    }

    #[test]
    fn what_the_first_node_leaves_is_what_others_join_with() {
        let dir = tempfile::tempdir().unwrap();
        let (first_dir, second_dir) = (dir.path().join("first"), dir.path().join("second"));
        let said = "echo $WORD $CLUSTER_NAME $NODE_ROLE $NODE_ADDRESS $CLUSTER_ENDPOINT";
        let up = format!("{said} >said; echo token >$CLUSTER_JOIN; echo 'kind: Config' >$KUBECONFIG");
        let mut first = state(&first_dir, &[(INIT, &up), (LEAVE, "rm said")]);
        assert!(makes(&first));
        let init_task =
            Init { address: Some("10.0.0.1".to_owned()), endpoint: Some("api:6443".to_owned()), joins: true };
        let begun = init(&mut first, &init_task).unwrap();
        assert_eq!(begun.kubeconfig, "kind: Config\n");
        let read = |dir: &Path| fs::read_to_string(dir.join("tree/said")).unwrap();
        assert_eq!(read(&first_dir), "of-image c master 10.0.0.1 api:6443\n");
        // A second run finds it, and runs nothing.
        fs::remove_file(first_dir.join("tree/said")).unwrap();
        assert_eq!(init(&mut first, &init_task).unwrap(), begun);
        assert!(!first_dir.join("tree/said").exists());
        assert_eq!(first.role(), "master");

        let mut second =
            state(&second_dir, &[(INIT, &up), (JOIN, &format!("{said} $(cat $CLUSTER_JOIN) >said"))]);
        let mut task = begun.join.clone();
        task.by_hooks.as_mut().unwrap().address = Some("10.0.0.2".to_owned());
        task.control_plane = Some(ControlPlane { address: None, authorities: BTreeMap::new() });
        join(&mut second, &task).unwrap();
        assert_eq!(read(&second_dir), "of-image c master 10.0.0.2 api:6443 token\n");
        leave(&second).unwrap();
        assert!(!words(&second_dir).exists());
    }

    #[test]
    fn a_first_node_has_to_leave_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = state(dir.path(), &[(INIT, "true")]);
        let error =
            init(&mut first, &Init { address: None, endpoint: None, joins: false }).unwrap_err().to_string();
        assert!(error.contains("init-cluster left no credentials"), "{error}");
    }
}
