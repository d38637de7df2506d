//! Builds a layer of a tar file or a directory, for measuring and profiling: time, memory, sizes.
//!
//! ```text
//! cargo bench -p rafs --bench build -- SOURCE [blob=FILE] [bootstrap=FILE] [threads=N] [batch=BYTES] [level=N] [chunk=BYTES] [runs=N]
//! ```
//!
//! The default is nydus-image's: zstd level 3, BLAKE3, 1 MiB; the blob goes nowhere.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rafs::bootstrap::{self, WriteOptions};
use rafs::build::{BuildOptions, build_directory, build_layer};
use rafs::compress::Compressor;
use rafs::merge::merge;
use rafs::tree::Layer;

#[derive(Default)]
struct Arguments {
    source: Option<PathBuf>,
    blob: Option<PathBuf>,
    bootstrap: Option<PathBuf>,
    runs: usize,
    options: BuildOptions,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut arguments = Arguments { runs: 1, ..Arguments::default() };
    // Cargo adds `--bench`.
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.split_once('=') {
            None => arguments.source = Some(argument.into()),
            Some(("blob", path)) => arguments.blob = Some(path.into()),
            Some(("bootstrap", path)) => arguments.bootstrap = Some(path.into()),
            Some(("runs", count)) => arguments.runs = count.parse()?,
            Some(("threads", count)) => arguments.options.threads = count.parse()?,
            Some(("batch", size)) => arguments.options.batch_size = Some(size.parse()?),
            Some(("chunk", size)) => arguments.options.chunk_size = size.parse()?,
            Some(("level", level)) => {
                arguments.options.compressor = Compressor::Zstd { level: level.parse()? }
            }
            Some((name, _)) => return Err(format!("unknown argument {name}").into()),
        }
    }
    Ok(arguments)
}

fn build(source: &Path, blob: Option<&Path>, options: &BuildOptions) -> Result<Layer, Box<dyn Error>> {
    let blob: Box<dyn Write + Send> = match blob {
        Some(path) => Box::new(File::create(path)?),
        None => Box::new(io::sink()),
    };
    if source.is_dir() {
        return Ok(build_directory(source, blob, options)?);
    }
    Ok(build_layer(File::open(source)?, blob, options)?)
}

/// Peak memory of this process in KiB, so far.
fn peak_memory() -> io::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown");
    Ok(peak.trim().to_owned())
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { source, blob, bootstrap, runs, options } = arguments()?;
    // `cargo test` runs benchmarks too, without a source.
    let Some(source) = source else { return Ok(()) };
    for _ in 0..runs {
        let start = Instant::now();
        let layer = build(&source, blob.as_deref(), &options)?;
        let built = start.elapsed();
        let own = &layer.blobs[0];
        println!(
            "{:.3} s, {} nodes, {} chunks, blob {} bytes (chunk data {}), peak {}",
            built.as_secs_f64(),
            layer.tree.node_count(),
            own.chunks.len(),
            own.stored_size,
            own.compressed_size,
            peak_memory()?
        );
        if let Some(path) = &bootstrap {
            let image = merge(vec![layer])?;
            let mut out = BufWriter::new(File::create(path)?);
            bootstrap::write(&image, &WriteOptions::default(), &mut out)?;
            out.flush()?;
            println!("bootstrap after {:.3} s", start.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
