//! Which mirrors are left out for a while, so that a dead one does not cost every read its deadline, and one that lacks
//! a blob does not cost every range of it a request.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::error::{Error, Target};

/// A mirror that failed is asked again after this.
const REST: Duration = Duration::from_secs(30);

/// A mirror that did not have something is asked for it again after this: it may be filled meanwhile.
const LACKING: Duration = Duration::from_secs(60);

/// How many notes are kept before old ones are looked for.
const NOTES_BEFORE_SWEEP: usize = 4096;

/// What is known of mirrors, and until when.
#[derive(Default)]
pub(super) struct MirrorState(Mutex<HashMap<Note, Instant>>);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Note {
    /// The mirror does not work.
    Rests(String),
    /// The mirror has refused this item of this repository.
    Lacks { mirror: String, registry: String, repository: String, item: String },
}

impl Note {
    fn lacks(mirror: &str, target: &Target) -> Self {
        Self::Lacks {
            mirror: mirror.to_owned(),
            registry: target.host.clone(),
            repository: target.repository.clone(),
            item: target.item.clone(),
        }
    }
}

impl MirrorState {
    /// Whether the mirror is to be asked for `target`.
    pub(super) fn is_asked(&self, mirror: &str, target: &Target) -> bool {
        let notes = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        let holds = |note: &Note| notes.get(note).is_some_and(|until| *until > now);
        !holds(&Note::Rests(mirror.to_owned())) && !holds(&Note::lacks(mirror, target))
    }

    /// Notes that the mirror failed to serve `target` with `error`.
    pub(super) fn failed(&self, mirror: &str, target: &Target, error: &Error) {
        let (note, length) = match error {
            _ if error.is_transient() => (Note::Rests(mirror.to_owned()), REST),
            Error::Status { .. } => (Note::lacks(mirror, target), LACKING),
            _ => return,
        };
        let mut notes = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        if notes.len() >= NOTES_BEFORE_SWEEP {
            notes.retain(|_, until| *until > now);
        }
        if notes.len() < NOTES_BEFORE_SWEEP {
            notes.insert(note, now + length);
        }
    }
}
