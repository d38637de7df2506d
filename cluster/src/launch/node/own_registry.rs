//! The registry that the image has in its tree, as `cluster save DIR` and sealos fill it for `COPY registry`: one more place on the node where
//! container images are.
//!
//! It is served out of the tree on a loopback port. What it has as it is, containerd finds by `certs.d`; what it has as RAFS is read lazily, as
//! from any repository.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use registry::Repository;
use registry::client::{Client, ClientConfig};
use registry::layout::Layout;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::commands::{progress, systemctl};
use super::image::UNITS;
use super::ledger::Ledger;
use super::state::State;
use super::{ports, unit};
use crate::launch::error::LaunchError;
use crate::launch::images::images;
use crate::launch::task::{Images, Mirror};
use crate::lock::Lock;
use crate::package::LOCK_FILE;
use crate::saved::{DIRECTORY_REPOSITORY, REPOSITORIES, SavedAt, SavedImages};

/// The unit that serves it.
pub(super) const UNIT: &str = "nydus-cluster-registry.service";

/// Where it is in the tree.
const FOLDER: &str = "registry";
/// For containerd, every host that nothing else is said of.
const ANY_HOST: &str = "_default";

/// What it has.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OwnRegistry {
    /// The port that it is served on.
    port: u16,
    /// Hosts whose images it has as they are.
    hosts: Vec<String>,
    /// Those that it has as RAFS.
    pub(super) images: Option<Images>,
}

impl OwnRegistry {
    /// Where containerd finds what it has as it is: under names without hosts.
    pub(super) fn mirrors(&self) -> impl Iterator<Item = Mirror> {
        let url = format!("http://127.0.0.1:{}/v2", self.port);
        self.hosts.iter().map(move |host| Mirror { host: host.clone(), url: url.clone() })
    }

    /// Looks at what is in `tree`, which is served on `port`.
    fn find(tree: &Path, port: u16, registry: &ClientConfig) -> Result<Self, LaunchError> {
        let root = tree.join(FOLDER);
        let wrong = |reason: String| LaunchError::wrong(root.display().to_string(), reason);
        let client = Client::new(registry.clone()).map_err(|error| wrong(error.to_string()))?;
        let saved = Handle::current().block_on(SavedImages::find(&SavedAt::Directory(root.clone()), &client));
        let saved = saved.map_err(|error| wrong(error.to_string()))?;
        let file = tree.join(LOCK_FILE);
        let lock = file.is_file().then(|| Lock::read(&file)).transpose();
        let lock = lock.map_err(|error| LaunchError::wrong(LOCK_FILE, error.to_string()))?;
        let images = saved.as_ref().filter(|saved| saved.table().is_some()).map(|saved| {
            let repository = format!("127.0.0.1:{port}/{DIRECTORY_REPOSITORY}");
            let repository = Repository::parse(&repository).map_err(|error| wrong(error.to_string()))?;
            images(saved, &repository, lock.as_ref())
        });
        let images = images.transpose()?;
        let lock = lock.or_else(|| saved.map(|saved| saved.lock().clone()));
        let hosts = match lock {
            Some(lock) => {
                as_they_are(&lock, &Layout::directory(&root)).map_err(|error| wrong(error.to_string()))?
            }
            // sealos has the node ask its registry for every image.
            None => vec![ANY_HOST.to_owned()],
        };
        Ok(Self { port, hosts, images })
    }
}

/// The hosts of `lock` of which `layout` has all images as they are. Where a name leads to a nydus image in an image's place, who pulls it whole
/// could not run it.
fn as_they_are(lock: &Lock, layout: &Layout) -> Result<Vec<String>, registry::layout::LayoutError> {
    let mut hosts = BTreeMap::new();
    for image in &lock.images {
        let name = image.reference.repository().name();
        let has = layout.has_manifest(name, &image.digest)?;
        *hosts.entry(image.reference.host()).or_insert(true) &= has;
    }
    Ok(hosts.into_iter().filter(|(_, has)| *has).map(|(host, _)| host.to_owned()).collect())
}

