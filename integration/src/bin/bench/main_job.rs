//! The main job on the large image: from the build's warm cache to the registry, and from the registry to the end of
//! a program's start.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::cri::ContainerSpec;
use integration::node::{Node, NodeOptions};
use integration::peers::ContainerdVersion;
use integration::process;
use integration::servers::{Buildctl, UpstreamMode};
use rafs::digest::DigestAlgorithm;
use sha2::{Digest as _, Sha256};

use crate::figure::{Figure, Runs};
use crate::lab::{Lab, forget_page_cache};

const GROUP: &str = "main";
const EXPORT: &str = "export 860 MB from a warm cache";
/// No slower than the peer, or no more than the limit.
const AS_FAST: f64 = 1.0;
const OF_ZSTD: f64 = 0.75;
const OF_NYDUS: f64 = 0.5;
const OVER_THE_SESSION: f64 = 0.85;
const OF_THE_MACHINE: f64 = 1.4;
const OTHER_EXPORTERS: f64 = 1.05;
/// The compression level of exports that do not ask for one, and the size of their chunks.
const LEVEL: i32 = 3;
const CHUNK_SIZE: usize = 1 << 20;
/// At least eight times faster than the plain image.
const EIGHT_TIMES: f64 = 1.0 / 8.0;
const EXPORTER_LIMIT_MB: f64 = 200.0;
const DAEMON_LIMIT_MB: f64 = 60.0;
/// What BuildKit does by itself.
const PUSHED_IMAGE: &str = "image,push=true,registry.insecure=true";
/// What it does before an export of ours, and nothing else.
const UNCOMPRESSED: &str = "image,compression=uncompressed";
pub(crate) const PROGRAM: [&str; 3] = ["python3", "-c", "import numpy"];
const PROGRAM_DEADLINE: Duration = Duration::from_secs(180);
/// Proof that both sides read the same: every byte of the package.
const HASH_PACKAGE: &str = "cd /usr/lib/python3/dist-packages/numpy && find . -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum";

/// Measures all figures of the group.
pub(crate) fn measure(lab: &Lab, runs: u16) -> Result<Vec<Figure>> {
    let context = big_context(lab)?;
    let mut figures = export(lab, &context, runs)?;
    figures.extend(other_exporters(lab, &context, runs)?);
    figures.extend(start(lab, &context, runs)?);
    Ok(figures)
}

/// A build context with the large root file system.
pub(crate) fn big_context(lab: &Lab) -> Result<PathBuf> {
    let context = lab.subdir("big")?;
    let tar = lab.peers.big_rootfs()?;
    if fs::hard_link(&tar, context.join("big.tar")).is_err() {
        fs::copy(&tar, context.join("big.tar"))?;
    }
    Ok(context)
}

/// A Dockerfile whose only layer is the large root file system, below `place`: another place is another layer, which
/// no earlier run has left exported.
pub(crate) fn dockerfile(context: &Path, place: &str) -> Result<()> {
    let text = format!("FROM scratch\nADD big.tar {place}\n");
    fs::write(context.join("Dockerfile"), text).context("writing the Dockerfile")
}

fn export(lab: &Lab, context: &Path, runs: u16) -> Result<Vec<Figure>> {
    let registry = lab.registry.address();
    let (local, remote, theirs) = (lab.buildctl()?, lab.remote_buildctl()?, lab.plain_buildctl()?);
    let (mut local_runs, mut zstd_runs) = (Runs::default(), Runs::default());
    let (mut remote_runs, mut nydus_runs) = (Runs::default(), Runs::default());
    let mut floor = Floor::default();
    for run in 0..runs {
        let export = |buildctl: &Buildctl, side: &str, kind: &str| {
            let output = format!("type={kind},name={registry}/export:{side}-{run}");
            timed_export(lab, buildctl, context, &format!("/{side}-{run}/"), &output)
        };
        local_runs.push(export(&local, "local", "nydus-cluster")?.seconds);
        zstd_runs.push(export(&theirs, "zstd", &format!("{PUSHED_IMAGE},compression=zstd"))?.seconds);
        remote_runs.push(export(&remote, "remote", "nydus-cluster")?.seconds);
        let nydus = "compression=nydus,force-compression=true,oci-mediatypes=true";
        nydus_runs.push(export(&theirs, "nydus", &format!("{PUSHED_IMAGE},{nydus}"))?.seconds);
        let alone = export(&theirs, "alone", UNCOMPRESSED)?;
        floor.push(machine_seconds(&context.join("big.tar"))?, &alone)?;
    }
    let memory = process::peak_memory_bytes(lab.exporter.pid()?)?
        .max(process::peak_memory_bytes(lab.remote_exporter.pid()?)?);
    let memory = Runs::fixed(memory as f64 / 1e6);
    let limit = Runs::fixed(EXPORTER_LIMIT_MB);
    let zstd = ("BuildKit type=image,compression=zstd", &zstd_runs);
    let nydus = ("BuildKit type=image,compression=nydus", &nydus_runs);
    Ok(vec![
        Figure::new(GROUP, EXPORT, "s", (&local_runs, zstd), OF_ZSTD),
        Figure::new(GROUP, EXPORT, "s", (&local_runs, nydus), OF_NYDUS),
        Figure::new(
            GROUP,
            EXPORT,
            "s",
            (&local_runs, ("the machine's limit", &floor.machine)),
            OF_THE_MACHINE,
        ),
        Figure::new(
            GROUP,
            EXPORT,
            "s",
            (&local_runs, ("the limit, or buildkitd alone", &floor.alone)),
            OF_THE_MACHINE,
        ),
        Figure::new(
            GROUP,
            EXPORT,
            "s",
            (&local_runs, ("the limit with buildkitd's work", &floor.both)),
            OF_THE_MACHINE,
        ),
        Figure::new(GROUP, "the same over the session", "s", (&remote_runs, nydus), OVER_THE_SESSION),
        Figure::new(GROUP, "exporter peak memory", "MB", (&memory, ("limit", &limit)), AS_FAST),
    ])
}

