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

use super::image::{Claim, ClaimedPiece};

/// Bytes that are asked for with one system call.
const AT_ONCE: u64 = 128 << 10;

/// Pieces of a hostile image's file that may fail before the rest is let be …
const FAILED_LIMIT: usize = 3;
/// … and how long one may take to: others would take as long.
const FAILED_SLOWLY: Duration = Duration::from_millis(500);

/// A part of a file to read, and what is there.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The file in the mount.
    pub(super) path: PathBuf,
    pub(super) expected: Expected,
    pub(super) range: Range<u64>,
    pub(super) cold: bool,
}

/// What a file is to hold.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    /// This, all of it.
    Content(Arc<[u8]>),
    /// What a hostile image says.
    Claims(Arc<[ClaimedPiece]>),
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
    std::thread::spawn(move || {
        let outcomes = match &wanted.expected {
            Expected::Content(content) => read(&wanted, content),
            Expected::Claims(claims) => read_claimed(&wanted, claims),
        };
        sender.send(outcomes)
    });
    receiver
}

/// Waits for what was started. A read that takes much longer than its deadline hangs.
pub(super) fn wait(receiver: &Receiver<Result<Vec<Outcome>>>, patience: Duration) -> Result<Vec<Outcome>> {
    receiver.recv_timeout(patience).with_context(|| format!("a read has not ended within {patience:?}"))?
}

/// Bytes that are wrong are an error of the test; what the system refuses is an outcome.
fn read(wanted: &Wanted, content: &[u8]) -> Result<Vec<Outcome>> {
    let Wanted { path, range, cold, .. } = wanted;
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

/// The pieces that the range touches, whole, each on its own: any may fail, but what is read is what the image says.
fn read_claimed(wanted: &Wanted, claims: &[ClaimedPiece]) -> Result<Vec<Outcome>> {
    let Wanted { path, range, cold, .. } = wanted;
    let mut outcomes = Vec::new();
    let started = Instant::now();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            outcomes.push(Outcome { range: range.clone(), result: Err(error), took: started.elapsed() });
            return Ok(outcomes);
        }
    };
    if *cold {
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    let touched = claims.iter().filter(|claimed| {
        claimed.range.start < range.end.max(range.start + 1) && range.start < claimed.range.end
    });
    let mut failed = 0;
    for ClaimedPiece { range, claim } in touched {
        let started = Instant::now();
        let mut bytes = vec![0xEE; (range.end - range.start) as usize];
        let result = file.read_exact_at(&mut bytes, range.start);
        failed += usize::from(result.is_err());
        match claim {
            _ if result.is_err() => {}
            Claim::Digest(algorithm, digest) => anyhow::ensure!(
                algorithm.digest(&bytes) == *digest,
                "wrong bytes: {range:?} of {} are not what its image says",
                path.display()
            ),
            Claim::Impossible => anyhow::bail!("{range:?} of {} can be read", path.display()),
            Claim::Nothing => {}
        }
        let took = started.elapsed();
        outcomes.push(Outcome { range: range.clone(), result, took });
        if failed == FAILED_LIMIT || (failed > 0 && took > FAILED_SLOWLY) {
            break;
        }
    }
    Ok(outcomes)
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
