//! A cluster of an image: brought to nodes, begun on the first, joined by the others, launched.
//!
//! | file | is |
//! |---|---|
//! | [`mod@task`] | what a node is told |
//! | [`mod@node`] | the node's side, which does it |
//! | `place`, `step` | the way there: `ssh`, lines, deadlines |
//! | `images` | what nodes are told of container images that they read lazily |
//! | `kubeadm` | what kubeadm is given |
//! | `record` | what is known here of a cluster that runs |
//!
//! Our own program is brought to each node first and does the work there, so that a step is a call and not a script.

mod commands;
mod error;
mod images;
mod kubeadm;
pub mod node;
mod place;
mod record;
mod step;
pub mod task;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;

pub use commands::commands;
pub use error::LaunchError;
pub use images::images;
pub use place::{Place, SshOptions};
pub use record::{Record, clusters_dir};
pub use step::Say;

use place::Ssh;
use step::Node;
use task::{Begun, Init, Launch, Prepare, Status, Task};

/// How long a node may take to bring the image and install what is missing.
const PREPARE_DEADLINE: Duration = Duration::from_secs(900);
/// How long it may take to begin, or to join: what kubeadm may take there, and some more.
const KUBEADM_DEADLINE: Duration = Duration::from_secs(1000);
/// How long a question may take.
const STATUS_DEADLINE: Duration = Duration::from_secs(60);

/// What is run, and where.
#[derive(Clone, Debug)]
pub struct Run {
    /// What every node gets.
    pub prepare: Prepare,
    /// The first nodes, which run the control plane.
    pub masters: Vec<Place>,
    /// The others.
    pub nodes: Vec<Place>,
    /// How they are logged in to.
    pub ssh: SshOptions,
    /// Commands that launch the image once the nodes have joined, on the first master.
    pub launch: Launch,
    /// Our own program, which is brought to the nodes.
    pub program: PathBuf,
}

/// Runs a cluster, or goes on where an earlier run stopped, or finds that nothing is to be done. Keeps what it is in `dir`.
/// Returns the file with the administrator's credentials.
///
/// # Errors
///
/// When a step on a node fails; the other nodes' steps of the same kind come to their end.
pub async fn run(run: &Run, dir: &Path, say: Say<'_>) -> Result<PathBuf, LaunchError> {
    let [master] = run.masters.as_slice() else {
        let reason = format!("{} are named: there can be one so far", run.masters.len());
        return Err(LaunchError::wrong("--masters", reason));
    };
    let record = Record::of(run);
    record.keep(dir)?;
    let ssh = Ssh::new(&run.ssh, dir)?;
    let all: Vec<_> = record.places().into_iter().map(|place| node(place, &ssh, dir, say)).collect();
    let bytes = std::fs::read(&run.program).map_err(LaunchError::io(&run.program))?;
    let digest = registry::digest::sha256(&bytes).digest().to_owned();
    drop(bytes);

    let prepare = Task::Prepare(run.prepare.clone());
    each(&all, |node| async {
        node.bring_program(&run.program, &digest).await?;
        node.work("preparing", &prepare, PREPARE_DEADLINE).await.map(drop)
    })
    .await?;
    let (first, others) =
        all.split_first().ok_or_else(|| LaunchError::wrong("--masters", "none is named"))?;
    let init = Task::Init(Init { address: master.address().map(ToOwned::to_owned) });
    let begun = first.work("kubeadm init", &init, KUBEADM_DEADLINE).await?;
    let begun: Begun = serde_json::from_value(begun)
        .map_err(|error| LaunchError::wrong(first.place.name(), error.to_string()))?;
    let kubeconfig = record::kubeconfig(dir);
    record::write(&kubeconfig, begun.kubeconfig.as_bytes())?;
    let join = Task::Join(begun.join);
    each(others, |node| async { node.work("kubeadm join", &join, KUBEADM_DEADLINE).await.map(drop) }).await?;
    let deadline =
        Duration::from_secs(run.launch.seconds) * u32::try_from(run.launch.commands.len()).unwrap_or(1);
    first.work("launching", &Task::Launch(run.launch.clone()), deadline + STATUS_DEADLINE).await?;
    Ok(kubeconfig)
}

/// How the nodes of the cluster recorded in `dir` are; an error for each that does not say.
///
/// # Errors
///
/// When there is no such cluster.
pub async fn status(
    dir: &Path,
    ssh: &SshOptions,
) -> Result<Vec<(Place, Result<Status, LaunchError>)>, LaunchError> {
    let record = Record::read(dir)?;
    let ssh = Ssh::new(&record.ssh(ssh), dir)?;
    let ask = async |place: Place| {
        let node = node(place, &ssh, dir, &|_, _| {});
        let status = match node.has_program().await {
            Ok(true) => node.work("asking", &Task::Status, STATUS_DEADLINE).await,
            Ok(false) => Ok(serde_json::json!({})),
            Err(error) => Err(error),
        };
        let status = status.and_then(|status| {
            serde_json::from_value(status)
                .map_err(|error| LaunchError::wrong(node.place.name(), error.to_string()))
        });
        (node.place, status)
    };
    Ok(join_all(record.places().into_iter().map(ask)).await)
}

/// Takes a cluster away from all of its nodes, and what is known of it from here. With `keep` nodes only leave the cluster: what was
/// brought to them stays for the next run.
///
/// # Errors
///
/// When there is none, or a node cannot be cleared; what is known of the cluster is kept then.
pub async fn remove(dir: &Path, ssh: &SshOptions, keep: bool, say: Say<'_>) -> Result<(), LaunchError> {
    let record = Record::read(dir)?;
    let ssh = Ssh::new(&record.ssh(ssh), dir)?;
    let mut all: Vec<_> = record.places().into_iter().map(|place| node(place, &ssh, dir, say)).collect();
    // The control plane last.
    all.reverse();
    each(&all, |node| async {
        if node.has_program().await? {
            node.work("removing", &Task::Remove { keep }, PREPARE_DEADLINE).await?;
            if !keep {
                node.remove_program().await?;
            }
        }
        Ok(())
    })
    .await?;
    if keep { Ok(()) } else { std::fs::remove_dir_all(dir).map_err(LaunchError::io(dir)) }
}

fn node<'a>(place: Place, ssh: &'a Ssh, dir: &'a Path, say: Say<'a>) -> Node<'a> {
    Node { place, ssh, logs: dir, say }
}

/// Does something on all nodes at once, to the end of each.
async fn each<'a, 'b, F>(nodes: &'a [Node<'b>], work: impl Fn(&'a Node<'b>) -> F) -> Result<(), LaunchError>
where
    F: Future<Output = Result<(), LaunchError>>,
{
    let results = join_all(nodes.iter().map(work)).await;
    let mut errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(LaunchError::Several(errors)),
    }
}