/// What no export of ours can be faster than, in seconds.
#[derive(Default)]
struct Floor {
    /// All cores hash and compress, and do nothing else.
    machine: Runs,
    /// That, or what buildkitd alone takes to write the layer into its content store, where it takes longer: no layer has a
    /// digest before.
    alone: Runs,
    /// All cores do both, and nothing else.
    both: Runs,
}

impl Floor {
    /// `work`: processor time of hashing and compressing, in seconds. `alone`: buildkitd's export with nobody else at work.
    fn push(&mut self, work: f64, alone: &Exported) -> Result<()> {
        let cores = thread::available_parallelism().context("counting cores")?.get() as f64;
        let (machine, both) = (work / cores, (work + alone.worked) / cores);
        let worked = alone.worked;
        eprintln!(
            "{machine:8.2} s  the machine's limit; {both:.2} s with the {worked:.2} s that buildkitd works"
        );
        self.machine.push(machine);
        self.alone.push(machine.max(alone.seconds));
        self.both.push(both.max(alone.seconds));
        Ok(())
    }
}

/// Seconds that one core takes to hash and compress a layer, if it does nothing else: the layer's digest, those of its chunks,
/// the chunks' compression and the digest of the blob.
fn machine_seconds(tar: &Path) -> Result<f64> {
    let content = fs::read(tar).with_context(|| format!("reading {}", tar.display()))?;
    let start = Instant::now();
    let (mut compressor, mut blob) = (zstd::bulk::Compressor::new(LEVEL)?, Sha256::new());
    for chunk in content.chunks(CHUNK_SIZE) {
        std::hint::black_box(DigestAlgorithm::Blake3.digest(chunk));
        blob.update(compressor.compress(chunk)?);
    }
    std::hint::black_box((Sha256::digest(&content), blob.finalize()));
    Ok(start.elapsed().as_secs_f64())
}

/// BuildKit's own exporters to the client's disk, through ours and straight.
fn other_exporters(lab: &Lab, context: &Path, runs: u16) -> Result<Vec<Figure>> {
    dockerfile(context, "/")?;
    let (through, straight) = (lab.buildctl()?, lab.plain_buildctl()?);
    straight.build(context, &[])?;
    let target = lab.subdir("client")?.join("image.tar");
    ["tar", "oci"]
        .into_iter()
        .map(|kind| {
            let output = format!("type={kind},dest={}", target.display());
            let (mut ours, mut theirs) = (Runs::default(), Runs::default());
            // The first time, `oci` compresses.
            for run in 0..=runs {
                for (buildctl, side) in [(&through, &mut ours), (&straight, &mut theirs)] {
                    nix::unistd::sync();
                    let start = Instant::now();
                    buildctl.build(context, &[&output])?;
                    let seconds = start.elapsed().as_secs_f64();
                    eprintln!("{seconds:8.2} s  {kind}");
                    if run > 0 {
                        side.push(seconds);
                    }
                }
            }
            let name = format!("type={kind} through the exporter");
            Ok(Figure::new(GROUP, name, "s", (&ours, ("straight", &theirs)), OTHER_EXPORTERS))
        })
        .collect()
}

/// What an export took.
struct Exported {
    seconds: f64,
    /// Processor time of buildkitd's, in seconds.
    worked: f64,
}

