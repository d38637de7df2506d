//! Our own side: what the library does, as a process of its own as nydus-image is.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use integration::peers;
use rafs::bootstrap::Bootstrap;
use rafs::build::{BuildOptions, build_layer};

/// What this program does when the benchmark runs it as one side of a figure.
#[derive(Debug, Subcommand)]
pub(crate) enum Own {
    /// Build a layer's blob of a tar stream (`-`: standard input)
    #[command(hide = true)]
    BuildLayer {
        /// The tar
        source: PathBuf,
        /// The blob
        blob: PathBuf,
        /// Size of chunks in bytes, and of batches
        #[arg(long)]
        batches: Option<u32>,
    },
    /// Open a bootstrap, look a path up, and print how many milliseconds that took
    #[command(hide = true)]
    LookUp {
        /// The bootstrap
        bootstrap: PathBuf,
        /// The path
        path: String,
    },
}

impl Own {
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Self::BuildLayer { source, blob, batches } => build(source, blob, *batches),
            Self::LookUp { bootstrap, path } => look_up(bootstrap, path),
        }
    }
}

/// A command of this program; see [`Own`].
pub(super) fn command(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg(name);
    Ok(command)
}

/// Merges layers' bootstraps, each named by its blob's digest: the command that users have for it.
pub(super) fn merge(output: &Path, layers: &[PathBuf]) -> Result<Command> {
    let mut command = Command::new(peers::nydus_cluster()?);
    command.args(["image", "merge", "--output"]).arg(output).args(layers);
    Ok(command)
}

fn build(source: &Path, blob: &Path, batches: Option<u32>) -> Result<()> {
    let input: Box<dyn Read + Send> = if source == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(source).with_context(|| format!("opening {}", source.display()))?)
    };
    let mut options = BuildOptions::default();
    if let Some(size) = batches {
        (options.chunk_size, options.batch_size) = (size, batches);
    }
    let out = File::create(blob).with_context(|| format!("creating {}", blob.display()))?;
    build_layer(input, out, &options)?;
    Ok(())
}

fn look_up(path: &Path, name: &str) -> Result<()> {
    let start = Instant::now();
    let bootstrap = Bootstrap::open(path)?;
    let found = bootstrap.lookup_path(name.as_bytes())?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    ensure!(found.is_some(), "{} has no {name}", path.display());
    println!("{milliseconds}");
    Ok(())
}

/// Size of a file in MB.
pub(super) fn size_mb(path: &Path) -> Result<f64> {
    Ok(fs::metadata(path).with_context(|| format!("size of {}", path.display()))?.len() as f64 / 1e6)
}
