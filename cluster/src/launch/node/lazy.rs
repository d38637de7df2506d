//! What reads images lazily on the node, and container images for which it does: what runs for that, and what it is told.
//!
//! ```text
//! nydus-cluster-daemon       mounts images and fetches what is read of them
//! nydus-cluster-snapshotter  has the cluster image mounted, is told which chains of layers are RAFS, and answers containerd
//! nydus-cluster-serve        answers for container images' names: indexes, manifests, configs
//! containerd                 starts after all of them
//! ```
//!
//! | in the node's directory | is |
//! |---|---|
//! | `images.toml` | the configuration of daemon and snapshotter: the node's own, with the places below |
//! | `snapshotter/` | snapshots, state, mounts and the cache of chunks |
//! | `documents/` | what is answered for the images' names |

mod units;

use std::path::{Path, PathBuf};

use registry::Reference;
use registry::client::{Client, ClientConfig};
use snapshotter::SnapshotterConfig;
use snapshotter::control::{self, BackendSpec};
use tokio::runtime::Handle;
use toml::{Table, Value};

use super::commands::{progress, systemctl};
use super::image::UNITS;
use super::ledger::Ledger;
use super::own;
use crate::launch::error::LaunchError;
use crate::launch::task::{Images, Mirror};
use crate::saved::{SavedAt, SavedImages};
use crate::serve::Kept;

pub(super) use units::{MOUNTING, SERVE};

/// Where `docker login` of root leaves credentials.
const ROOTS_CREDENTIALS: &str = "/root/.docker/config.json";
/// Where kubeadm leaves the kubelet's, with which pull secrets of this node's pods are read. Until then there are none.
const KUBELETS_CREDENTIALS: &str = "/etc/kubernetes/kubelet.conf";

/// Where containerd finds what the node answers for.
pub(super) fn mirrors(images: &Images, port: u16) -> Vec<Mirror> {
    let mirror = |(host, name): (&String, &String)| Mirror {
        host: host.clone(),
        url: format!("http://127.0.0.1:{port}/v2/{name}"),
    };
    images.hosts.iter().map(mirror).collect()
}

/// The socket that containerd connects to.
pub(super) fn socket() -> PathBuf {
    SnapshotterConfig::default().listen.path().to_owned()
}

/// The snapshotter, to be told what to do.
pub(super) fn control() -> control::Client {
    control::Client::new(SnapshotterConfig::default().control_socket())
}

/// Where the snapshotter keeps everything.
pub(super) fn snapshotter_root(dir: &Path) -> PathBuf {
    dir.join("snapshotter")
}

/// Whether the node has units of its own by the names of those that mount images.
pub(super) fn is_taken(ledger: &Ledger) -> bool {
    let mut paths = MOUNTING.into_iter().map(|unit| Path::new(UNITS).join(unit));
    paths.any(|path| !ledger.has(&path) && path.exists())
}

/// Starts what mounts images.
pub(super) fn start(ledger: &mut Ledger, dir: &Path, program: &Path) -> Result<(), LaunchError> {
    let file = settings_file(dir);
    let settings = settings(&own::text()?, &snapshotter_root(dir))
        .map_err(|error| LaunchError::wrong(own::FILE, error))?;
    let put = |ledger: &mut Ledger| {
        ledger.file_with_mode(&file, &settings, 0o600)?;
        put_units(ledger, units::mounting(program, &file))
    };
    // One that runs may have been told otherwise. What it has mounted stays.
    ledger.put_for(MOUNTING[0], put, || restart(&MOUNTING))?;
    systemctl(&[&["enable", "--now"], MOUNTING.as_slice()].concat())
}

/// Starts what else containerd needs for `images`, before it starts itself.
pub(super) fn bring(
    ledger: &mut Ledger,
    dir: &Path,
    program: &Path,
    images: &Images,
    port: u16,
    registry: &ClientConfig,
) -> Result<(), LaunchError> {
    let name = format!("{}@{}", images.repository, images.digest);
    let wrong = |error: String| LaunchError::wrong(name.clone(), error);
    let documents = dir.join("documents");
    // Those of an earlier run of the same images need nobody.
    let kept = Kept::open(&documents).map_err(|error| wrong(error.to_string()))?;
    let saved = match kept {
        Some(kept) if *kept.images() == images.digest => None,
        _ => Some(fetch(&name, &documents, registry).map_err(wrong)?),
    };
    start(ledger, dir, program)?;
    let units = units::answering(program, &settings_file(dir), &documents, &name, port);
    // One that runs may answer for other images.
    ledger.put_for(SERVE, |ledger| put_units(ledger, units), || restart(&[SERVE]))?;
    systemctl(&["enable", "--now", SERVE])?;
    tell(&name, images, saved, registry).map_err(|error| LaunchError::wrong(name.clone(), error))
}

fn settings_file(dir: &Path) -> PathBuf {
    dir.join("images.toml")
}

fn put_units(ledger: &mut Ledger, units: Vec<(PathBuf, String)>) -> Result<(), LaunchError> {
    for (file, text) in units {
        let path = Path::new(UNITS).join(file);
        if !ledger.has(&path) && path.exists() {
            let reason = "the node has this already: take it away first, or run the cluster with --plain";
            return Err(LaunchError::wrong(path.display().to_string(), reason));
        }
        ledger.file(&path, &text)?;
    }
    Ok(())
}

fn restart(services: &[&str]) -> Result<(), LaunchError> {
    systemctl(&["daemon-reload"])?;
    systemctl(&[&["try-restart"], services].concat())
}

