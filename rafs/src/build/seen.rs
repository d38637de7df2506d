//! Which contents were met before, in order of the input and not of the threads that look at them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;

/// Number of a piece (one chunk of one file) in order of the input.
pub(super) type PieceNumber = u32;

/// The least piece number that was seen of each content.
///
/// Workers look at pieces in any order. A piece whose content was claimed by an *earlier* one need not be compressed: the
/// writer, which takes pieces in order, will have stored that one. If it was claimed by a *later* one, both are
/// compressed and the writer drops the later. So what is stored does not depend on timing.
#[derive(Default)]
pub(super) struct Seen {
    first: Mutex<HashMap<Digest, PieceNumber>>,
}

impl Seen {
    /// Claims content for a piece; gives the earlier piece that has claimed it already, if there is one.
    pub(super) fn claim(&self, digest: Digest, piece: PieceNumber) -> Option<PieceNumber> {
        match self.lock().entry(digest) {
            Entry::Vacant(vacant) => {
                vacant.insert(piece);
                None
            }
            Entry::Occupied(mut occupied) if *occupied.get() > piece => {
                occupied.insert(piece);
                None
            }
            Entry::Occupied(occupied) => Some(*occupied.get()),
        }
    }

    /// The first piece of this content. Final once all pieces before `piece` have been claimed.
    pub(super) fn first(&self, digest: &Digest, piece: PieceNumber) -> PieceNumber {
        self.lock().get(digest).copied().unwrap_or(piece)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, PieceNumber>> {
        // The map is whole after every operation, so a panic elsewhere does not spoil it.
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_piece_keeps_the_claim_in_whatever_order_they_come() {
        let seen = Seen::default();
        let digest = Digest([1; 32]);
        assert_eq!(seen.claim(digest, 5), None);
        assert_eq!(seen.claim(digest, 9), Some(5));
        assert_eq!(seen.claim(digest, 2), None, "an earlier piece must not rely on a later one");
        assert_eq!(seen.claim(digest, 9), Some(2));
        assert_eq!(seen.first(&digest, 9), 2);
    }
}
