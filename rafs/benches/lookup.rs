//! What a lookup in a bootstrap costs, compared with reading the same bytes by system calls.
//!
//! ```text
//! cargo bench -p rafs --bench lookup
//! ```

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rafs::bootstrap::{self, Bootstrap, WriteOptions};
use rafs::build::{BuildOptions, build_layer};

const DIRECTORIES: u32 = 100;
const FILES_EACH: u32 = 1000;
const ROUNDS: u32 = 1_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test` runs benchmarks too, without the argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (directory, file) in
        (0..DIRECTORIES).flat_map(|directory| (0..FILES_EACH).map(move |file| (directory, file)))
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("d{directory:03}/file-{file:04}"), std::io::empty())?;
    }
    let layer = build_layer(&tar.into_inner()?[..], Vec::new(), &BuildOptions::default())?;
    let image = rafs::merge::merge(vec![layer])?;
    let path = std::env::temp_dir().join(format!("lookup-{}.boot", std::process::id()));
    bootstrap::write(&image, &WriteOptions::default(), &mut File::create(&path)?)?;
    let (mapped, file) = (Bootstrap::open(&path)?, File::open(&path)?);
    std::fs::remove_file(&path)?;
    let pages = mapped.size() / 4096;
    let directory = mapped.lookup(mapped.root(), b"d042")?.ok_or("a directory that was packed")?;
    let names: Vec<String> = (0..FILES_EACH).map(|file| format!("file-{file:04}")).collect();
    // Spread over the names.
    let name = |round: u32| names[(round * 7919 % FILES_EACH) as usize].as_bytes();
    println!("{} bytes, {} inodes", mapped.size(), mapped.inode_count());
    measure("a lookup", |round| {
        black_box(mapped.lookup(directory, name(round)).is_ok());
    });
    measure("a lookup, and whether all could be read", |round| {
        black_box(mapped.lookup(directory, name(round)).is_ok() && mapped.sound().is_ok());
    });
    measure("pread of 4 KiB", |round| {
        let mut page = [0; 4096];
        let at = u64::from(round) * 7919 % pages * 4096;
        black_box(file.read_exact_at(&mut page, at).is_ok());
    });
    Ok(())
}

fn measure(what: &str, mut run: impl FnMut(u32)) {
    (0..ROUNDS / 10).for_each(&mut run);
    let start = Instant::now();
    (0..ROUNDS).for_each(run);
    println!("{what}: {:.0} ns", start.elapsed().as_nanos() as f64 / f64::from(ROUNDS));
}