fn timed_export(
    lab: &Lab,
    buildctl: &Buildctl,
    context: &Path,
    place: &str,
    output: &str,
) -> Result<Exported> {
    dockerfile(context, place)?;
    buildctl.build(context, &[])?;
    nix::unistd::sync();
    let worked = lab.buildkitd_processor_seconds()?;
    let start = Instant::now();
    buildctl.build(context, &[output])?;
    let seconds = start.elapsed().as_secs_f64();
    let worked = lab.buildkitd_processor_seconds()? - worked;
    eprintln!("{seconds:8.2} s  {output}");
    process::run(buildctl.command().args(["prune", "--all"]))?;
    Ok(Exported { seconds, worked })
}

/// Who runs the program.
#[derive(Debug, Clone, Copy)]
enum NodeKind {
    Ours,
    Upstream,
    Overlayfs,
}

/// What one cold start showed.
struct ColdStart {
    seconds: f64,
    package_hash: String,
    daemon_memory_mb: Option<f64>,
}

fn start(lab: &Lab, context: &Path, runs: u16) -> Result<Vec<Figure>> {
    let registry = lab.registry.address();
    let (lazy, plain) = (format!("{registry}/start:nydus"), format!("{registry}/start:gzip"));
    dockerfile(context, "/")?;
    lab.buildctl()?.build(context, &[&format!("type=nydus-cluster,name={lazy}")])?;
    let gzip = "compression=gzip,force-compression=true";
    let output = format!("type=image,name={plain},push=true,registry.insecure=true,{gzip}");
    lab.plain_buildctl()?.build(context, &[&output])?;

    let (mut ours, mut upstream, mut overlayfs, mut memory) =
        (Runs::default(), Runs::default(), Runs::default(), Runs::default());
    for run in 0..runs {
        let own = cold_start(lab, NodeKind::Ours, &lazy, run)?;
        let nydus = cold_start(lab, NodeKind::Upstream, &lazy, run)?;
        let oci = cold_start(lab, NodeKind::Overlayfs, &plain, run)?;
        ensure!(
            own.package_hash == nydus.package_hash && own.package_hash == oci.package_hash,
            "the sides did not read the same bytes: {} (ours), {} (nydusd), {} (overlayfs)",
            own.package_hash,
            nydus.package_hash,
            oci.package_hash
        );
        ours.push(own.seconds);
        upstream.push(nydus.seconds);
        overlayfs.push(oci.seconds);
        memory.push(own.daemon_memory_mb.context("no memory of our daemon")?);
    }
    let limit = Runs::fixed(DAEMON_LIMIT_MB);
    let name = "cold start to the end of import numpy";
    Ok(vec![
        Figure::new(GROUP, name, "s", (&ours, ("containerd, overlayfs, gzip", &overlayfs)), EIGHT_TIMES),
        Figure::new(GROUP, name, "s", (&ours, ("nydus-snapshotter, nydusd FUSE", &upstream)), AS_FAST),
        Figure::new(GROUP, "daemon peak memory", "MB", (&memory, ("limit", &limit)), AS_FAST),
    ])
}

/// Pulls the image on a node that has never seen it, and runs the program to its end.
fn cold_start(lab: &Lab, side: NodeKind, image: &str, run: u16) -> Result<ColdStart> {
    let dir: PathBuf = lab.subdir(&format!("{side:?}-{run}").to_lowercase())?;
    let mut node = match side {
        NodeKind::Ours => Node::ours(&lab.peers, &dir, &lab.pause, &NodeOptions::default())?,
        NodeKind::Upstream => Node::upstream(&lab.peers, &dir, &lab.pause, UpstreamMode::OnDemand)?,
        NodeKind::Overlayfs => Node::overlayfs(&lab.peers, &dir, &lab.pause, ContainerdVersion::default())?,
    };
    let pod = node.pod("bench")?;
    forget_page_cache()?;
    let start = Instant::now();
    node.cri().pull(image)?;
    let pulled = start.elapsed().as_secs_f64();
    let container = node.cri().run_container(&pod, &ContainerSpec::new("program", image, &PROGRAM))?;
    let code = node.cri().wait_exit(&container, PROGRAM_DEADLINE)?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(code == 0, "the program ended with {code} ({side:?}): {}", node.cri().logs(&container)?);
    eprintln!("{seconds:8.2} s  {side:?} (pull {pulled:.2} s)");

    let hash = ContainerSpec::new("hash", image, &["sh", "-c", HASH_PACKAGE]);
    let container = node.cri().run_container(&pod, &hash)?;
    node.cri().wait_exit(&container, PROGRAM_DEADLINE)?;
    let package_hash = node.cri().logs(&container)?.trim().to_owned();
    let daemon_memory_mb = match side {
        // What front and worker share counts twice.
        NodeKind::Ours => {
            let family = process::families(&[node.snapshotter()?.daemon_pid()?])?;
            let peaks = family.into_iter().map(process::peak_memory_bytes);
            Some(peaks.sum::<std::io::Result<u64>>()? as f64 / 1e6)
        }
        _ => None,
    };
    drop(node);
    fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    Ok(ColdStart { seconds, package_hash, daemon_memory_mb })
}
