//! Does operations to a node, and holds it against the model after each.

mod cache;
mod processes;
mod reads;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fuse_daemon::control::BlobId;
use integration::fault_proxy::Failure;
use integration::wait;

use super::availability::Availability;
use super::daemon::Daemon;
use super::image::{Home, Image};
use super::lab::Lab;
use super::operation::{Choice, Homes, Operation, Part};
use super::power_cut::Past;
use super::world::World;

/// Mounts at once: more than images that share a blob.
const MOUNTS: usize = 12;
/// Operations between two looks at what the cache's files hold: what a power cut may bring back.
const NOTED_EVERY: usize = 4;
/// Pause before what may still fail is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// What anything may take that should come at once.
const SOON: Duration = Duration::from_secs(20);

struct Mount {
    id: String,
    image: usize,
    homes: Vec<Home>,
    at: PathBuf,
    /// Its daemon leaves it in place at its end.
    was_handed_over: bool,
}

pub(super) struct Machine<'a> {
    world: &'a World,
    daemon: Daemon<'a>,
    mounts: Vec<Mount>,
    available: Availability<'a>,
    /// Blobs that were in use when all others were freed: they go with their last mount.
    unwanted: BTreeSet<BlobId>,
    /// Blobs of mounts that were handed over: after a kill they wait for these, which may not come again.
    handed_over: BTreeSet<BlobId>,
    pinned: BTreeSet<BlobId>,
    ever_pinned: BTreeSet<BlobId>,
    /// Those of them that were in the cache when it was looked at last.
    pinned_and_cached: BTreeSet<BlobId>,
    /// Bytes that the cache may take, if any.
    quota: u64,
    /// Whether chunks may be cached that are not what somebody says now: files were spoilt, or somebody lied.
    may_be_bad: bool,
    /// What the daemon holds while nothing is mounted.
    idle: (Vec<String>, Vec<String>),
    /// Number of mounts so far: each gets an id of its own.
    count: usize,
    /// Number of operations so far.
    steps: usize,
    /// What the cache's files held a few operations ago.
    past: Past,
}

impl<'a> Machine<'a> {
    /// `quota`: bytes that its cache may take, if any.
    pub(super) fn new(lab: &'a Lab, world: &'a World, daemon: Daemon<'a>, quota: u64) -> Result<Self> {
        // The threads that talk to the worker begin with it; this is the last of them.
        let talks = || daemon.holds().is_ok_and(|(threads, _)| threads.iter().any(|name| name == "send"));
        wait::until_true("the daemon talks to its worker", SOON, talks)?;
        let idle = daemon.holds()?;
        Ok(Self {
            world,
            daemon,
            mounts: Vec::new(),
            available: Availability::new(lab, quota > 0),
            unwanted: BTreeSet::new(),
            handed_over: BTreeSet::new(),
            pinned: BTreeSet::new(),
            ever_pinned: BTreeSet::new(),
            pinned_and_cached: BTreeSet::new(),
            quota,
            may_be_bad: false,
            idle,
            count: 0,
            steps: 0,
            past: Past::default(),
        })
    }

    pub(super) fn log_tail(&self) -> String {
        self.daemon.log_tail()
    }

    /// Does one thing; an error is a fault of the node. `false`: there was nothing to do it to.
    pub(super) fn step(&mut self, operation: &Operation) -> Result<bool> {
        if self.steps.is_multiple_of(NOTED_EVERY) {
            self.past.note(&self.daemon.cache())?;
        }
        self.steps += 1;
        let done = self.perform(operation)?;
        self.daemon.check()?;
        self.check_cache()?;
        Ok(done)
    }

