//! Programs that read, and look at every byte.
//!
//! They are processes of their own. The process that holds a mount's descriptor, or starts its daemon, must have no file of
//! it open: closing one asks the daemon, and both the end of a process and the start of another close files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use test_support::noise;

use crate::eventually;
use crate::node::Process;

/// Names the directory to read from to the process that does.
const ROOT: &str = "NYDUS_CLUSTER_TEST_LOAD";
const FILES: u64 = 40;
const FILE_BYTES: usize = 400_000;
const READ_BYTES: usize = 40_000;
const READERS: u64 = 4;
/// Reads that are told with one line.
const STEP: u64 = 20;

/// Files with content of their own.
pub(crate) fn files() -> Vec<(String, Vec<u8>)> {
    (0..FILES).map(|seed| (format!("f{seed:03}"), noise(1000 + seed, FILE_BYTES))).collect()
}

/// A process that reads.
pub(crate) struct Load {
    reads: Arc<AtomicU64>,
    process: Process,
}

impl Load {
    /// Reads [`files`] in `root` until told to end. The first error or wrong byte ends it.
    pub(crate) fn start(root: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "--ignored", "--nocapture", "load::reads_until_it_is_killed"])
            .env(ROOT, root);
        let mut process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        let (reads, output) = (Arc::new(AtomicU64::new(0)), process.0.stdout.take().unwrap());
        let counted = Arc::clone(&reads);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line == "read" {
                    counted.fetch_add(STEP, Ordering::Relaxed);
                }
            }
        });
        Self { reads, process }
    }

    /// Waits for so many more reads, all of them right.
    pub(crate) fn wait_for_reads(&mut self, count: u64) {
        let enough = self.reads.load(Ordering::Relaxed) + count;
        eventually("the load goes on", || {
            assert!(self.process.running(), "a reader met an error");
            (self.reads.load(Ordering::Relaxed) >= enough).then_some(())
        });
    }
}

/// Not a test: the process of [`Load`].
#[test]
#[ignore = "runs as a process of its own"]
fn reads_until_it_is_killed() {
    let root = PathBuf::from(std::env::var_os(ROOT).expect("started by a test"));
    let files = files();
    std::thread::scope(|scope| {
        for seed in 0..READERS {
            let (root, files) = (&root, &files);
            scope.spawn(move || {
                let failed = std::panic::catch_unwind(|| read_on(root, files, seed)).is_err();
                std::process::exit(if failed { 1 } else { 0 });
            });
        }
    });
}

fn read_on(root: &Path, files: &[(String, Vec<u8>)], seed: u64) {
    let mut random: u64 = seed + 1;
    for count in 1_u64.. {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        read(root, files, random);
        if count.is_multiple_of(STEP) && writeln!(std::io::stdout(), "\nread").is_err() {
            return;
        }
    }
}

fn read(root: &Path, files: &[(String, Vec<u8>)], random: u64) {
    let (name, content) = &files[(random % files.len() as u64) as usize];
    let path = root.join(name);
    if random.is_multiple_of(16) {
        let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.filter(|name| name.as_encoded_bytes().starts_with(b"f")).count(), files.len());
        assert_eq!(fs::metadata(&path).unwrap().len(), content.len() as u64);
    }
    let file = File::open(&path).unwrap();
    // Otherwise the page cache answers.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let from = (random >> 16) as usize % (content.len() - READ_BYTES);
    let mut bytes = vec![0; READ_BYTES];
    file.read_exact_at(&mut bytes, from as u64).unwrap_or_else(|error| panic!("{name} at {from}: {error}"));
    assert!(bytes == content[from..from + READ_BYTES], "{name} at {from}: wrong bytes");
}
