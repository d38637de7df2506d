//! The build: container images first, then their lock, then the cluster image with the lock in it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::Services;
use crate::peers::{self, ContainerdVersion, Peers};
use crate::process;
use crate::servers::{Buildctl, Buildkitd, EmbeddedRegistry, Exporter};

const KUBERNETES: [&str; 11] = [
    "coredns",
    "etcd",
    "etcdctl",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubeadm",
    "kubectl",
    "kubelet",
    "pause",
];
const CNI_DIR: &str = "/usr/lib/cni";
const CNI: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// What the builds' context has in addition to the files of the source: a file here, and its path there.
pub(super) fn inputs(peers: &Peers) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut inputs = vec![
        (peers.demo_layer("base")?, "base.tar".into()),
        (peers.pause_rootfs()?, "busybox.tar".into()),
        (peers.helm()?, "tools/helm".into()),
        (peers::system("runc")?, "tools/runc".into()),
    ];
    for program in KUBERNETES {
        inputs.push((peers.kubernetes(program)?, Path::new("kubernetes").join(program)));
    }
    for program in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        let file = peers.containerd(ContainerdVersion::V1_7, program)?;
        inputs.push((file, Path::new("containerd").join(program)));
    }
    for plugin in CNI {
        let file = Path::new(CNI_DIR).join(plugin);
        anyhow::ensure!(file.exists(), "{} (run scripts/deps)", file.display());
        inputs.push((file, Path::new("cni").join(plugin)));
    }
    Ok(inputs)
}

/// Where images are built.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workshop<'a> {
    /// The build cache and the context of builds, which all storages share.
    pub(super) dir: &'a Path,
    /// The registry's storage, to which they are pushed.
    pub(super) storage: &'a Path,
}

/// What tells one state of everything that goes in from another, without the program, which has its own storage.
pub(super) fn stamp(peers: &Peers, services: Services) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(services.values());
    for (file, _) in inputs(peers)? {
        hash.update(state(&file)?);
    }
    for (path, file) in sources(&peers::demo_sources().join("cluster"), Path::new(""))? {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update(fs::read(file)?);
    }
    Ok(hex::encode(hash.finalize()))
}

/// What tells one state of our own program from another.
pub(super) fn program_stamp() -> Result<String> {
    Ok(hex::encode(Sha256::digest(state(&peers::nydus_cluster()?)?)))
}

/// What changes with a file.
fn state(file: &Path) -> Result<String> {
    let found = fs::metadata(file).with_context(|| format!("looking at {}", file.display()))?;
    Ok(format!("{} {} {:?}\n", file.display(), found.len(), found.modified()?))
}

/// The files of the source: their paths in it, and where they are.
fn sources(root: &Path, directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut names = fs::read_dir(root.join(directory))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let path = directory.join(name);
        if root.join(&path).is_dir() {
            found.extend(sources(root, &path)?);
        } else {
            found.push((path.clone(), root.join(&path)));
        }
    }
    Ok(found)
}

/// Builds all that is not in buildkitd's cache, and pushes it.
pub(super) fn all(peers: &Peers, services: Services, workshop: Workshop<'_>) -> Result<()> {
    let context = workshop.dir.join("context");
    stage(peers, services, &context)?;
    let builder = Builder::start(peers, workshop)?;
    for (stage, image) in services.images() {
        builder.container_image(&context, stage, image, Layers::Cached)?;
    }
    lock(peers, &builder.registry, builder.run.path(), &context)?;
    builder.cluster_image(&context, services.image(), "")
}

/// Builds the cluster image as a plain image.
pub(super) fn plain(peers: &Peers, services: Services, workshop: Workshop<'_>) -> Result<()> {
    let context = workshop.dir.join("context");
    stage(peers, services, &context)?;
    let builder = Builder::start(peers, workshop)?;
    lock(peers, &builder.registry, builder.run.path(), &context)?;
    builder.plain_image(&context, &context, None, &services.plain(), Layers::Cached)
}

/// Builds a second version, of which the services and the root file system are new and Kubernetes is not.
pub(super) fn second(peers: &Peers, services: Services, workshop: Workshop<'_>) -> Result<()> {
    // Not the first one's: its files get other times.
    let context = workshop.dir.join("context-of-second");
    stage_copies(peers, services, &context)?;
    let builder = Builder::start(peers, workshop)?;
    let first: Vec<_> = services.images().collect();
    for ((stage, image), (_, old)) in services.second_images().zip(first) {
        if image != old {
            builder.container_image(&context, stage, &image, Layers::New)?;
        }
    }
    lock(peers, &builder.registry, builder.run.path(), &context)?;
    builder.plain_image(&context, &context, None, &services.second_plain(), Layers::Cached)?;
    let dictionary = format!(",chunk-dict={}/{}", builder.registry.address(), services.image());
    builder.cluster_image(&context, &services.second_image(), &dictionary)?;
    fs::remove_dir_all(&context).with_context(|| format!("removing {}", context.display()))
}

/// Whether layers are taken from buildkitd's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layers {
    Cached,
    New,
}

/// The servers of a build.
struct Builder {
    peers: Peers,
    buildkitd: Buildkitd,
    registry: EmbeddedRegistry,
    run: TempDir,
}

impl Builder {
    /// Starts them over the storage and the build cache.
    fn start(peers: &Peers, workshop: Workshop<'_>) -> Result<Self> {
        // Sockets have to have short paths.
        let run = tempfile::tempdir()?;
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let registry = EmbeddedRegistry::serve(&run.path().join("registry"), workshop.storage, loopback)?;
        let cache = workshop.dir.join("buildkit");
        let buildkitd = Buildkitd::start_with_root(peers, &run.path().join("b"), &cache)?;
        Ok(Self { peers: peers.clone(), buildkitd, registry, run })
    }