    fn perform(&mut self, operation: &Operation) -> Result<bool> {
        match operation {
            Operation::Mount { image, homes } => self.mount(*image, *homes),
            Operation::AddBackend { mount, home } => {
                let Some(mount) = self.pick(*mount) else { return Ok(false) };
                self.add_backend(mount, *home)
            }
            Operation::Read { mount, parts } => {
                let Some(mount) = self.pick(*mount) else { return Ok(false) };
                self.read_parts(mount, parts)
            }
            Operation::ReadAll { mount, cold } => {
                let Some(mount) = self.pick(*mount) else { return Ok(false) };
                self.read_all(mount, *cold)?;
                Ok(true)
            }
            Operation::ReadTogether { readers, meanwhile } => {
                self.read_together(readers, meanwhile.as_deref())
            }
            Operation::Unmount { mount } => {
                let Some(mount) = self.pick(*mount) else { return Ok(false) };
                self.unmount(mount)?;
                Ok(true)
            }
            Operation::HostileGuest { image, part } => self.hostile_guest(*image, part),
            Operation::CleanUp { keep } => {
                let images = keep.iter().map(|image| (image % self.world.images.len() as u64) as usize);
                self.clean_up(&images.collect::<Vec<_>>())?;
                Ok(true)
            }
            Operation::RemoveAndMountAgain { mount, before, after, slow, pin } => {
                self.remove_and_mount_again(*mount, before, after, *slow, *pin)
            }
            Operation::Fail { remote, failure, blob } => {
                self.fail(*remote, *failure, *blob);
                Ok(true)
            }
            Operation::Heal => {
                self.available.heal();
                Ok(true)
            }
            Operation::Restart { kill, tamper } => self.restart(*kill, tamper.as_ref()).map(|()| true),
            Operation::HandOver { ending, stumbles } => self.hand_over(*ending, *stumbles),
            Operation::KillWorker => self.kill_worker().map(|()| true),
            Operation::Pin { blob, pinned } => self.pin(*blob, *pinned),
            Operation::Prune => self.prune().map(|()| true),
            Operation::Verify => self.verify().map(|()| true),
            Operation::Quota { bytes } => self.set_quota(*bytes).map(|()| true),
        }
    }

    fn fail(&mut self, remote: Option<u64>, failure: Failure, blob: Option<u64>) {
        let blobs: Vec<BlobId> = self.blobs_in_use().into_iter().collect();
        let blob = blob.filter(|_| !blobs.is_empty());
        let blob = blob.map(|blob| blobs[(blob % blobs.len() as u64) as usize]);
        let remotes = match remote {
            Some(one) => vec![(one % Lab::REMOTES as u64) as usize],
            None => (0..Lab::REMOTES).collect(),
        };
        for remote in remotes {
            self.available.fail(remote, failure, blob);
        }
    }

    fn pick(&self, number: u64) -> Option<usize> {
        (!self.mounts.is_empty()).then(|| (number % self.mounts.len() as u64) as usize)
    }

