//! Reading as programs do, on threads that may be left behind if a read never ends.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Bytes that are asked for with one system call.
const AT_ONCE: u64 = 128 << 10;

/// A part of a file to read, and what is there.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The file in the mount.
    pub(super) path: PathBuf,
    /// All that the file holds.
    pub(super) content: Arc<[u8]>,
    pub(super) range: Range<u64>,
    pub(super) cold: bool,
}

/// How reading a piece of what was wanted ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) range: Range<u64>,
    pub(super) result: io::Result<()>,
    pub(super) took: Duration,
}

/// Reads on a thread of its own.
pub(super) fn start(wanted: Wanted) -> Receiver<Result<Vec<Outcome>>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(read(&wanted)));
    receiver
}

/// Waits for what was started. A read that takes much longer than its deadline hangs.
pub(super) fn wait(receiver: &Receiver<Result<Vec<Outcome>>>, patience: Duration) -> Result<Vec<Outcome>> {
    receiver.recv_timeout(patience).with_context(|| format!("a read has not ended within {patience:?}"))?
}

/// Bytes that are wrong are an error of the test; what the system refuses is an outcome.
fn read(wanted: &Wanted) -> Result<Vec<Outcome>> {
    let Wanted { path, content, range, cold } = wanted;
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let size = file.metadata()?.len();
    anyhow::ensure!(
        size == content.len() as u64,
        "{} has {size} bytes, not {}",
        path.display(),
        content.len()
    );
    if *cold {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    let mut outcomes = Vec::new();
    let mut buffer = vec![0; AT_ONCE as usize];
    let mut at = range.start;
    loop {
        let end = range.end.min(at + AT_ONCE);
        let part = &mut buffer[..(end - at) as usize];
        let started = Instant::now();
        // What was there before must not pass for what is read.
        part.fill(0xEE);
        let result = file.read_exact_at(part, at);
        if result.is_ok() {
            compare(path, &content[at as usize..end as usize], part, at)?;
        }
        let failed = result.is_err();
        outcomes.push(Outcome { range: at..end, result, took: started.elapsed() });
        at = end;
        // As most programs, it gives up with the first error.
        if failed || at >= range.end {
            return Ok(outcomes);
        }
    }
}

fn compare(path: &Path, expected: &[u8], found: &[u8], at: u64) -> Result<()> {
    let Some(first) = expected.iter().zip(found).position(|(one, other)| one != other) else {
        return Ok(());
    };
    let wrong = expected.iter().zip(found).filter(|(one, other)| one != other).count();
    let zeros = found[first..].iter().take_while(|byte| **byte == 0).count();
    anyhow::bail!(
        "wrong bytes: {} has {wrong} from offset {} on (of {} read at {at}), {zeros} zeros first",
        path.display(),
        at + first as u64,
        found.len(),
    )
}
