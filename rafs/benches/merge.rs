//! Merges layers' bootstraps, for measuring and profiling.
//!
//! ```text
//! cargo bench -p rafs --bench merge -- OUTPUT BOOTSTRAP...
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rafs::bootstrap::{self, Bootstrap, WriteOptions};
use rafs::merge::merge;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds `--bench`.
    let mut paths = std::env::args().skip(1).filter(|argument| argument != "--bench").map(PathBuf::from);
    // `cargo test` runs benchmarks too, without arguments.
    let Some(output) = paths.next() else { return Ok(()) };
    let start = Instant::now();
    let read = |path: PathBuf| Bootstrap::open(Path::new(&path))?.to_layer();
    let layers = paths.map(read).collect::<Result<Vec<_>, _>>()?;
    let (count, nodes) = (layers.len(), layers.iter().map(|layer| layer.tree.node_count()).sum::<usize>());
    let read = start.elapsed();
    let image = merge(layers)?;
    let merged = start.elapsed();
    let mut out = BufWriter::new(File::create(&output)?);
    bootstrap::write(&image, &WriteOptions::default(), &mut out)?;
    out.flush()?;
    println!(
        "{count} layers, {nodes} nodes: {:.3} s (read {:.3}, merge {:.3}, write {:.3}), {} blobs",
        start.elapsed().as_secs_f64(),
        read.as_secs_f64(),
        (merged - read).as_secs_f64(),
        (start.elapsed() - merged).as_secs_f64(),
        image.blobs.len()
    );
    Ok(())
}
