//! A cluster of an image: brought to nodes, begun on the first, joined by the others, launched.
//!
//! | file | is |
//! |---|---|
//! | [`mod@task`] | what a node is told |
//! | [`mod@node`] | the node's side, which does it |
//! | `place`, `step` | the way there: `ssh`, lines, deadlines |
//! | `images` | what nodes are told of container images that they read lazily |
//! | `hooks` | what images have for others, and nobody runs here |
//! | `kubeadm` | what kubeadm is given |
//! | `package` | a package that nodes of the control plane serve |
//! | `record` | what is known here of a cluster that runs |
//!
//! Our own program is brought to each node first and does the work there, so that a step is a call and not a script.

mod commands;
mod error;
mod hooks;
mod images;
mod kubeadm;
pub mod node;
mod package;
mod place;
mod record;
mod step;
pub mod task;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;

pub use commands::commands;
pub use error::LaunchError;
pub use hooks::not_run;
pub use images::images;
pub use package::{PackageSource, is_package};
pub use place::{Place, SshOptions};
pub use record::{Record, clusters_dir};
pub use step::{Say, log_name};

use place::Ssh;
use step::Node;
use task::{
    Begun, ControlPlane, Init, Join, Launch, Mirror, Prepare, Prepared, ServedPackage, Site, Status, Task,
};

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
    /// The package that the cluster image and all container images are in; none if they are in registries.
    pub package: Option<PackageSource>,
    /// The first nodes, which run the control plane.
    pub masters: Vec<Place>,
    /// Where the control plane is found, as `HOST[:PORT]`: at the first master if absent.
    pub endpoint: Option<String>,
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
    let record = Record::of(run);
    let kept = record.with_earlier(dir)?;
    let ssh = Ssh::new(&run.ssh, dir)?;
    let all: Vec<_> = record.places().into_iter().map(|place| node(place, &ssh, dir, say)).collect();
    let (masters, nodes) = all.split_at(record.masters().min(all.len()));
    let (first, others) =
        masters.split_first().ok_or_else(|| LaunchError::wrong("--masters", "none is named"))?;
    let bytes = std::fs::read(&run.program).map_err(LaunchError::io(&run.program))?;
    let digest = registry::digest::sha256(&bytes).digest().to_owned();
    drop(bytes);

    each(&all, |node| async { node.bring_program(&run.program, &digest).await }).await?;
    // Nodes that are named by mistake do not answer.
    kept.keep(dir)?;
    let served = match &run.package {
        Some(package) => Some(each(masters, |node| served(node, package, all.len() == 1)).await?),
        None => None,
    };
    let prepares: Vec<_> = (0..all.len()).map(|number| prepare(run, served.as_deref(), number)).collect();
    let prepared = each(all.iter().zip(&prepares), |(node, prepare)| prepared(node, prepare)).await?;
    let joins = joins(&prepared);

    let endpoint = run.endpoint.clone().or_else(|| first.place.address().map(ToOwned::to_owned));
    let init = Task::Init(Init { address: first.place.address().map(ToOwned::to_owned), endpoint, joins });
    let begun = first.work("beginning", &init, KUBEADM_DEADLINE).await?;
    let begun: Begun = serde_json::from_value(begun)
        .map_err(|error| LaunchError::wrong(first.place.name(), error.to_string()))?;
    let kubeconfig = record::kubeconfig(dir);
    record::write(&kubeconfig, begun.kubeconfig.as_bytes())?;
    // One after the other: each is a member more of etcd, which has to agree to it.
    for node in others {
        let control_plane = ControlPlane {
            address: node.place.address().map(ToOwned::to_owned),
            authorities: begun.authorities.clone(),
        };
        node.work("joining", &joining(node, &begun.join, Some(control_plane)), KUBEADM_DEADLINE).await?;
    }
    each(nodes, |node| async {
        node.work("joining", &joining(node, &begun.join, None), KUBEADM_DEADLINE).await.map(drop)
    })
    .await?;
    first.work("launching", &Task::Launch(run.launch.clone()), launch_deadline(&run.launch)).await?;
    Ok(kubeconfig)
}

async fn prepared(node: &Node<'_>, prepare: &Task) -> Result<Prepared, LaunchError> {
    let said = node.work("preparing", prepare, PREPARE_DEADLINE).await?;
    serde_json::from_value(said).map_err(|error| LaunchError::wrong(node.place.name(), error.to_string()))
}

/// Whether any node but the first is to join.
fn joins(prepared: &[Prepared]) -> bool {
    prepared.iter().skip(1).any(|node| !node.joined)
}

/// How long all commands may take together that launch an image.
fn launch_deadline(launch: &Launch) -> Duration {
    let commands = u32::try_from(launch.commands.len()).unwrap_or(u32::MAX);
    Duration::from_secs(launch.seconds).saturating_mul(commands).saturating_add(STATUS_DEADLINE)
}

/// How a node joins.
fn joining(node: &Node<'_>, join: &Join, control_plane: Option<ControlPlane>) -> Task {
    let mut join = Join { control_plane, ..join.clone() };
    if let Some(by_hooks) = &mut join.by_hooks {
        by_hooks.address = node.place.address().map(ToOwned::to_owned);
    }
    Task::Join(join)
}

/// Brings the package to a node of the control plane, and says how that is to serve it: to itself, if it is `alone`.
async fn served(node: &Node<'_>, package: &PackageSource, alone: bool) -> Result<ServedPackage, LaunchError> {
    let file = node.bring_package(package).await?;
    let site = node.work("looking for a port", &Task::Site, STATUS_DEADLINE).await?;
    let wrong = |reason: String| LaunchError::wrong(node.place.name(), reason);
    let site: Site = serde_json::from_value(site).map_err(|error| wrong(error.to_string()))?;
    let named = node.place.address().and_then(|address| address.parse().ok());
    let itself = alone.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let address = named.or(site.address).or(itself);
    let address =
        address.ok_or_else(|| wrong("it has no address that other nodes could reach".to_owned()))?;
    Ok(ServedPackage { file, listen: SocketAddr::new(address, site.port) })
}

