//! Memory does not grow with the image.

use anyhow::Result;

use super::build::MEMORY_LIMIT_MB;
use super::{GROUP, input, own};
use crate::figure::{Figure, Runs};
use crate::run::run_fed;

const GB: u64 = 1_000_000_000;
/// Sizes of files in bytes. What is in memory of an image is its list of files, some 300 bytes for each: few large files
/// show that their content is not, and as many files as ten root file systems have what their list takes.
const LARGE_FILES: u64 = 64 << 20;
const ROOT_FILES: u64 = 45_000;
/// Ten times the image takes no more memory, except for the allocator's mood and what is kept of each chunk.
const CONSTANT: f64 = 1.1;

/// Measures the figures of memory, on streams that never are files.
pub(super) fn measure(text: &[u8], runs: u16) -> Result<Vec<Figure>> {
    let (mut small, mut large, mut many) = (Runs::default(), Runs::default(), Runs::default());
    for _ in 0..runs {
        for (size, file_size, peaks) in [
            (GB, LARGE_FILES, &mut small),
            (10 * GB, LARGE_FILES, &mut large),
            (10 * GB, ROOT_FILES, &mut many),
        ] {
            let mut command = own::command("build-layer")?;
            let ran =
                run_fed(command.args(["-", "/dev/null"]), |out| input::stream(text, size, file_size, out))?;
            eprintln!("{:8.1} MB  peak memory, {} GB in {:.2} s", ran.peak_memory_mb, size / GB, ran.seconds);
            peaks.push(ran.peak_memory_mb);
        }
    }
    let limit = Runs::fixed(MEMORY_LIMIT_MB);
    let name = "peak memory, 10 GB in large files";
    let many_name = format!("peak memory, 10 GB in {} files", 10 * GB / ROOT_FILES);
    Ok(vec![
        Figure::new(GROUP, name, "MB", (&large, ("limit", &limit)), 1.0),
        Figure::new(GROUP, name, "MB", (&large, ("ours, 1 GB", &small)), CONSTANT),
        Figure::new(GROUP, many_name, "MB", (&many, ("limit", &limit)), 1.0),
    ])
}