    fn image(&self, mount: usize) -> &'a Image {
        &self.world.images[self.mounts[mount].image]
    }

    /// What no clean-up takes: what mounts read from, and what waits for mounts that were handed over.
    fn blobs_in_use(&self) -> BTreeSet<BlobId> {
        let mounted = (0..self.mounts.len()).flat_map(|mount| &self.image(mount).blobs);
        mounted.chain(&self.handed_over).copied().collect()
    }

    /// Blobs of these are handed over no longer, unless another mount reads from them.
    fn end_handing_over(&mut self, blobs: &[BlobId]) {
        let others: BTreeSet<&BlobId> =
            (0..self.mounts.len()).flat_map(|mount| &self.image(mount).blobs).collect();
        self.handed_over.retain(|blob| !blobs.contains(blob) || others.contains(blob));
    }

    fn mount(&mut self, image: Choice, homes: Homes) -> Result<bool> {
        let Some(number) = self.choose(image).filter(|_| self.mounts.len() < MOUNTS) else {
            return Ok(false);
        };
        let all = &self.world.images[number].homes;
        let homes = match homes {
            Homes::One(home) => vec![all[(home % all.len() as u64) as usize].clone()],
            Homes::All => all.clone(),
        };
        let id = self.new_id();
        self.try_mount(id, number, homes)
    }

    fn hostile_guest(&mut self, image: u64, part: &Part) -> Result<bool> {
        let guest = self.choose(Choice::Hostile(image)).filter(|_| self.mounts.len() < MOUNTS);
        let Some(guest) = guest else { return Ok(false) };
        let Image { homes, hostile_to: Some(victim), .. } = &self.world.images[guest] else {
            return Ok(false);
        };
        let id = self.new_id();
        if self.try_mount(id, guest, homes.clone())? {
            self.read_parts(self.mounts.len() - 1, std::slice::from_ref(part))?;
            self.unmount(self.mounts.len() - 1)?;
        }
        let id = self.new_id();
        if self.try_mount(id, *victim, homes.clone())? {
            self.read_parts(self.mounts.len() - 1, std::slice::from_ref(part))?;
        }
        Ok(true)
    }

    fn add_backend(&mut self, mount: usize, home: u64) -> Result<bool> {
        let all = &self.image(mount).homes;
        let home = all[(home % all.len() as u64) as usize].clone();
        self.daemon.add_backend(&self.mounts[mount].id, &home)?;
        let homes = &mut self.mounts[mount].homes;
        if !homes.contains(&home) {
            homes.push(home);
            self.available.gained_a_home();
        }
        Ok(true)
    }

    fn choose(&self, choice: Choice) -> Option<usize> {
        let used = self.blobs_in_use();
        let suits = |image: &Image| match choice {
            Choice::Any(_) => true,
            Choice::Hostile(_) => image.is_hostile(),
            Choice::Related(_) => !image.is_hostile() && image.blobs.iter().any(|blob| used.contains(blob)),
        };
        let images: Vec<usize> =
            (0..self.world.images.len()).filter(|&image| suits(&self.world.images[image])).collect();
        let (Choice::Any(number) | Choice::Hostile(number) | Choice::Related(number)) = choice;
        (!images.is_empty()).then(|| images[(number % images.len() as u64) as usize])
    }

    /// Mounts an image. It may be refused if it is hostile, or if what is missing in its bootstrap cannot be fetched.
    fn try_mount(&mut self, id: String, number: usize, homes: Vec<Home>) -> Result<bool> {
        let image = &self.world.images[number];
        loop {
            let error = match self.daemon.mount(&id, image, &homes) {
                Ok(at) => {
                    self.unwanted.retain(|blob| !image.blobs.contains(blob));
                    if image.is_hostile() {
                        self.may_be_bad = true;
                        self.available.set_apart(&image.blobs);
                    }
                    self.mounts.push(Mount { id, image: number, homes, at, was_handed_over: false });
                    self.available.gained_a_home();
                    return Ok(true);
                }
                Err(error) => error,
            };
            let fetched = image.fetches_to_mount && !self.available.can_complete(&homes);
            if image.is_hostile() || fetched {
                return Ok(false);
            }
            if !image.fetches_to_mount || !self.may_settle() {
                return Err(error).with_context(|| format!("mounting {} as {id}", image.name));
            }
            std::thread::sleep(RETRY);
        }
    }

    fn unmount(&mut self, mount: usize) -> Result<()> {
        let Mount { id, image, .. } = self.mounts.swap_remove(mount);
        self.daemon.unmount(&id)?;
        self.end_handing_over(&self.world.images[image].blobs);
        let used = self.blobs_in_use();
        let (kept, freed) = self.unwanted.iter().copied().partition(|blob| used.contains(blob));
        self.unwanted = kept;
        let mut freed: BTreeSet<BlobId> = freed;
        freed.retain(|blob| !self.pinned.contains(blob));
        self.available.keep_only(|blob| !freed.contains(&blob));
        self.expect_freed(|blob| freed.contains(&blob)).context("freed with the last mount")
    }

    fn remove_and_mount_again(
        &mut self,
        mount: u64,
        before: &Part,
        after: &[Part],
        slow: bool,
        pin: Option<u64>,
    ) -> Result<bool> {
        let Some(mount) = self.pick(mount) else { return Ok(false) };
        let (number, homes) = (self.mounts[mount].image, self.mounts[mount].homes.clone());
        homes.iter().filter(|_| slow).for_each(|home| self.available.slow_down(home));
        self.read_parts(mount, std::slice::from_ref(before))?;
        let image = &self.world.images[number];
        if let Some(blob) = pin.filter(|_| !image.blobs.is_empty()) {
            self.pin_blob(image.blobs[(blob % image.blobs.len() as u64) as usize])?;
            self.check_cache()?;
        }
        while let Some(related) = (0..self.mounts.len()).find(|&other| shares_blob(self.image(other), image))
        {
            self.unmount(related)?;
        }
        self.clean_up(&[])?;
        if pin.is_some() {
            self.prune()?;
        }
        let id = self.new_id();
        if self.try_mount(id, number, homes)? {
            self.read_parts(self.mounts.len() - 1, after)?;
        }
        Ok(true)
    }

    /// Mounts whose daemon was killed come again, as nothing keeps them from it any more.
    fn mount_what_is_waited_for(&mut self) -> Result<()> {
        while let Some(blob) = self
            .handed_over
            .iter()
            .copied()
            .find(|blob| (0..self.mounts.len()).all(|mount| !self.image(mount).blobs.contains(blob)))
        {
            let has_it = |image: &Image| !image.is_hostile() && image.blobs.contains(&blob);
            let number =
                self.world.images.iter().position(has_it).context("a blob of no image is waited for")?;
            let id = self.new_id();
            let is_mounted = self.try_mount(id, number, self.world.images[number].homes.clone())?;
            ensure!(is_mounted, "{} cannot be mounted", self.world.images[number].name);
        }
        Ok(())
    }

    fn new_id(&mut self) -> String {
        self.count += 1;
        format!("m{}", self.count)
    }

    /// What must hold in the end: everything reads right once servers are well, and nothing stays when all is gone.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.available.heal();
        let mounted: BTreeSet<String> = self.daemon.mounted()?.into_iter().collect();
        let expected: BTreeSet<String> = self.mounts.iter().map(|mount| mount.id.clone()).collect();
        ensure!(mounted == expected, "mounted are {mounted:?}, not {expected:?}");
        self.mount_what_is_waited_for()?;
        for mount in 0..self.mounts.len() {
            self.read_all(mount, true)?;
        }
        while !self.mounts.is_empty() {
            self.unmount(0)?;
        }
        self.unpin_all()?;
        self.clean_up(&[])?;
        self.expect_freed(|_| true).context("all images are removed")?;
        self.daemon.check()?;
        let mut held = self.idle.clone();
        let idle = || {
            held = self.daemon.holds().unwrap_or_default();
            // Threads by number: one that has just begun has no name yet.
            held.0.len() <= self.idle.0.len() && within(&held.1, &self.idle.1)
        };
        let ended = wait::until_true("no more threads and files than at the start", SOON, idle);
        ended.with_context(|| format!("it holds {held:?}; at the start it held {:?}", self.idle))?;
        self.daemon.end(false)
    }
}

/// Whether all of `some` is in `all`, a name as often as it is there.
fn within(some: &[String], all: &[String]) -> bool {
    let count = |list: &[String], name: &String| list.iter().filter(|other| *other == name).count();
    some.iter().all(|name| count(some, name) <= count(all, name))
}

/// Of an image with itself too, though it may have no blob.
fn shares_blob(one: &Image, other: &Image) -> bool {
    std::ptr::eq(one, other) || one.blobs.iter().any(|blob| other.blobs.contains(blob))
}
