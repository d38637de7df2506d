//! Saving all container images of a cluster image from one registry to another.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use cluster::save::COMPRESSION_LEVEL;
use flate2::bufread::MultiGzDecoder;
use integration::cluster_image::{self, ClusterImage};
use integration::peers::{self, Peers};
use integration::servers::EmbeddedRegistry;

use super::{GROUP, SERVICES};
use crate::figure::{Figure, Runs};
use crate::run::run;

const OF_SKOPEO: f64 = 0.7;
const OF_CRANE: f64 = 1.0;
const OF_THE_CORES: f64 = 1.25;
/// As many images at once as `cluster save` looks at.
const AT_ONCE: usize = 8;
const CHUNK_SIZE: u64 = 1 << 20;

/// Who saves, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Saver {
    Ours,
    Skopeo,
    Crane,
    OursAsRafs,
}

struct SaveBench<'a> {
    peers: &'a Peers,
    image: &'a ClusterImage,
    source: EmbeddedRegistry,
    dir: &'a Path,
}

/// Measures all forms.
pub(super) fn measure(peers: &Peers, image: &ClusterImage, dir: &Path, runs: u16) -> Result<Vec<Figure>> {
    fs::create_dir_all(dir)?;
    let source = image.serve(&dir.join("source"), std::net::Ipv4Addr::LOCALHOST.into())?;
    let bench = SaveBench { peers, image, source, dir };
    let layers: Vec<PathBuf> = image.layers(SERVICES)?.into_iter().collect();
    let (mut ours, mut skopeo, mut crane) = (Runs::default(), Runs::default(), Runs::default());
    let (mut as_rafs, mut cores) = (Runs::default(), Runs::default());
    // The first time, images are read from the disk.
    for number in 0..=runs {
        let put = |side: &mut Runs, seconds: f64| {
            if number > 0 {
                side.push(seconds);
            }
        };
        put(&mut ours, bench.save(Saver::Ours)?);
        put(&mut skopeo, bench.save(Saver::Skopeo)?);
        put(&mut crane, bench.save(Saver::Crane)?);
        put(&mut as_rafs, bench.save(Saver::OursAsRafs)?);
        put(&mut cores, cores_limit(&layers)?);
    }
    let plain = "save, plain form";
    let one_by_one = ("skopeo copy, one by one", &skopeo);
    Ok(vec![
        Figure::new(GROUP, plain, "s", (&ours, one_by_one), OF_SKOPEO),
        Figure::new(GROUP, plain, "s", (&ours, ("crane copy, eight at once", &crane)), OF_CRANE),
        Figure::new(
            GROUP,
            "save, RAFS form",
            "s",
            (&as_rafs, ("gunzip and zstd on all cores", &cores)),
            OF_THE_CORES,
        ),
    ])
}

impl SaveBench<'_> {
    /// Seconds until all images are in a registry that has nothing.
    fn save(&self, side: Saver) -> Result<f64> {
        let dir = self.dir.join("target");
        let target = EmbeddedRegistry::start(&dir)?;
        let ran = run(&mut self.command(side, &target)?)?;
        eprintln!("{:8.2} s  save, {side:?}", ran.seconds);
        if side != Saver::OursAsRafs {
            for digest in self.image.blobs(SERVICES)? {
                ensure!(target.blob_file(&digest).exists(), "{side:?} has not saved {digest}");
            }
        }
        drop(target);
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        Ok(ran.seconds)
    }

    fn command(&self, side: Saver, target: &EmbeddedRegistry) -> Result<Command> {
        let (source, target) = (self.source.address(), target.address());
        match side {
            Saver::Ours | Saver::OursAsRafs => {
                let mut command = cluster_image::command(&self.source, &self.dir.join("ours"))?;
                command.arg("save").arg(format!("{source}/{}", SERVICES.image()));
                command.arg("--to").arg(format!("{target}/saved:v1"));
                command.args(if side == Saver::Ours { &["--plain", "--no-rafs"][..] } else { &[] });
                Ok(command)
            }
            // One repository, as ours: what is there already is found.
            Saver::Skopeo => {
                let skopeo = peers::system("skopeo")?;
                let copy = format!(
                    "{} copy --quiet --src-tls-verify=false --dest-tls-verify=false",
                    skopeo.display()
                );
                self.script(
                    "set -e; while read -r from to; do $COPY docker://$from docker://$to; done",
                    &copy,
                    target,
                )
            }
            Saver::Crane => {
                let copy = format!("{} copy --insecure", self.peers.crane()?.display());
                self.script(&format!("xargs -P {AT_ONCE} -n 2 $COPY"), &copy, target)
            }
        }
    }

    /// A shell's command that gets a line for each image, from where it is copied and to where.
    fn script(&self, script: &str, copy: &str, target: std::net::SocketAddr) -> Result<Command> {
        let list = self.dir.join("list");
        let lines: String = SERVICES
            .images()
            .map(|(stage, image)| format!("{}/{image} {target}/saved:{stage}\n", self.source.address()))
            .collect();
        fs::write(&list, lines).with_context(|| format!("writing {}", list.display()))?;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("exec <{}; {script}", list.display())).env("COPY", copy);
        Ok(command)
    }
}

/// Seconds that all cores take to decompress these layers and to compress what comes out as it is saved, if they do nothing else.
fn cores_limit(layers: &[PathBuf]) -> Result<f64> {
    let mut open: Vec<(u64, &PathBuf)> =
        layers.iter().map(|layer| Ok((fs::metadata(layer)?.len(), layer))).collect::<Result<_>>()?;
    // The largest are taken first, so that no core ends long before the others.
    open.sort();
    let open = Mutex::new(open);
    let cores = thread::available_parallelism().context("counting cores")?;
    let start = Instant::now();
    thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let next = open.lock().map_err(|_| anyhow!("another core failed"))?.pop();
                let Some((_, layer)) = next else { return Ok(()) };
                compress_again(layer).with_context(|| layer.display().to_string())?;
            }
        };
        let threads: Vec<_> = (0..cores.get()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a core failed"))?)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{seconds:8.2} s  gunzip and zstd on {cores} cores");
    Ok(seconds)
}

fn compress_again(layer: &Path) -> Result<()> {
    let mut content = MultiGzDecoder::new(BufReader::with_capacity(1 << 16, File::open(layer)?));
    let mut compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?;
    let mut chunk = Vec::new();
    loop {
        chunk.clear();
        if content.by_ref().take(CHUNK_SIZE).read_to_end(&mut chunk)? == 0 {
            return Ok(());
        }
        std::hint::black_box(compressor.compress(&chunk)?);
    }
}
