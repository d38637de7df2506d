//! The exporter when it knows most of an image already, and when eight builds want it at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use integration::process;
use integration::servers::{Buildctl, Exporter, ExporterOptions};

use crate::figure::{Figure, Runs};
use crate::lab::Lab;

const GROUP: &str = "exporter";
/// No more than the limit.
const WITHIN: f64 = 1.0;
const SMALL_CHANGE_LIMIT_SECONDS: f64 = 0.15;
const RESTARTED_LIMIT_SECONDS: f64 = 0.3;
/// Manifests alone: none of it is a blob.
const PUSHED_AGAIN_LIMIT_MB: f64 = 0.001;
const MEMORY_LIMIT_MB: f64 = 200.0;
const BUILDS_AT_ONCE: usize = 8;
/// What BuildKit does by itself, with its own nydus conversion.
const THEIRS: &str =
    "image,push=true,registry.insecure=true,compression=nydus,force-compression=true,oci-mediatypes=true";

/// A side that exports: ours on the machine of buildkitd, ours over the session, BuildKit's own.
struct Builder {
    name: &'static str,
    buildctl: Buildctl,
    kind: &'static str,
}

/// Measures all figures of the group.
pub(crate) fn measure(lab: &Lab, runs: u16) -> Result<Vec<Figure>> {
    let context = lab.subdir("layers")?;
    let tar = lab.peers.big_rootfs()?;
    link(&tar, &context.join("big.tar"))?;
    fs::write(context.join("Dockerfile"), "FROM scratch\nADD big.tar /\nCOPY small /small\n")?;
    let mut figures = small_change(lab, &context, runs)?;
    figures.extend(restarted(lab, &context, runs)?);
    figures.push(at_once(lab, &context)?);
    Ok(figures)
}

fn link(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}

impl Builder {
    fn name(&self, lab: &Lab) -> String {
        format!("{}/layers-{}:v1", lab.registry.address(), self.name)
    }

    /// Seconds that the export of `context` takes, whose build is cached: what a build takes longer with it than without.
    fn export(&self, lab: &Lab, context: &Path) -> Result<f64> {
        self.build(context, None)?;
        nix::unistd::sync();
        let without = self.build(context, None)?;
        let output = format!("type={},name={}", self.kind, self.name(lab));
        let seconds = self.build(context, Some(&output))? - without;
        eprintln!("{seconds:8.2} s  {} (and {without:.2} s for the build)", self.name);
        Ok(seconds)
    }

    fn build(&self, context: &Path, output: Option<&str>) -> Result<f64> {
        let start = Instant::now();
        self.buildctl.build(context, output.as_slice())?;
        Ok(start.elapsed().as_secs_f64())
    }
}

fn theirs(lab: &Lab) -> Result<Builder> {
    Ok(Builder { name: "buildkit", buildctl: lab.plain_buildctl()?, kind: THEIRS })
}

fn small_change(lab: &Lab, context: &Path, runs: u16) -> Result<Vec<Figure>> {
    let ours = |name, buildctl| Builder { name, buildctl, kind: "nydus-cluster" };
    let sides = [ours("local", lab.buildctl()?), ours("remote", lab.remote_buildctl()?), theirs(lab)?];
    let mut measured = [Runs::default(), Runs::default(), Runs::default()];
    // The first time everything is new.
    for run in 0..=runs {
        for (side, runs) in sides.iter().zip(&mut measured) {
            fs::write(context.join("small"), format!("{} {run}", side.name))?;
            let seconds = side.export(lab, context)?;
            if run > 0 {
                runs.push(seconds);
            }
        }
    }
    let [local, remote, buildkit] = &measured;
    let limit = Runs::fixed(SMALL_CHANGE_LIMIT_SECONDS);
    let peer = ("BuildKit type=image,compression=nydus", buildkit);
    Ok(vec![
        Figure::new(GROUP, "one small layer changed", "s", (local, ("limit", &limit)), WITHIN),
        Figure::new(GROUP, "one small layer changed", "s", (local, peer), WITHIN),
        Figure::new(GROUP, "the same over the session", "s", (remote, ("limit", &limit)), WITHIN),
    ])
}