    fn container_image(&self, context: &Path, stage: &str, image: &str, layers: Layers) -> Result<()> {
        self.plain_image(context, &context.join("images"), Some(stage), image, layers)
    }

    fn plain_image(
        &self,
        context: &Path,
        dockerfile: &Path,
        stage: Option<&str>,
        image: &str,
        layers: Layers,
    ) -> Result<()> {
        eprintln!("building {image}");
        let name = format!("{}/{image}", self.registry.address());
        let gzip = "compression=gzip,force-compression=true,oci-mediatypes=true";
        let output = format!("type=image,name={name},push=true,registry.insecure=true,{gzip}");
        let mut command = build(&self.buildctl(self.buildkitd.address())?, context, dockerfile, &output);
        command.args(stage.map(|stage| ["--opt".to_owned(), format!("target={stage}")]).iter().flatten());
        command.args((layers == Layers::New).then_some("--no-cache"));
        process::run_within(&mut command, BUILD_DEADLINE).map(drop)
    }

    /// The cluster image, as a nydus image; `keys` are further ones of the output.
    fn cluster_image(&self, context: &Path, image: &str, keys: &str) -> Result<()> {
        eprintln!("building {image}");
        let store = self.buildkitd.content_store();
        let exporter =
            Exporter::start_with_store(&self.run.path().join("e"), &self.buildkitd.address(), store)?;
        let output = format!("type=nydus-cluster,name={}/{image}{keys}", self.registry.address());
        let mut command = build(&self.buildctl(exporter.address())?, context, context, &output);
        process::run_within(&mut command, BUILD_DEADLINE).map(drop)
    }

    fn buildctl(&self, address: String) -> Result<Buildctl> {
        Buildctl::new(&self.peers, address)
    }
}

fn build(buildctl: &Buildctl, context: &Path, dockerfile: &Path, output: &str) -> Command {
    let mut command = buildctl.command();
    command.args(["build", "--progress=plain", "--frontend=dockerfile.v0", "--output", output]);
    command.arg("--local").arg(format!("context={}", context.display()));
    command.arg("--local").arg(format!("dockerfile={}", dockerfile.display()));
    command
}

/// Packages are downloaded and installed, and hundreds of megabytes compressed, on a loaded host.
const BUILD_DEADLINE: Duration = Duration::from_secs(900);

/// Makes the context of all builds at `context`.
fn stage(peers: &Peers, services: Services, context: &Path) -> Result<()> {
    // Programs are large, and not copied where the file system can share them.
    stage_with(peers, &services.values(), context, |file, target| {
        if fs::hard_link(file, target).is_err() {
            fs::copy(file, target)?;
        }
        Ok(())
    })
}

/// Makes the context of a second version: the same files with other times, and so other layers.
fn stage_copies(peers: &Peers, services: Services, context: &Path) -> Result<()> {
    stage_with(peers, &services.second_values(), context, |file, target| fs::copy(file, target).map(drop))
}

fn stage_with(
    peers: &Peers,
    values: &str,
    context: &Path,
    put: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<()> {
    match fs::remove_dir_all(context) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let files = sources(&peers::demo_sources().join("cluster"), Path::new(""))?.into_iter();
    let inputs = inputs(peers)?.into_iter().map(|(file, path)| (path, file));
    for (path, file) in files.chain(inputs) {
        let target = context.join(path);
        fs::create_dir_all(target.parent().unwrap_or(context))?;
        put(&file, &target).with_context(|| format!("copying {}", file.display()))?;
    }
    fs::write(context.join("rootfs/charts/services.values.yaml"), values)?;
    Ok(())
}

/// Finds and locks the images of the tree, which only this registry has.
fn lock(peers: &Peers, registry: &EmbeddedRegistry, run: &Path, context: &Path) -> Result<()> {
    let mut command = cluster(registry, run)?;
    command.arg("images").arg(context.join("rootfs"));
    command.args(["--platform", "linux/amd64", "--lock"]).arg(context.join("images.lock"));
    command.arg("--helm").arg(peers.helm()?);
    process::run(&mut command).map(drop)
}

/// Saves the images of a cluster image as RAFS, next to it; what was saved under `base` is not stored again.
pub(super) fn save(image: &str, base: Option<&str>, storage: &Path) -> Result<()> {
    eprintln!("saving the images of {image}");
    let run = tempfile::tempdir()?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let registry = EmbeddedRegistry::serve(&run.path().join("registry"), storage, loopback)?;
    let host = registry.address();
    let mut command = cluster(&registry, run.path())?;
    command.arg("save").arg(format!("{host}/{image}")).arg("--to").arg(format!("{host}/{image}-images"));
    command.args(base.map(|base| format!("--base={host}/{base}")));
    process::run_within(&mut command, BUILD_DEADLINE).map(drop)
}

/// `nydus-cluster cluster`, to be completed, that finds the images of all hosts in this registry.
pub(super) fn cluster(registry: &EmbeddedRegistry, run: &Path) -> Result<Command> {
    let certs = run.join("certs.d");
    for host in ["registry.k8s.io", "registry.example"] {
        fs::create_dir_all(certs.join(host))?;
        let url = format!("http://{}/v2/{host}", registry.address());
        let text = format!("[host.\"{url}\"]\n  override_path = true\n");
        fs::write(certs.join(host).join("hosts.toml"), text)?;
    }
    let config = run.join("config.toml");
    fs::write(&config, format!("[registry]\ncerts_dir = \"{}\"\n", certs.display()))?;
    let mut command = Command::new(peers::nydus_cluster()?);
    command.arg("--config").arg(config).arg("cluster");
    Ok(command)
}