/// Serves it, if the image has one, and notes what it has.
pub(super) fn bring(
    ledger: &mut Ledger,
    state: &mut State,
    program: &Path,
    registry: &ClientConfig,
) -> Result<(), LaunchError> {
    let tree = state.tree();
    if !tree.join(FOLDER).join(REPOSITORIES).is_dir() {
        return Ok(());
    }
    let port = match &state.saved.registry {
        Some(known) => known.port,
        None => {
            let port = ports::free(Ipv4Addr::LOCALHOST, ports::OWN_REGISTRY)?;
            // Before it is served: whoever takes all away has to know of it.
            state.saved.registry = Some(OwnRegistry::find(&tree, port, registry)?);
            state.save()?;
            port
        }
    };
    let (unit, needed) = (unit(program, &tree.join(FOLDER), port), state.needed());
    let put = |ledger: &mut Ledger| {
        ledger.file(&Path::new(UNITS).join(UNIT), &unit)?;
        let drop_in = Path::new(UNITS).join(format!("{UNIT}.d/10-nydus-cluster.conf"));
        needed.map_or(Ok(()), |needed| ledger.file(&drop_in, &needed))
    };
    let restart = || {
        systemctl(&["daemon-reload"])?;
        // One that runs may listen elsewhere.
        systemctl(&["try-restart", UNIT])
    };
    progress("serving the image's own registry");
    ledger.put_for(UNIT, put, restart)?;
    systemctl(&["enable", "--now", UNIT])
}

fn unit(program: &Path, root: &Path, port: u16) -> String {
    let (program, root) = (program.display(), root.display());
    unit::serving(
        "nydus-cluster registry serve, with the registry of the cluster image",
        "Before=containerd.service",
        &format!("{program} registry serve --package {root} --listen 127.0.0.1:{port}"),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use registry::digest::sha256;

    use super::*;

    /// A tree with a registry that has one image, whose manifest is `manifest`.
    fn tree(manifest: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let paths = registry::layout::Paths::new(&dir.path().join(FOLDER));
        let digest = sha256(manifest);
        let write = |path: &Path, content: &[u8]| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write(&paths.data(&digest), manifest);
        write(&paths.revision("team/app", &digest), digest.as_ref().as_bytes());
        write(&paths.tag_current("team/app", "v1"), digest.as_ref().as_bytes());
        dir
    }

    fn found(tree: &Path) -> OwnRegistry {
        let registry = ClientConfig::default();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _guard = runtime.enter();
        OwnRegistry::find(tree, 5300, &registry).unwrap()
    }

    fn lock(tree: &Path, images: &[(&str, &[u8])]) {
        let line = |(name, manifest): &(&str, &[u8])| {
            let digest = sha256(manifest);
            format!(
                r#"{{"image":"{name}","digest":"{digest}","media_type":"application/vnd.oci.image.manifest.v1+json","size":2,"platforms":[],"asked_by":[]}}"#
            ) + "\n"
        };
        let lines: String = images.iter().map(line).collect();
        let head = "{\"images.lock\":1,\"platforms\":[\"linux/amd64\"]}\n";
        fs::write(tree.join(LOCK_FILE), head.to_owned() + &lines).unwrap();
    }

    #[test]
    fn a_registry_of_sealos_answers_for_every_host() {
        let tree = tree(b"{}");
        let found = found(tree.path());
        assert_eq!(found.images, None);
        let expected = Mirror { host: "_default".to_owned(), url: "http://127.0.0.1:5300/v2".to_owned() };
        assert_eq!(found.mirrors().collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn it_answers_for_hosts_of_which_it_has_all_images_as_they_are() {
        let tree = tree(b"{}");
        lock(tree.path(), &[("a.example/team/app:v1", b"{}"), ("b.example/team/app:v1", b"{ }")]);
        assert_eq!(found(tree.path()).hosts, ["a.example"]);
        lock(tree.path(), &[("a.example/team/app:v1", b"{}"), ("a.example/team/db:v1", b"{}")]);
        assert_eq!(found(tree.path()).hosts, Vec::<String>::new());
    }
}
