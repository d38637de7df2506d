//! What happens to the daemon's processes, while nobody reads and while somebody does.

use anyhow::{Context, Result, ensure};
use integration::wait;
use nix::mount::{MntFlags, umount2};

use super::super::daemon::HeldMount;
use super::super::operation::Ending;
use super::super::tamper::{Lost, Tamper};
use super::{Machine, Mount, RETRY, SOON};

impl Machine<'_> {
    /// The daemon ends, and with it what is mounted; another one mounts all of it again.
    pub(super) fn restart(&mut self, kill: bool, tamper: Option<&Tamper>) -> Result<()> {
        let mounts = self.mounts.iter().map(|mount| (mount.id.clone(), mount.image, mount.homes.clone()));
        let mounts: Vec<_> = mounts.collect();
        if !kill {
            // It leaves what somebody may have served on, and nobody is going to.
            while let Some(held) = self.mounts.iter().position(|mount| mount.was_handed_over) {
                self.unmount(held)?;
            }
            let ended: Vec<_> =
                mounts.iter().flat_map(|(_, image, _)| &self.world.images[*image].blobs).copied().collect();
            self.handed_over.retain(|blob| !ended.contains(blob));
        }
        if let Some(Tamper::Reboot { .. }) = tamper {
            self.handed_over.clear();
        }
        self.daemon.end(kill)?;
        let lost =
            tamper.map_or(Ok(Lost::Nothing), |tamper| tamper.apply(&self.daemon.cache(), &self.past))?;
        self.available.lose(&lost);
        if tamper.is_some() {
            self.may_be_bad = true;
            self.pinned_and_cached.clear();
        }
        self.daemon.restart()?;
        // Its clients ask for all that they need, as the snapshotter does.
        // What goes with its last mount went with a daemon that unmounted all; a killed one's successor is told again.
        let unwanted = std::mem::take(&mut self.unwanted);
        if !kill {
            self.available.keep_only(|blob| !unwanted.contains(&blob));
        }
        let left = std::mem::take(&mut self.mounts);
        for (id, image, homes) in mounts {
            if !self.try_mount(id.clone(), image, homes)?
                && let Some(Mount { at, .. }) = left.iter().find(|mount| mount.id == id)
            {
                // What a killed daemon left there is for whoever asked for it to clear away.
                while let Ok(()) = umount2(at, MntFlags::MNT_DETACH) {}
            }
        }
        Ok(())
    }

    /// The daemon ends, and another one serves all mounts on: who reads waits meanwhile. `stumbles`: of that one, the first is
    /// killed when it has half of them.
    pub(super) fn hand_over(&mut self, ending: Ending, stumbles: bool) -> Result<bool> {
        let mounts = self.mounts.iter();
        // Nobody waits for a server but who needs it to go on.
        let can_adopt = |mount: &Mount| {
            !self.world.images[mount.image].fetches_to_mount || self.available.can_complete(&mount.homes)
        };
        if self.mounts.is_empty() || !mounts.into_iter().all(can_adopt) {
            return Ok(false);
        }
        // Before anything ends: readers have files open on what nobody serves then.
        let successor = self.daemon.successor()?;
        let next = stumbles.then(|| self.daemon.successor()).transpose()?;
        let handed: Result<Vec<_>> =
            self.mounts.iter().map(|mount| self.daemon.hand_over(&mount.id)).collect();
        let handed = handed?;
        self.handed_over = self.blobs_in_use();
        self.daemon.end_with_successor(ending)?;
        self.daemon.succeed(successor)?;
        if let Some(next) = next {
            for held in &handed[..handed.len() / 2] {
                self.adopt(held)?;
            }
            self.daemon.end_with_successor(Ending::Kill)?;
            self.daemon.succeed(next)?;
        }
        for held in &handed {
            self.adopt(held)?;
        }
        self.mounts.iter_mut().for_each(|mount| mount.was_handed_over = true);
        // The next one is told again.
        self.unwanted.clear();
        Ok(true)
    }

    fn adopt(&self, held: &HeldMount) -> Result<()> {
        loop {
            match self.daemon.adopt(held) {
                Ok(()) => return Ok(()),
                Err(error) if !self.may_settle() => {
                    return Err(error).with_context(|| format!("handing over {}", held.id()));
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }

    /// The process that fetches and decodes is killed, and another one takes its place.
    pub(super) fn kill_worker(&mut self) -> Result<()> {
        self.available.disturbed();
        let killed = self.daemon.kill_worker()?;
        let takes_its_place =
            || self.daemon.worker().is_ok_and(|worker| worker.is_some_and(|pid| pid != killed));
        wait::until_true("another worker is ready", SOON, takes_its_place)?;
        let mounted = self.daemon.mounted()?.len();
        ensure!(mounted == self.mounts.len(), "{mounted} images are mounted, not {}", self.mounts.len());
        Ok(())
    }
}
