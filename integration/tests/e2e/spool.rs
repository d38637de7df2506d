//! What an exporter keeps on its disk for a build is gone with the build, or with the next exporter if this one is killed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::servers::{Exporter, ExporterOptions};
use integration::{demo, peers, process, wait};

use crate::build_lab::BuildLab;
use crate::fixture::Fixture;

/// How long a step of another party may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Bytes of a layer that does not compress: far more than is on its way to a client that takes none of it.
const LAYER_BYTES: u64 = 96 << 20;

/// A build whose tar an exporter has gathered, and which nobody takes.
struct HeldBuild {
    buildctl: Child,
    log: PathBuf,
    /// Where the tar is gathered.
    folder: PathBuf,
}

impl HeldBuild {
    fn start(lab: &BuildLab<'_>, exporter: &Exporter, context: &Path, spool: &Path) -> Result<Self> {
        let before = folders(spool)?;
        let log = lab.dir.join(format!("build-{}.log", before.len()));
        let output = "type=oci,nydus-cluster=true,name=spool:v1,dest=-";
        let mut command = lab.buildctl(exporter)?.build_command(context, &[output]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut held = Self { buildctl: command.spawn()?, log, folder: PathBuf::new() };
        held.folder = wait::until("the tar is gathered", DEADLINE, || {
            if let Some(status) = held.buildctl.try_wait()? {
                bail!("the build ended before: {status}\n{}", process::tail(&held.log));
            }
            let mut new = folders(spool)?.into_iter().filter(|folder| !before.contains(folder));
            Ok(new.find(|folder| bytes_in(folder) >= LAYER_BYTES))
        })?;
        Ok(held)
    }

    /// Takes the tar, if a path is given, and waits for the build's end; returns whether it succeeded.
    fn end(mut self, tar: Option<&Path>) -> Result<bool> {
        let taken = match (self.buildctl.stdout.take(), tar) {
            (Some(mut stdout), Some(tar)) => {
                let mut file = File::create(tar)?;
                Some(thread::spawn(move || io::copy(&mut stdout, &mut file)))
            }
            _ => None,
        };
        let status = wait::until("the build ends", DEADLINE, || Ok(self.buildctl.try_wait()?))?;
        if let Some(taken) = taken {
            taken.join().ok().context("taking the tar panicked")??;
        }
        Ok(status.success())
    }
}

impl Drop for HeldBuild {
    fn drop(&mut self) {
        // Where it has ended there is nothing to end.
        let _ = self.buildctl.kill();
        let _ = self.buildctl.wait();
    }
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

/// Bytes of all files in `dir`, of which some may be gone before they are looked at.
fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.filter_map(|entry| entry.ok().map(size)).sum()
}

pub(crate) fn killed(fixture: &Fixture) -> Result<()> {
    let lab = BuildLab::new(fixture, "spool")?;
    let spool = lab.dir.join("spool-dir");
    fs::create_dir(&spool)?;
    let config = format!("[registry.upload]\nspool_dir = {spool:?}\n");
    let options = ExporterOptions { config, ..ExporterOptions::default() };
    let context = demo::random_files(fixture.peers(), &lab.dir.join("c"), &[("data", LAYER_BYTES)])?;

    let living = lab.exporter("living", &options)?;
    let goes_on = HeldBuild::start(&lab, &living, &context, &spool)?;
    let mut killed = lab.exporter("killed", &options)?;
    let breaks_off = HeldBuild::start(&lab, &killed, &context, &spool)?;
    killed.server().kill()?;
    let left = breaks_off.folder.clone();
    ensure!(!breaks_off.end(None)?, "a build succeeded whose exporter was killed");
    ensure!(bytes_in(&left) >= LAYER_BYTES, "a process that is killed removes nothing");

    let _next = lab.exporter("killed", &options)?;
    ensure!(!left.exists(), "{} of the exporter that was killed is still there", left.display());
    ensure!(
        folders(&spool)? == [goes_on.folder.clone()],
        "the living exporter's folder alone: {:?}",
        folders(&spool)?
    );
    let tar = lab.dir.join("image.tar");
    ensure!(goes_on.end(Some(&tar))?, "the other exporter's build failed");
    let image = format!("oci-archive:{}", tar.display());
    process::run(Command::new(peers::nydus_cluster()?).args(["image", "check", &image]))?;
    wait::until_true("nothing is left of the build", DEADLINE, || {
        folders(&spool).is_ok_and(|left| left.is_empty())
    })
}
