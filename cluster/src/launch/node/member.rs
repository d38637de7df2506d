//! A node as a member of a cluster that kubeadm makes, where the image does not make it by its own hooks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::commands::{LONG, progress, run, say, systemctl};
use super::{State, by_hooks, clear, install, ledger};
use crate::launch::error::LaunchError;
use crate::launch::kubeadm::{Documents, OVERLAY};
use crate::launch::task::{Begun, Init, Join, Launch};

const ADMIN: &str = "/etc/kubernetes/admin.conf";
const PKI: &str = "/etc/kubernetes/pki";
const AUTHORITY: &str = "/etc/kubernetes/pki/ca.crt";
/// What all nodes of the control plane have in common, below [`PKI`]; all else kubeadm makes for each.
const AUTHORITIES: [&str; 8] = [
    "ca.crt",
    "ca.key",
    "sa.pub",
    "sa.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "etcd/ca.crt",
    "etcd/ca.key",
];
/// Within it a cluster that is up answers.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Makes this node the first, unless it is; returns what the others join with.
pub(super) fn init(state: &mut State, init: &Init) -> Result<Begun, LaunchError> {
    if by_hooks::makes(state) {
        return by_hooks::init(state, init);
    }
    if state.role().is_empty() {
        state.began()?;
        let documents = documents(&state.tree())?;
        let config = state.dir.join("kubeadm-init.yaml");
        ledger::write(
            &config,
            documents.init(init.address.as_deref(), init.endpoint.as_deref()).as_bytes(),
            0o600,
        )?;
        systemctl(&["enable", "kubelet.service"])?;
        // What it says is shown and kept, and nobody may join by that.
        let mut kubeadm = Command::new("kubeadm");
        run(kubeadm.args(["init", "--skip-token-print", "--config"]).arg(&config), LONG)?;
        state.joined("master")?;
    }
    // Right after a start the cluster may not answer yet.
    run(kubectl().args(["wait", "--for=create", "--timeout=60s", "namespace/kube-system"]), ANSWER_DEADLINE)?;
    let token = match init.joins {
        true => say(Command::new("kubeadm").args(["--kubeconfig", ADMIN, "token", "create"]))?,
        false => String::new(),
    };
    let token = token.trim().to_owned();
    let kubeconfig = fs::read_to_string(ADMIN).map_err(LaunchError::io(ADMIN))?;
    let join = Join { discovery: discovery(&kubeconfig)?, token, control_plane: None, by_hooks: None };
    Ok(Begun { join, kubeconfig, authorities: authorities()? })
}

/// Lets this node join, unless it has.
pub(super) fn join(state: &mut State, join: &Join) -> Result<(), LaunchError> {
    if by_hooks::makes(state) {
        return by_hooks::join(state, join);
    }
    if !state.role().is_empty() {
        return Ok(());
    }
    state.began()?;
    let documents = documents(&state.tree())?;
    let (discovery, config) = (state.dir.join("discovery.json"), state.dir.join("kubeadm-join.yaml"));
    ledger::write(&discovery, join.discovery.to_string().as_bytes(), 0o600)?;
    let control_plane = join.control_plane.as_ref();
    for (name, content) in control_plane.iter().flat_map(|control_plane| &control_plane.authorities) {
        if !AUTHORITIES.contains(&name.as_str()) {
            return Err(LaunchError::wrong(name, "expected a key or certificate of the control plane"));
        }
        ledger::write(&Path::new(PKI).join(name), content.as_bytes(), 0o600)?;
    }
    let address = control_plane.map(|control_plane| control_plane.address.as_deref());
    let text = documents.join(&discovery.to_string_lossy(), &join.token, address);
    ledger::write(&config, text.as_bytes(), 0o600)?;
    systemctl(&["enable", "kubelet.service"])?;
    run(Command::new("kubeadm").arg("join").arg("--config").arg(&config), LONG)?;
    state.joined(if control_plane.is_some() { "master" } else { "node" })
}

