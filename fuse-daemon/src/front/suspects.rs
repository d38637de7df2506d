//! Chunks that workers ended over: a fault of the decoder, or one that its author found before we did.
//!
//! Which of the chunks that a worker owed was the reason is not known. So those that several workers in a row owed are fetched
//! one after the other, with none but innocent ones beside them. The one that also ends workers then is given up, alone.

use std::collections::{HashMap, HashSet, VecDeque};

use super::message::ChunkKey;

/// Ended workers that owed a chunk, from which on it is a suspect …
const SUSPECTED: u32 = 2;
/// … and from which on it is given up: the last ones while no other suspect was on its way.
const GUILTY: u32 = 4;
/// Chunks that are counted next to those that the last worker owed; of more, those are forgotten that it did not owe, at the price
/// of some more workers.
const LIMIT: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Ended workers that owed a chunk.
    counts: HashMap<ChunkKey, u32>,
    /// The suspect that is on its way, and those that wait for its end.
    on_trial: Option<ChunkKey>,
    waiting: VecDeque<ChunkKey>,
}

impl Suspects {
    /// A worker ended that owed these: those that are to be given up now.
    pub(super) fn blame(&mut self, owed: &[ChunkKey]) -> Vec<ChunkKey> {
        if self.counts.len() + owed.len() > LIMIT {
            self.forget_all_but(owed);
        }
        let mut guilty = Vec::new();
        for key in owed {
            let count = self.counts.entry(*key).or_default();
            *count += 1;
            if *count >= GUILTY {
                guilty.push(*key);
            }
        }
        guilty
    }

    /// Makes room. Where many containers read, a worker owes more than [`LIMIT`] chunks whenever it ends: what ends one after the
    /// other is among those that each of them owed.
    fn forget_all_but(&mut self, owed: &[ChunkKey]) {
        let owed: HashSet<&ChunkKey> = owed.iter().collect();
        self.counts.retain(|key, count| owed.contains(key) || *count >= GUILTY);
        if self.counts.len() > LIMIT {
            self.counts.retain(|key, _| owed.contains(key));
        }
    }

    pub(super) fn contains(&self, key: ChunkKey) -> bool {
        self.counts.get(&key).is_some_and(|count| *count >= SUSPECTED)
    }

    /// Whether a chunk may be ordered now. A suspect may if no other one is on its way; else it waits for that.
    pub(super) fn may_go(&mut self, key: ChunkKey) -> bool {
        if !self.contains(key) {
            return true;
        }
        let may = *self.on_trial.get_or_insert(key) == key;
        if !may && !self.waiting.contains(&key) {
            self.waiting.push_back(key);
        }
        may
    }

    /// A chunk is no longer on its way: the suspect that may go now. One that a worker has brought is none any more.
    pub(super) fn over(&mut self, key: ChunkKey, brought: bool) -> Option<ChunkKey> {
        if brought {
            self.counts.remove(&key);
        }
        self.waiting.retain(|waiting| *waiting != key);
        if self.on_trial != Some(key) {
            return None;
        }
        self.on_trial = self.waiting.pop_front();
        self.on_trial
    }
}

#[cfg(test)]
mod tests {
    use rafs::blob::ChunkIndex;
    use rafs::digest::Digest;

    use super::*;
    use crate::cache::Generation;
    use crate::control::BlobId;

    fn key(chunk: u32) -> ChunkKey {
        ChunkKey { blob: BlobId(Digest([7; 32])), generation: Generation(1), chunk: ChunkIndex(chunk) }
    }

    #[test]
    fn of_those_that_workers_owed_one_goes_at_a_time_until_one_is_found() {
        let mut suspects = Suspects::default();
        let owed = [1, 2, 3].map(key);
        for round in 0..2 {
            assert!(owed.iter().all(|key| suspects.may_go(*key)), "round {round}");
            assert!(suspects.blame(&owed).is_empty());
        }
        assert_eq!(owed.map(|key| suspects.may_go(key)), [true, false, false]);
        assert!(suspects.may_go(key(9)), "it was owed by none");
        assert_eq!(suspects.over(key(9), true), None);
        assert_eq!(suspects.over(key(1), true), Some(key(2)));
        // It ends two workers more; whoever was beside it is a little suspect.
        assert!(suspects.blame(&[key(2), key(9)]).is_empty());
        assert!(suspects.may_go(key(2)) && !suspects.may_go(key(3)) && suspects.may_go(key(1)));
        assert_eq!(suspects.blame(&[key(2)]), [key(2)]);
        assert_eq!(suspects.over(key(2), false), Some(key(3)));
        assert_eq!(suspects.over(key(3), true), None);
        // Of its next attempt no second worker is the price.
        assert!(suspects.may_go(key(2)) && !suspects.contains(key(3)));
        assert_eq!(suspects.blame(&[key(2)]), [key(2)]);
    }

    #[test]
    fn one_that_ends_workers_is_found_however_much_else_they_owe() {
        let mut suspects = Suspects::default();
        let deadly = key(0);
        let others = LIMIT as u32;
        for round in 0..GUILTY {
            let owed = (1..=others).map(|number| key(round * others + number)).chain([deadly]);
            let guilty = suspects.blame(&owed.collect::<Vec<_>>());
            let expected = if round + 1 == GUILTY { vec![deadly] } else { Vec::new() };
            assert_eq!(guilty, expected, "after {} workers", round + 1);
            assert!(suspects.counts.len() <= 2 * LIMIT + 1);
        }
        // It is known when all others are forgotten, too.
        assert!(suspects.blame(&(1..=others).map(key).collect::<Vec<_>>()).is_empty());
        assert!(suspects.contains(deadly));
    }
}
