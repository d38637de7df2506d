//! Reading mounts, alone and side by side, and judging what it comes to.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;

use super::super::image::{ChunkKey, File, files_below};
use super::super::operation::{DEADLINE, Operation, Part};
use super::super::reading::{self, Expected, Outcome, Wanted};
use super::{Machine, RETRY};

/// What a read may take at most: the kernel asks again for single pages when reading ahead failed; and a loaded machine.
const READ_LIMIT: Duration = DEADLINE.saturating_mul(3).saturating_add(Duration::from_secs(10));
/// Files that are read of a mount as a whole while servers are bad: each may take as long as a read may.
const FILES_WHILE_BAD: usize = 3;

/// What is read, for whom, and what the answer means.
struct Reading<'w> {
    mount: usize,
    /// None of a hostile image.
    file: Option<&'w File>,
    wanted: Wanted,
}

impl<'a> Machine<'a> {
    fn part(&self, mount: usize, part: &Part) -> Option<Reading<'a>> {
        let count = self.image(mount).paths().count();
        let whole = self.readings(mount, part.cold).nth((part.file % count.max(1) as u64) as usize)?;
        let size = whole.wanted.range.end;
        let start = size * part.from / 1000;
        let range = start..start.saturating_add(part.len).min(size);
        Some(Reading { wanted: Wanted { range, ..whole.wanted }, ..whole })
    }

    /// Reading each file that the mount shows, as a whole.
    fn readings(&self, mount: usize, cold: bool) -> impl Iterator<Item = Reading<'a>> + use<'a> {
        let image = self.image(mount);
        let at = self.mounts[mount].at.clone();
        let honest = image.files.iter().map(|(path, file)| {
            let size = file.content.len() as u64;
            (path, Some(file), Expected::Content(file.content.clone()), size)
        });
        let hostile = image.claims.iter().map(|(path, claims)| {
            let size = claims.last().map_or(0, |last| last.range.end);
            (path, None, Expected::Claims(claims.clone()), size)
        });
        honest.chain(hostile).map(move |(path, file, expected, size)| {
            let wanted = Wanted { path: at.join(path), expected, range: 0..size, cold };
            Reading { mount, file, wanted }
        })
    }

    pub(super) fn read_parts(&mut self, mount: usize, parts: &[Part]) -> Result<bool> {
        let readings: Vec<_> = parts.iter().filter_map(|part| self.part(mount, part)).collect();
        for reading in &readings {
            self.read(reading)?;
        }
        Ok(!readings.is_empty())
    }

    pub(super) fn read_all(&mut self, mount: usize, cold: bool) -> Result<()> {
        let image = self.image(mount);
        if !image.is_hostile() {
            let shown = files_below(&self.mounts[mount].at)?;
            ensure!(shown.keys().eq(image.files.keys()), "{} shows {:?}", image.name, shown.keys());
        }
        let limit = if self.available.is_any_bad() { FILES_WHILE_BAD } else { usize::MAX };
        for reading in self.readings(mount, cold).take(limit) {
            self.read(&reading)?;
        }
        Ok(())
    }

    fn read(&mut self, reading: &Reading<'_>) -> Result<()> {
        let started = reading::start(reading.wanted.clone());
        let outcomes = reading::wait(&started, patience(&reading.wanted))?;
        self.judge(reading, outcomes)
    }

    pub(super) fn read_together(
        &mut self,
        readers: &[(u64, Vec<Part>)],
        meanwhile: Option<&Operation>,
    ) -> Result<bool> {
        let mut readings = Vec::new();
        for (mount, parts) in readers {
            let Some(mount) = self.pick(*mount) else { return Ok(false) };
            readings.extend(parts.iter().filter_map(|part| self.part(mount, part)));
        }
        let started: Vec<_> = readings.iter().map(|reading| reading::start(reading.wanted.clone())).collect();
        // Numbers of mounts must stay what they are while they are read: ids say who is who.
        let ids: Vec<String> = readings.iter().map(|reading| self.mounts[reading.mount].id.clone()).collect();
        let read = |machine: &Self, mount: usize| ids.contains(&machine.mounts[mount].id);
        match meanwhile {
            Some(Operation::Unmount { mount }) => {
                if let Some(mount) = self.pick(*mount).filter(|mount| !read(self, *mount)) {
                    self.unmount(mount)?;
                }
            }
            Some(other) => _ = self.perform(other)?,
            None => {}
        }
        for ((mut reading, id), started) in readings.into_iter().zip(ids).zip(started) {
            let outcomes = reading::wait(&started, patience(&reading.wanted))?;
            reading.mount =
                self.mounts.iter().position(|mount| mount.id == id).context("a mount that is read")?;
            self.judge(&reading, outcomes)?;
        }
        Ok(true)
    }

    /// Holds what a read came to against what could be fetched.
    fn judge(&mut self, reading: &Reading<'_>, mut outcomes: Vec<Outcome>) -> Result<()> {
        loop {
            let Some(failed) = self.judge_once(reading, outcomes)? else { return Ok(()) };
            std::thread::sleep(RETRY);
            // From where it failed on, with the chance that servers that are well again deserve.
            let mut wanted = reading.wanted.clone();
            wanted.range.start = failed;
            outcomes = reading::wait(&reading::start(wanted), READ_LIMIT * 12)?;
        }
    }

    /// Where a read failed that may be tried again.
    fn judge_once(&mut self, reading: &Reading<'_>, outcomes: Vec<Outcome>) -> Result<Option<u64>> {
        let path = reading.wanted.path.display();
        for Outcome { range, result, took } in outcomes {
            ensure!(took < READ_LIMIT, "reading {range:?} of {path} took {took:?}");
            let Some(file) = reading.file else { continue };
            let chunks: BTreeSet<ChunkKey> = file.chunks(&range).collect();
            let Err(error) = result else {
                self.available.was_read(&self.mounts[reading.mount].homes, chunks);
                continue;
            };
            ensure!(error.raw_os_error() == Some(Errno::EIO as i32), "reading {range:?} of {path}: {error}");
            if chunks.iter().all(|chunk| self.is_available(reading.mount, chunk)) {
                if self.may_settle() {
                    return Ok(Some(range.start));
                }
                bail!(
                    "reading {range:?} of {path}: {error}, though each of {} can be fetched",
                    describe(&chunks)
                );
            }
        }
        Ok(None)
    }

    /// Whether the mount may read the chunk, and it is cached, or an honest image is mounted from where it can be fetched.
    fn is_available(&self, reader: usize, chunk: &ChunkKey) -> bool {
        let has = |mount: usize| {
            let image = self.image(mount);
            !image.is_hostile()
                && image.blobs.contains(&chunk.0)
                && self.available.can_deliver(&self.mounts[mount].homes, chunk.0)
        };
        self.available.is_allowed(&self.mounts[reader].homes, chunk.0)
            && (self.available.is_cached(chunk) || (0..self.mounts.len()).any(has))
    }

    /// Whether an error may be what a fault left that is over, so that it is worth to try again.
    pub(super) fn may_settle(&self) -> bool {
        self.available.settles().is_some_and(|settles| Instant::now() < settles)
    }
}

/// The time that reading may take as a whole: each piece its limit, of which few fail.
fn patience(wanted: &Wanted) -> Duration {
    READ_LIMIT * 2
        + DEADLINE * u32::try_from((wanted.range.end - wanted.range.start) >> 17).unwrap_or(u32::MAX)
}

fn describe(chunks: &BTreeSet<ChunkKey>) -> String {
    let chunks: Vec<String> = chunks.iter().map(|(blob, chunk)| format!("chunk {chunk} of {blob}")).collect();
    chunks.join(", ")
}
