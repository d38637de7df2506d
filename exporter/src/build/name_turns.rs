//! Turns at names whose index is read, changed and written again: of two builds that do so at once, one would lose what the other put there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use registry::reference::Reference;
use tokio::sync::OwnedMutexGuard;

/// Who changes the index of which name, of all builds of this process.
#[derive(Debug, Default)]
pub(crate) struct NameTurns {
    known: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl NameTurns {
    /// Waits for the turn at `name`, which lasts until the result is dropped. Whoever has it waits for a registry alone, and each of its
    /// requests has a deadline.
    pub(crate) async fn take(&self, name: &Reference) -> OwnedMutexGuard<()> {
        self.lock_of(name.to_string()).lock_owned().await
    }

    fn lock_of(&self, name: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = known.get(&name).and_then(Weak::upgrade) {
            return lock;
        }
        known.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        known.insert(name, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn one_has_the_turn_at_a_name_and_names_that_nobody_is_at_are_forgotten() {
        let turns = NameTurns::default();
        let [one, other] = ["h.example/a:v1", "h.example/a:v2"].map(|name| Reference::parse(name).unwrap());
        let first = turns.take(&one).now_or_never();
        assert!(first.is_some() && turns.take(&one).now_or_never().is_none());
        drop(first);
        let second = turns.take(&one).now_or_never();
        assert!(second.is_some() && turns.take(&other).now_or_never().is_some());
        drop(second);
        assert!(turns.take(&other).now_or_never().is_some());
        assert_eq!(turns.known.lock().unwrap().len(), 1);
    }
}
