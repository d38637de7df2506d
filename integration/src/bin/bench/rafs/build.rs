//! Building layers: time, memory, sizes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::peer::{self, NydusImage};
use super::{GROUP, input, own, proof};
use crate::figure::{Figure, Runs};
use crate::run::{remove, run};

/// What half of the cores' time gives, except for what one thread has to do alone.
const HALF: f64 = 0.5;
/// Small files cost nydus-image more than their bytes.
const SMALL_FILES: f64 = 0.4;
/// No larger than the peer's.
const AS_SMALL: f64 = 1.0;
/// What compressing small files together has to give.
const WITH_BATCHES: f64 = 0.93;
/// The least size in bytes of batches, and so of chunks, that gives it.
const BATCH_SIZE: u32 = 2 << 20;
pub(super) const MEMORY_LIMIT_MB: f64 = 96.0;

/// Measures the figures of building.
pub(super) fn measure(
    nydus_image: &NydusImage,
    big: &Path,
    text: &[u8],
    dir: &Path,
    runs: u16,
) -> Result<Vec<Figure>> {
    let bench = BuildBench { nydus_image, dir, runs };
    let mut figures = bench.times("build, 860 MB root file system", big, HALF)?;
    figures.extend(bench.sizes(big)?);
    let small = dir.join("small.tar");
    input::source_tree(text, &small)?;
    figures.extend(bench.times("build, 100,000 small files", &small, SMALL_FILES)?);
    fs::remove_file(&small)?;
    Ok(figures)
}

struct BuildBench<'a> {
    nydus_image: &'a NydusImage,
    dir: &'a Path,
    runs: u16,
}

impl BuildBench<'_> {
    /// Time and memory of building a tar's layer, and the proof that both sides' layers hold the same.
    fn times(&self, name: &str, tar: &Path, goal: f64) -> Result<Vec<Figure>> {
        let (our_blob, their_blob) = (self.dir.join("ours.blob"), self.dir.join("theirs.blob"));
        let (mut ours, mut theirs, mut memory) = (Runs::default(), Runs::default(), Runs::default());
        let mut their_memory = 0.0;
        // So that nobody is the first to read it.
        io::copy(&mut File::open(tar)?, &mut io::sink())?;
        for _ in 0..self.runs {
            remove(&our_blob)?;
            remove(&their_blob)?;
            let ran = run(own::command("build-layer")?.arg(tar).arg(&our_blob))?;
            ours.push(ran.seconds);
            memory.push(ran.peak_memory_mb);
            let peer = run(&mut self.nydus_image.create(tar, &their_blob))?;
            theirs.push(peer.seconds);
            their_memory = peer.peak_memory_mb.max(their_memory);
            eprintln!("{:8.2} s (peer {:.2} s)  {name}", ran.seconds, peer.seconds);
        }
        eprintln!("{their_memory:8.1} MB  peer's peak memory, {name}");
        let ours_image = self.image("ours", &our_blob)?;
        let theirs_image = self.image("theirs", &their_blob)?;
        same(&ours_image, &theirs_image)?;
        self.nydus_image.check(&ours_image.bootstrap)?;
        let limit = Runs::fixed(MEMORY_LIMIT_MB);
        Ok(vec![
            Figure::new(GROUP, name, "s", (&ours, (peer::NAME, &theirs)), goal),
            Figure::new(GROUP, format!("peak memory, {name}"), "MB", (&memory, ("limit", &limit)), 1.0),
        ])
    }

    /// Sizes of the images that [`Self::times`] has left, and with batches.
    fn sizes(&self, tar: &Path) -> Result<Vec<Figure>> {
        let ours = self.image("ours", &self.dir.join("ours.blob"))?;
        let theirs = self.image("theirs", &self.dir.join("theirs.blob"))?;
        let blob = self.dir.join("batches.blob");
        let batch_size = BATCH_SIZE.to_string();
        run(own::command("build-layer")?.arg(tar).arg(&blob).args(["--batches", &batch_size]))?;
        let batches = self.image("batches", &blob)?;
        // Other chunks than the peer's have other digests.
        proof::verify(&batches.bootstrap, &batches.blobs)?;
        let fixed = |image: &ImageFiles| Ok::<_, anyhow::Error>(Runs::fixed(image.size_mb()?));
        let (ours_size, theirs_size, batches_size) = (fixed(&ours)?, fixed(&theirs)?, fixed(&batches)?);
        let bootstrap =
            |image: &ImageFiles| Ok::<_, anyhow::Error>(Runs::fixed(own::size_mb(&image.bootstrap)?));
        let (ours_bootstrap, theirs_bootstrap) = (bootstrap(&ours)?, bootstrap(&theirs)?);
        let peer = (peer::NAME, &theirs_size);
        let name = format!("blob and bootstrap, batches of {} MiB", BATCH_SIZE >> 20);
        Ok(vec![
            Figure::new(GROUP, "blob and bootstrap", "MB", (&ours_size, peer), AS_SMALL),
            Figure::new(GROUP, name, "MB", (&batches_size, peer), WITH_BATCHES),
            Figure::new(
                GROUP,
                "bootstrap",
                "MB",
                (&ours_bootstrap, (peer::NAME, &theirs_bootstrap)),
                AS_SMALL,
            ),
        ])
    }

    /// The image of one layer, by its side's own merger.
    fn image(&self, side: &str, blob: &Path) -> Result<ImageFiles> {
        let dir = self.dir.join(side);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let layer = peer::extract_bootstrap(blob, &dir)?;
        let bootstrap = dir.join("image.boot");
        let mut command = match side {
            "theirs" => self.nydus_image.merge(&bootstrap, &[layer]),
            _ => own::merge(&bootstrap, &[layer])?,
        };
        run(&mut command)?;
        Ok(ImageFiles { bootstrap, blob: blob.to_owned(), blobs: dir.join("blobs") })
    }
}

/// An image of one layer.
struct ImageFiles {
    bootstrap: PathBuf,
    blob: PathBuf,
    /// A directory of its blobs by digest.
    blobs: PathBuf,
}

impl ImageFiles {
    fn size_mb(&self) -> Result<f64> {
        Ok(own::size_mb(&self.bootstrap)? + own::size_mb(&self.blob)?)
    }
}

/// Fails unless both images show the same files, and all chunks in their blobs are what these files' digests say.
fn same(ours: &ImageFiles, theirs: &ImageFiles) -> Result<()> {
    let mut shown = Vec::new();
    for image in [ours, theirs] {
        proof::verify(&image.bootstrap, &image.blobs)?;
        shown.push(proof::fingerprint(&image.bootstrap, &image.blobs)?);
    }
    ensure!(
        shown[0] == shown[1],
        "the sides did not build the same: {} (ours), {} (theirs)",
        shown[0],
        shown[1]
    );
    Ok(())
}
