//! What the model knows of caches and servers: which chunks can be fetched, and so which errors are allowed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use fuse_daemon::control::BlobId;
use integration::fault_proxy::{Failure, Rule};

use super::image::{ChunkKey, Home, Origin};
use super::lab::Lab;
use super::operation::{DEADLINE, SLOW_LINE, is_harmless};
use super::tamper::Lost;

/// How long after a server is well again what failed may not be asked for again (2 s), after what was under way then
/// came to its end.
const AFTER_FAULT: Duration = DEADLINE.saturating_mul(2).saturating_add(Duration::from_secs(3));

/// What a server does.
#[derive(Clone, Copy, Debug)]
struct Fault {
    failure: Failure,
    /// Of all blobs, if of none in particular.
    blob: Option<BlobId>,
}

pub(super) struct Availability<'a> {
    lab: &'a Lab,
    /// Whether the cache has to drop what others need more room for, so that nobody can rely on it.
    has_quota: bool,
    faults: [Option<Fault>; Lab::REMOTES],
    /// When each server was last well again.
    healed: [Option<Instant>; Lab::REMOTES],
    /// Chunks that somebody has read since the cache may last have lost them.
    cached: HashSet<ChunkKey>,
    /// Places that have said that they have a blob, since the cache may last have forgotten it: who reads from there needs no
    /// answer any more.
    answered: HashSet<(Home, BlobId)>,
    /// Blobs that a hostile image was mounted of: who contradicts somebody has a cache apart, and who that is depends on
    /// who came first, and after a restart on who comes first then.
    apart: HashSet<BlobId>,
}

impl<'a> Availability<'a> {
    pub(super) fn new(lab: &'a Lab, has_quota: bool) -> Self {
        let mut this = Self {
            lab,
            has_quota,
            faults: [None; Lab::REMOTES],
            healed: [None; Lab::REMOTES],
            cached: HashSet::new(),
            answered: HashSet::new(),
            apart: HashSet::new(),
        };
        this.heal();
        // Faults of the run before are none of this one's.
        this.healed = [None; Lab::REMOTES];
        this
    }

    pub(super) fn fail(&mut self, remote: usize, failure: Failure, blob: Option<BlobId>) {
        self.end_fault(remote);
        self.lab.proxy(remote).set_rules(vec![Rule::always(&Lab::path_of(remote, blob), failure)]);
        self.faults[remote] = Some(Fault { failure, blob });
    }

    /// The line to a server becomes slow, if there is one and nothing is wrong with it.
    pub(super) fn slow_down(&mut self, home: &Home) {
        if let Origin::Remote(remote) = home.origin
            && self.is_well(home)
        {
            self.fail(remote, SLOW_LINE, None);
        }
    }

    fn fault(&self, home: &Home) -> Option<Fault> {
        match home.origin {
            Origin::Remote(remote) => self.faults[remote],
            Origin::Local => None,
        }
    }

    pub(super) fn heal(&mut self) {
        for remote in 0..Lab::REMOTES {
            self.end_fault(remote);
            self.lab.proxy(remote).set_rules(Vec::new());
        }
    }

    fn end_fault(&mut self, remote: usize) {
        let fault = self.faults[remote].take();
        if fault.is_some_and(|fault| !is_harmless(fault.failure)) {
            self.healed[remote] = Some(Instant::now());
        }
    }

    /// An image came while something may have been looked for without success where others have it.
    pub(super) fn gained_a_home(&mut self) {
        for (fault, healed) in self.faults.iter().zip(&mut self.healed) {
            if fault.is_some_and(|fault| !is_harmless(fault.failure)) {
                *healed = Some(Instant::now());
            }
        }
    }

    /// What was under way has to begin again, for which there may be no time where a server is slow.
    pub(super) fn disturbed(&mut self) {
        for (fault, healed) in self.faults.iter().zip(&mut self.healed) {
            if fault.is_some() {
                *healed = Some(Instant::now());
            }
        }
    }

    /// Whether anything is wrong with any server, if only that it is slow.
    pub(super) fn is_any_bad(&self) -> bool {
        self.faults.iter().any(Option::is_some)
    }

    /// Whether one of these places can deliver the blob.
    pub(super) fn can_deliver(&self, homes: &[Home], blob: BlobId) -> bool {
        let can = |home: &Home| {
            self.fault(home).is_none_or(|fault| {
                is_harmless(fault.failure) || fault.blob.is_some_and(|failing| failing != blob)
            })
        };
        homes.iter().any(can)
    }

    /// Whether nothing is wrong with a place.
    pub(super) fn is_well(&self, home: &Home) -> bool {
        self.fault(home).is_none()
    }

    /// Whether what a bootstrap lacks can be fetched from these places: several answers, one after the other, for which a
    /// server that is slow may be too slow.
    pub(super) fn can_complete(&self, homes: &[Home]) -> bool {
        homes.iter().any(|home| self.is_well(home))
    }

    /// Until when an error may be the late consequence of a fault that is over.
    pub(super) fn settles(&self) -> Option<Instant> {
        self.healed.iter().flatten().max().map(|healed| *healed + AFTER_FAULT)
    }

    /// From now on the cache has to drop what others need more room for.
    pub(super) fn limit_cache(&mut self) {
        self.has_quota = true;
    }

    pub(super) fn is_cached(&self, chunk: &ChunkKey) -> bool {
        !self.has_quota && self.cached.contains(chunk) && !self.apart.contains(&chunk.0)
    }

    /// Chunks of these blobs may be in the cache of others alone.
    pub(super) fn set_apart(&mut self, blobs: &[BlobId]) {
        self.apart.extend(blobs);
    }

    /// Whether a mount of these places may read what is cached of a blob: one of them has said that it has it, or does so now.
    pub(super) fn is_allowed(&self, homes: &[Home], blob: BlobId) -> bool {
        // With the blob goes what is known of who has it.
        let answered = |home: &Home| !self.has_quota && self.answered.contains(&(home.clone(), blob));
        homes.iter().any(answered) || self.can_deliver(homes, blob)
    }

    /// Somebody has read chunks, whose blobs these places have.
    pub(super) fn was_read(&mut self, homes: &[Home], chunks: impl IntoIterator<Item = ChunkKey>) {
        for chunk in chunks {
            // Of several, it is not known which one answered.
            if let [home] = homes {
                self.answered.insert((home.clone(), chunk.0));
            }
            self.cached.insert(chunk);
        }
    }

    /// The cache may have dropped all of the blobs that `keep` does not know.
    pub(super) fn keep_only(&mut self, keep: impl Fn(BlobId) -> bool) {
        self.cached.retain(|(blob, _)| keep(*blob));
        self.answered.retain(|(_, blob)| keep(*blob));
        self.apart.retain(|blob| keep(*blob));
    }

    pub(super) fn lose(&mut self, lost: &Lost) {
        match lost {
            Lost::Nothing => {}
            Lost::One(lost) => {
                self.cached.retain(|(blob, _)| blob != lost);
                self.answered.retain(|(_, blob)| blob != lost);
            }
            Lost::Everything => {
                self.cached.clear();
                self.answered.clear();
            }
        }
    }
}
