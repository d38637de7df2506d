//! Ends reads whose chunks take too long.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::read::{Pending, ReadError};

/// How often the thread looks up while reads wait: reads that were answered in time are dropped from the queue then.
const SWEEP: Duration = Duration::from_secs(1);

/// A thread that fails reads when their time is over. All have the same time, so they end in the order they came.
pub(super) struct Deadlines {
    limit: Duration,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    reads: VecDeque<(Instant, Weak<Pending>)>,
    running: bool,
}

impl Deadlines {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, shared: Arc::default() }
    }

    /// Fails `read` when its time is over, unless it is answered by then.
    pub(super) fn watch(&self, read: &Arc<Pending>) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.reads.push_back((Instant::now() + self.limit, Arc::downgrade(read)));
        if !queue.running {
            // Made with the first read that waits: images that are read from the cache alone need no thread.
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

impl Shared {
    fn run(&self, limit: Duration) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            let mut expired = Vec::new();
            while let Some((end, read)) = queue.reads.front() {
                match read.upgrade() {
                    Some(read) if *end <= now => expired.push(read),
                    Some(read) if !read.is_answered() => break,
                    _ => {}
                }
                queue.reads.pop_front();
            }
            if !expired.is_empty() {
                // Answered without the lock: an answer is a system call.
                drop(queue);
                expired.into_iter().for_each(|read| {
                    read.fail(ReadError::Deadline(limit));
                });
                queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if queue.reads.is_empty() {
                // The next read that has to wait starts another one.
                queue.running = false;
                return;
            }
            let wait =
                queue.reads.front().map_or(limit, |(end, _)| end.saturating_duration_since(now)).min(SWEEP);
            drop(queue);
            // Not woken by new reads: they end later than those that wait already.
            std::thread::sleep(wait);
            queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}
