//! What people do to the cache, and what has to be in it then.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fuse_daemon::control::BlobId;

use super::super::tamper::{DATA, blob_files, is};
use super::Machine;

/// Bytes of a block in a file's metadata.
const STAT_BLOCK_BYTES: u64 = 512;

impl Machine<'_> {
    pub(super) fn clean_up(&mut self, images: &[usize]) -> Result<()> {
        let images = images.iter().map(|image| &self.world.images[*image]);
        let keep: BTreeSet<BlobId> = images.flat_map(|image| &image.blobs).copied().collect();
        let kept = self.daemon.keep(&keep.iter().copied().collect::<Vec<_>>())?;
        let used = self.blobs_in_use();
        let unwanted = used.iter().filter(|blob| !keep.contains(blob) && !self.pinned.contains(blob));
        self.unwanted = unwanted.copied().collect();
        let in_use: BTreeSet<BlobId> = kept.in_use.into_iter().collect();
        ensure!(in_use == self.unwanted, "clean-up found {in_use:?} in use, not {:?}", self.unwanted);
        let pinned = self.pinned.clone();
        let stays = |blob: BlobId| used.contains(&blob) || keep.contains(&blob) || pinned.contains(&blob);
        self.available.keep_only(stays);
        self.expect_freed(|blob| !stays(blob)).context("freed by clean-up")
    }

    pub(super) fn pin(&mut self, blob: u64, pinned: bool) -> Result<bool> {
        // What is in use may be cached, and be pruned when it is not in use any more.
        let from = if pinned { self.blobs_in_use() } else { self.pinned.clone() };
        let from: Vec<BlobId> = from.into_iter().collect();
        if from.is_empty() {
            return Ok(false);
        }
        let blob = from[(blob % from.len() as u64) as usize];
        if pinned {
            self.pin_blob(blob)?;
        } else {
            self.daemon.pin(blob, false)?;
            self.pinned.remove(&blob);
        }
        Ok(true)
    }

    pub(super) fn pin_blob(&mut self, blob: BlobId) -> Result<()> {
        self.daemon.pin(blob, true)?;
        self.pinned.insert(blob);
        self.ever_pinned.insert(blob);
        Ok(())
    }

    pub(super) fn unpin_all(&mut self) -> Result<()> {
        for blob in std::mem::take(&mut self.pinned) {
            self.daemon.pin(blob, false)?;
        }
        Ok(())
    }

    pub(super) fn prune(&mut self) -> Result<()> {
        let outcome = self.daemon.prune()?;
        let used = self.blobs_in_use();
        let pinned = self.pinned.clone();
        let stays = |blob: BlobId| used.contains(&blob) || pinned.contains(&blob);
        let wrong: Vec<_> = outcome.freed.iter().filter(|blob| stays(**blob)).collect();
        ensure!(wrong.is_empty(), "pruning freed {wrong:?}, which are in use or pinned");
        self.available.keep_only(stays);
        self.expect_freed(|blob| !stays(blob)).context("freed by pruning")
    }

    /// Nothing is bad that nobody spoilt, and nothing is any more when it was found out.
    pub(super) fn verify(&mut self) -> Result<()> {
        let found = self.daemon.verify()?;
        ensure!(self.may_be_bad || found.bad.is_empty(), "nobody spoilt it, but {:?} are bad", found.bad);
        let again = self.daemon.verify()?;
        ensure!(again.bad.is_empty(), "{:?} are bad still", again.bad);
        Ok(())
    }

    pub(super) fn set_quota(&mut self, bytes: u64) -> Result<()> {
        self.daemon.set_quota(bytes)?;
        self.quota = bytes;
        self.restart(false, None)?;
        // From now on nobody can rely on what is cached.
        if bytes > 0 {
            self.available.limit_cache();
        }
        Ok(())
    }

    /// What holds whatever was done: what is pinned stays, and the cache takes what it may.
    pub(super) fn check_cache(&mut self) -> Result<()> {
        let cached = self.daemon.cached()?;
        let held: BTreeSet<BlobId> = cached.iter().map(|status| status.blob).collect();
        let said: BTreeSet<BlobId> =
            cached.iter().filter(|status| status.pinned).map(|status| status.blob).collect();
        let expected: BTreeSet<BlobId> = self.pinned.intersection(&held).copied().collect();
        ensure!(said == expected, "it says of {said:?} that they are pinned, not of {expected:?}");
        let lost: Vec<_> =
            self.pinned_and_cached.difference(&held).filter(|blob| self.pinned.contains(blob)).collect();
        ensure!(lost.is_empty(), "{lost:?} were pinned, and are gone");
        self.pinned_and_cached = expected;
        let bytes = self.bytes_on_disk(|path, blob| {
            let is_mounted = cached.iter().any(|one| one.blob == blob && one.mounted);
            // What describes a blob is there as long as a mount reads from it. What is pinned stays where it is too much, and
            // when it is not any more as long as a mount reads from it.
            let stays = self.pinned.contains(&blob)
                || is_mounted && (!is(path, DATA) || self.ever_pinned.contains(&blob));
            !stays
        })?;
        ensure!(
            self.quota == 0 || bytes <= self.quota,
            "{bytes} bytes are cached, of {} that may be: {cached:?}",
            self.quota
        );
        Ok(())
    }

    /// Bytes on disk of these files of blobs.
    fn bytes_on_disk(&self, of: impl Fn(&Path, BlobId) -> bool) -> Result<u64> {
        let files = blob_files(&self.daemon.cache())?;
        let files = files.iter().filter(|(path, blob)| of(path, *blob));
        // What gives way just now takes nothing.
        let bytes =
            |path| fs::metadata(path).map_or(0, |file: fs::Metadata| file.blocks() * STAT_BLOCK_BYTES);
        Ok(files.map(|(path, _)| bytes(path)).sum())
    }

    /// Fails unless the cache has no file of any of these blobs.
    pub(super) fn expect_freed(&self, is_freed: impl Fn(BlobId) -> bool) -> Result<()> {
        for (path, blob) in blob_files(&self.daemon.cache())? {
            ensure!(!is_freed(blob), "the cache still has {}", path.display());
        }
        Ok(())
    }
}