fn restarted(lab: &Lab, context: &Path, runs: u16) -> Result<Vec<Figure>> {
    let small = context.join("small");
    let theirs = theirs(lab)?;
    // Each side has a layer of its own: BuildKit hands out a layer as it first made a blob of it, here a nydus blob.
    fs::write(&small, "theirs")?;
    theirs.export(lab, context)?;
    let (mut buildkit, mut pushed) = (Runs::default(), Runs::default());
    let mut measured = [Runs::default(), Runs::default()];
    for run in 0..=runs {
        fs::write(&small, "ours")?;
        for (content_store, runs) in [true, false].into_iter().zip(&mut measured) {
            let name = if content_store { "restarted" } else { "restarted-remote" };
            let mut exporter = exporter(lab, &format!("{name}-{run}"), name, content_store)?;
            let buildctl = Buildctl::new(&lab.peers, exporter.address())?;
            let start = lab.registry.access_log().mark()?;
            let seconds = Builder { name, buildctl, kind: "nydus-cluster" }.export(lab, context)?;
            exporter.server().stop()?;
            if run > 0 {
                runs.push(seconds);
                let requests = lab.registry.access_log().since(start)?;
                let blobs = requests.iter().filter(|request| !request.path.contains("/manifests/"));
                pushed.push(blobs.map(|request| request.bytes_received).sum::<u64>() as f64 / 1e6);
            }
        }
        fs::write(&small, "theirs")?;
        buildkit.push(theirs.export(lab, context)?);
    }
    let [local, remote] = &measured;
    let limit = Runs::fixed(RESTARTED_LIMIT_SECONDS);
    let none = Runs::fixed(PUSHED_AGAIN_LIMIT_MB);
    let peer = ("BuildKit type=image,compression=nydus", &buildkit);
    let name = "nothing changed, exporter restarted";
    Ok(vec![
        Figure::new(GROUP, name, "s", (local, ("limit", &limit)), WITHIN),
        Figure::new(GROUP, name, "s", (local, peer), WITHIN),
        Figure::new(GROUP, "restarted, over the session", "s", (remote, ("limit", &limit)), WITHIN),
        Figure::new(GROUP, "restarted, over the session", "s", (remote, peer), WITHIN),
        Figure::new(GROUP, "blobs pushed again", "MB", (&pushed, ("limit", &none)), WITHIN),
    ])
}

/// An exporter that has just been started, with what those before it under the same `cache` kept.
fn exporter(lab: &Lab, name: &str, cache: &str, content_store: bool) -> Result<Exporter> {
    let options = ExporterOptions {
        content_store: content_store.then(|| lab.content_store().to_owned()),
        layer_cache: Some(lab.subdir(cache)?),
        ..ExporterOptions::default()
    };
    Exporter::start_with(&lab.subdir(name)?, &lab.buildkitd_address(), &options)
}

/// Builds side by side that share the large layer, none of it known.
fn at_once(lab: &Lab, context: &Path) -> Result<Figure> {
    let exporter = exporter(lab, "at-once", "at-once-layers", true)?;
    let mut builds = Vec::new();
    for number in 0..BUILDS_AT_ONCE {
        let own: PathBuf = lab.subdir(&format!("at-once-{number}"))?;
        link(&context.join("big.tar"), &own.join("big.tar"))?;
        fs::copy(context.join("Dockerfile"), own.join("Dockerfile"))?;
        fs::write(own.join("small"), format!("build {number}"))?;
        let output = format!("type=nydus-cluster,name={}/at-once-{number}:v1", lab.registry.address());
        let buildctl = Buildctl::new(&lab.peers, exporter.address())?;
        builds.push(thread::spawn(move || buildctl.build(&own, &[&output])));
    }
    for build in builds {
        build.join().map_err(|_| anyhow!("a build panicked"))??;
    }
    let converted = exporter.log().matches("layer converted").count();
    ensure!(converted == BUILDS_AT_ONCE + 1, "{converted} conversions of a shared layer and one a build");
    let memory = Runs::fixed(process::peak_memory_bytes(exporter.pid()?)? as f64 / 1e6);
    let limit = Runs::fixed(MEMORY_LIMIT_MB);
    Ok(Figure::new(GROUP, "peak memory, eight builds at once", "MB", (&memory, ("limit", &limit)), WITHIN))
}