/// What node `number` gets. Where the control plane serves a package, each node asks another one of it first: itself, if it is one.
fn prepare(run: &Run, served: Option<&[ServedPackage]>, number: usize) -> Task {
    let mut prepare = Prepare { first: number == 0, ..run.prepare.clone() };
    if let (Some(package), Some(served)) = (&run.package, served) {
        prepare.package = served.get(number).cloned();
        let first = number.checked_rem(served.len()).unwrap_or(0);
        let (after, before) = served.split_at(first);
        prepare.serving = before.iter().chain(after).map(|served| served.listen.to_string()).collect();
        for host in package.hosts.iter().rev() {
            let mirror = |site: &String| Mirror { host: host.clone(), url: format!("http://{site}/v2") };
            prepare.mirrors.splice(..0, prepare.serving.iter().map(mirror));
        }
    }
    Task::Prepare(prepare)
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
    let all: Vec<_> = record.places().into_iter().map(|place| node(place, &ssh, dir, say)).collect();
    let (masters, nodes) = all.split_at(record.masters().min(all.len()));
    each(nodes, |node| leave(node, keep)).await?;
    // Each takes itself out of etcd, which the others still are.
    for master in masters.iter().rev() {
        leave(master, keep).await?;
    }
    if keep { Ok(()) } else { std::fs::remove_dir_all(dir).map_err(LaunchError::io(dir)) }
}

fn node<'a>(place: Place, ssh: &'a Ssh, dir: &'a Path, say: Say<'a>) -> Node<'a> {
    Node { place, ssh, logs: dir, say }
}

async fn leave(node: &Node<'_>, keep: bool) -> Result<(), LaunchError> {
    if node.has_program().await? {
        node.work("removing", &Task::Remove { keep }, PREPARE_DEADLINE).await?;
        if !keep {
            node.remove_program().await?;
        }
    }
    Ok(())
}

/// Does something on all nodes at once, to the end of each; returns what came of it.
async fn each<N, F, T>(
    nodes: impl IntoIterator<Item = N>,
    work: impl Fn(N) -> F,
) -> Result<Vec<T>, LaunchError>
where
    F: Future<Output = Result<T, LaunchError>>,
{
    let results = join_all(nodes.into_iter().map(work)).await;
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(result) => done.push(result),
            Err(error) => errors.push(error),
        }
    }
    match errors.len() {
        0 => Ok(done),
        1 => Err(errors.remove(0)),
        _ => Err(LaunchError::Several(errors)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_launch_may_take_as_long_as_anybody_says() {
        let deadline =
            |commands, seconds| launch_deadline(&Launch { commands: vec![String::new(); commands], seconds });
        assert_eq!(deadline(2, 600), Duration::from_secs(1200) + STATUS_DEADLINE);
        assert_eq!(deadline(2, u64::MAX), Duration::MAX);
    }

    #[test]
    fn a_run_in_which_nobody_joins_asks_for_no_token() {
        let of = |joined: &[bool]| {
            let prepared: Vec<_> = joined.iter().map(|&joined| Prepared { changed: 0, joined }).collect();
            joins(&prepared)
        };
        assert!(of(&[false, false]) && of(&[true, true, false]));
        assert!(!of(&[false]) && !of(&[true]) && !of(&[true, true, true]));
    }

    #[test]
    fn nodes_ask_all_that_serve_the_package_each_another_one_first() {
        let served: Vec<_> = ["10.0.0.1:5200", "10.0.0.2:5201"]
            .map(|listen| ServedPackage { file: "/p".into(), listen: listen.parse().unwrap() })
            .into();
        let prepare = Prepare {
            mirrors: vec![Mirror { host: "a.example".to_owned(), url: "http://own".to_owned() }],
            ..Prepare::named("c")
        };
        let run = Run {
            prepare,
            package: Some(PackageSource::named("r.example/c:v1", &["a.example", "r.example"])),
            masters: Vec::new(),
            endpoint: None,
            nodes: Vec::new(),
            ssh: SshOptions::default(),
            launch: Launch { commands: Vec::new(), seconds: 1 },
            program: PathBuf::new(),
        };
        let of = |number| match super::prepare(&run, Some(&served), number) {
            Task::Prepare(prepare) => prepare,
            other => panic!("{other:?}"),
        };
        let urls = |prepare: &Prepare, host: &str| -> Vec<String> {
            let of_host = prepare.mirrors.iter().filter(|mirror| mirror.host == host);
            of_host.map(|mirror| mirror.url.clone()).collect()
        };
        let (first, second, third) = (of(0), of(1), of(2));
        assert_eq!(urls(&first, "r.example"), ["http://10.0.0.1:5200/v2", "http://10.0.0.2:5201/v2"]);
        assert_eq!(urls(&second, "r.example"), ["http://10.0.0.2:5201/v2", "http://10.0.0.1:5200/v2"]);
        assert_eq!(urls(&third, "a.example")[2..], ["http://own"]);
        assert_eq!(third.serving, first.serving);
        assert_eq!(second.package.as_ref(), served.get(1));
        assert_eq!(third.package, None);
        assert!(first.first && !second.first && !third.first);
        assert_eq!(super::prepare(&run, None, 1), Task::Prepare(run.prepare.clone()));
    }
}