/// Opens the images and keeps their documents.
fn fetch(name: &str, documents: &Path, registry: &ClientConfig) -> Result<SavedImages, String> {
    let saved = open(name, registry)?;
    progress(format_args!("keeping the documents of {} images", saved.lock().images.len()));
    let kept = Handle::current().block_on(Kept::keep(documents, &saved));
    kept.map(|_| saved).map_err(|error| error.to_string())
}

/// Tasks run on a thread that may block.
fn open(name: &str, registry: &ClientConfig) -> Result<SavedImages, String> {
    let reference = Reference::parse(name).map_err(|error| error.to_string())?;
    let client = Client::new(registry.clone()).map_err(|error| error.to_string())?;
    let at = SavedAt::Repository(reference);
    Handle::current().block_on(SavedImages::open(&at, &client)).map_err(|error| error.to_string())
}

/// Has the snapshotter run the images as RAFS.
fn tell(
    name: &str,
    images: &Images,
    saved: Option<SavedImages>,
    registry: &ClientConfig,
) -> Result<(), String> {
    let client = control();
    let runtime = Handle::current();
    let sets = runtime.block_on(client.list()).map_err(|error| error.to_string())?;
    if saved.is_none() && sets.iter().any(|set| set.name == name) {
        return Ok(());
    }
    let saved = saved.map_or_else(|| open(name, registry), Ok)?;
    let table = saved.table().ok_or("nothing was saved as RAFS")?;
    let backend = BackendSpec::Registry { repository: images.repository.clone() };
    let set = table.image_set(name, vec![backend]).map_err(|error| error.to_string())?;
    runtime
        .block_on(async {
            client.put(&set).await?;
            // Those of an earlier run that stopped before it began.
            for other in sets.iter().filter(|other| other.name != name) {
                client.remove(&other.name).await?;
            }
            Ok(())
        })
        .map_err(|error: control::ClientError| error.to_string())
}

/// The configuration of daemon and snapshotter: the node's own `text`, which holds for registries and all else, with places of our own.
fn settings(text: &str, root: &Path) -> Result<String, String> {
    let mut settings = own::parse(text)?;
    let complete_after = own::complete_after(&settings)?;
    let mut set = |path: [&str; 2], name: &str, value: Value| {
        let mut at = &mut settings;
        for part in path.into_iter().filter(|part| !part.is_empty()) {
            let next = at.entry(part).or_insert_with(|| Table::new().into());
            at = next.as_table_mut().ok_or_else(|| format!("expected a table at {part}"))?;
        }
        at.insert(name.to_owned(), value);
        Ok::<_, String>(())
    };
    let text = |path: &Path| Value::from(path.to_string_lossy().into_owned());
    let defaults = SnapshotterConfig::default();
    set(["snapshotter", ""], "root", text(root))?;
    set(["snapshotter", ""], "listen", text(defaults.listen.path()))?;
    set(["snapshotter", ""], "socket", text(&defaults.control_socket()))?;
    set(["snapshotter", "daemon"], "socket", text(defaults.daemon.socket.path()))?;
    // Its unit starts it.
    set(["snapshotter", "daemon"], "spawn", false.into())?;
    set(["daemon", ""], "socket", text(defaults.daemon.socket.path()))?;
    set(["daemon", ""], "cache_dir", text(&root.join("cache")))?;
    set(["daemon", "prefetch"], "complete_after_seconds", own::seconds(complete_after))?;
    let snapshotter = settings.get_mut("snapshotter").and_then(Value::as_table_mut);
    let snapshotter = snapshotter.ok_or("expected a table at snapshotter")?;
    snapshotter.entry("kubeconfig").or_insert_with(|| KUBELETS_CREDENTIALS.into());
    // Units have no home directory.
    let registry = settings.entry("registry").or_insert_with(|| Table::new().into());
    let registry = registry.as_table_mut().ok_or("expected a table at registry")?;
    registry.entry("docker_config").or_insert_with(|| ROOTS_CREDENTIALS.into());
    toml::to_string(&settings).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_says_holds_but_for_places() {
        let own = "[registry]\ncerts_dir = \"/certs\"\n[snapshotter]\nroot = \"/theirs\"\n[daemon]\ncache_quota_bytes = 7\n";
        let text = settings(own, Path::new("/ours")).unwrap();
        let settings: Table = toml::from_str(&text).unwrap();
        assert_eq!(settings["registry"]["certs_dir"].as_str(), Some("/certs"));
        assert_eq!(settings["snapshotter"]["root"].as_str(), Some("/ours"));
        assert_eq!(settings["snapshotter"]["daemon"]["spawn"].as_bool(), Some(false));
        assert_eq!(settings["daemon"]["cache_quota_bytes"].as_integer(), Some(7));
        assert_eq!(settings["daemon"]["cache_dir"].as_str(), Some("/ours/cache"));
        assert_eq!(settings["daemon"]["prefetch"]["complete_after_seconds"].as_integer(), Some(300));
        assert_eq!(settings["snapshotter"]["kubeconfig"].as_str(), Some(KUBELETS_CREDENTIALS));
        let own = "[snapshotter]\nkubeconfig = \"/own\"\n[daemon.prefetch]\ncomplete_after_seconds = 5\n";
        let settings: Table = toml::from_str(&super::settings(own, Path::new("/ours")).unwrap()).unwrap();
        assert_eq!(settings["daemon"]["prefetch"]["complete_after_seconds"].as_integer(), Some(5));
        assert_eq!(settings["snapshotter"]["kubeconfig"].as_str(), Some("/own"));
        assert!(super::settings("daemon = 1\n", Path::new("/ours")).unwrap_err().contains("daemon"));
    }
}