/// Runs the image's commands, unless they have been run.
pub(super) fn launch(state: &mut State, launch: &Launch) -> Result<(), LaunchError> {
    let kubeconfig = match by_hooks::makes(state) {
        true => by_hooks::kubeconfig(&state.dir),
        false => ADMIN.into(),
    };
    for (done, command) in launch.commands.iter().enumerate() {
        if done < state.launched() {
            continue;
        }
        progress(format_args!("running: {command}"));
        run(state.shell(command).env("KUBECONFIG", &kubeconfig), Duration::from_secs(launch.seconds))?;
        state.has_launched(done + 1)?;
    }
    Ok(())
}

/// What others join the control plane with: those that are there, for etcd may be elsewhere, and a key kept elsewhere.
fn authorities() -> Result<BTreeMap<String, String>, LaunchError> {
    let mut found = BTreeMap::new();
    for name in AUTHORITIES {
        let path = Path::new(PKI).join(name);
        match fs::read_to_string(&path) {
            Ok(content) => _ = found.insert(name.to_owned(), content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(LaunchError::io(path)(error)),
        }
    }
    Ok(found)
}

/// Takes a node out of its cluster, or what an interrupted step left of it.
pub(super) fn leave(state: &State) -> Result<(), LaunchError> {
    if by_hooks::makes(state) {
        return by_hooks::leave(state);
    }
    run(Command::new("kubeadm").args(["reset", "--force"]), LONG)?;
    match &state.saved.networks {
        _ if state.saved.own_containerd => clear::pod_network(&BTreeSet::new())?,
        Some(before) => clear::pod_network(before)?,
        // Whose they are is not known any more.
        None => {}
    }
    clear::kubeadm()
}

fn kubectl() -> Command {
    let mut command = Command::new("kubectl");
    command.args(["--kubeconfig", ADMIN]);
    command
}

fn documents(tree: &Path) -> Result<Documents, LaunchError> {
    let file = tree.join(OVERLAY);
    if file.exists() { Documents::parse(&install::read(&file)?) } else { Ok(Documents::default()) }
}

/// A kubeconfig that says where the cluster is and what its authority is, and nothing of who asks.
fn discovery(kubeconfig: &str) -> Result<Value, LaunchError> {
    let server = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("server: "));
    let server = server.ok_or_else(|| LaunchError::wrong(ADMIN, "expected the address of a server"))?;
    let authority = say(Command::new("base64").args(["--wrap=0", AUTHORITY]))?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": {"server": server, "certificate-authority-data": authority}}],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::task::{Image, Prepare};

    #[test]
    fn a_command_that_launches_has_its_time_and_a_next_run_goes_on_there() {
        let dir = tempfile::tempdir().unwrap();
        let prepare =
            Prepare { image: Image::Directory(dir.path().to_owned()), ..Prepare::named("of-launch") };
        let mut state = State::new(dir.path(), &prepare).unwrap();
        let mut of = |commands: &[&str], seconds| {
            let commands = commands.iter().map(ToString::to_string).collect();
            launch(&mut state, &Launch { commands, seconds }).map_err(|error| error.to_string())
        };
        let said = || fs::read_to_string(dir.path().join("said")).unwrap();
        let error = of(&["echo $CLUSTER_NAME >>said", "sleep 300"], 5).unwrap_err();
        assert!(error.contains("sleep 300: did not end within 5 seconds"), "{error}");
        let error = of(&["echo again >>said", "exit 7"], 60).unwrap_err();
        assert!(error.contains("exit 7: exit status: 7"), "{error}");
        assert_eq!(of(&["echo again >>said", "echo second >>said"], 60), Ok(()));
        assert_eq!(said(), "of-launch\nsecond\n");
        // All has been run.
        assert_eq!(of(&["echo again >>said", "echo again >>said"], 60), Ok(()));
        assert_eq!(said(), "of-launch\nsecond\n");
    }
}
