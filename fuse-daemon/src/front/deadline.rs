//! Ends waits that take too long.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::read::ReadError;
use super::wait::Waiter;
use crate::sync::{self, Mutex};

/// How often the thread looks up while somebody waits: those that were answered in time are dropped then.
const SWEEP: Duration = Duration::from_secs(1);

/// Its shortest sleep: while there is no worker, times grow as it looks.
const LEAST: Duration = Duration::from_millis(5);

/// A thread that fails those whose time is over.
pub(super) struct Deadlines {
    /// What a wait may take, for messages.
    limit: Duration,
    shared: Arc<Timers>,
}

#[derive(Default)]
struct Timers {
    queue: Mutex<DeadlineQueue>,
}

#[derive(Default)]
struct DeadlineQueue {
    /// By end; the number tells those with the same end apart.
    waiters: BTreeMap<(Instant, u64), Weak<Waiter>>,
    next: u64,
    running: bool,
}

impl Deadlines {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, shared: Arc::default() }
    }

    /// Fails `waiter` when its time is over, unless it is answered by then.
    pub(super) fn watch(&self, waiter: &Arc<Waiter>) {
        if sync::IS_MODEL {
            return;
        }
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.next += 1;
        let key = (waiter.until(), queue.next);
        queue.waiters.insert(key, Arc::downgrade(waiter));
        if !queue.running {
            // Made with the first that waits: images that are read from the cache alone need no thread.
            let (shared, limit) = (Arc::clone(&self.shared), self.limit);
            let thread = std::thread::Builder::new().name("deadlines".to_owned());
            match thread.spawn(move || shared.run(limit)) {
                Ok(_) => queue.running = true,
                Err(error) => {
                    tracing::error!(%error, "no thread for deadlines: reads may wait for the worker's own")
                }
            }
        }
    }
}

impl Timers {
    fn run(&self, limit: Duration) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            let mut expired = Vec::new();
            while let Some(first) = queue.waiters.first_entry() {
                let ((end, number), waiter) = first.remove_entry();
                let Some(waiter) = waiter.upgrade().filter(|waiter| !waiter.is_answered()) else { continue };
                let until = waiter.until();
                if until <= now {
                    expired.push(waiter);
                    continue;
                }
                // Later than it was, if there was no worker.
                queue.waiters.insert((until.max(end), number), Arc::downgrade(&waiter));
                if end > now {
                    break;
                }
            }
            if !expired.is_empty() {
                // Answered without the lock: an answer is a system call.
                drop(queue);
                expired.into_iter().for_each(|waiter| waiter.fail(ReadError::Deadline(limit)));
                queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some(((end, _), _)) = queue.waiters.first_key_value() else {
                // The next that has to wait starts another one.
                queue.running = false;
                return;
            };
            let wait = end.saturating_duration_since(now).clamp(LEAST, SWEEP);
            drop(queue);
            // Not woken by new ones, which end later than those that wait already. What waits a second time for the same
            // read may end up to a sweep later.
            std::thread::sleep(wait);
            queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}
