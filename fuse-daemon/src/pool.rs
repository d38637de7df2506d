//! Threads that work on chunks: what a reader waits for goes before what was read ahead, and may use all threads; the rest
//! leaves half of them, and so half of the processors, to the programs that read.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use crate::front::ChunkKey;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{self, Condvar, Mutex};

/// Work on some chunks.
pub(crate) struct Job {
    /// The chunks.
    pub(crate) chunks: Vec<ChunkKey>,
    /// What is to be done.
    pub(crate) run: Box<dyn FnOnce() + Send>,
}

/// Threads with two queues.
pub(crate) struct Pool {
    shared: Arc<PoolState>,
    threads: Vec<JoinHandle<()>>,
}

struct PoolState {
    queues: Mutex<Queues>,
    filled: Condvar,
}

#[derive(Default)]
struct Queues {
    demanded: VecDeque<Job>,
    ahead: VecDeque<Job>,
    /// Threads that work on what was read ahead, and how many may.
    ahead_running: usize,
    ahead_limit: usize,
    closed: bool,
}

impl Queues {
    /// The next job, and whether it is one ahead of readers.
    fn pop(&mut self) -> Option<(Job, bool)> {
        if let Some(job) = self.demanded.pop_front() {
            return Some((job, false));
        }
        if self.ahead_running >= self.ahead_limit {
            return None;
        }
        let job = self.ahead.pop_front()?;
        self.ahead_running += 1;
        Some((job, true))
    }
}

impl Pool {
    /// Starts `threads` threads, which are called so and numbered.
    pub(crate) fn new(name: &str, threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let queues = Queues { ahead_limit: threads.div_ceil(2), ..Queues::default() };
        let shared = Arc::new(PoolState { queues: Mutex::new(queues), filled: Condvar::new() });
        let mut pool = Self { shared, threads: Vec::new() };
        for index in 0..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = sync::named(format!("{name}-{index}"));
            pool.threads.push(thread.spawn(move || shared.run())?);
        }
        Ok(pool)
    }

    /// Queues a job.
    pub(crate) fn submit(&self, job: Job, demanded: bool) {
        let mut queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = if demanded { &mut queues.demanded } else { &mut queues.ahead };
        queue.push_back(job);
        drop(queues);
        self.shared.filled.notify_one();
    }

    /// A reader waits for the chunk now.
    pub(crate) fn promote(&self, chunk: ChunkKey) {
        let mut queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let position = queues.ahead.iter().position(|job| job.chunks.contains(&chunk));
        if let Some(job) = position.and_then(|position| queues.ahead.remove(position)) {
            queues.demanded.push_back(job);
            drop(queues);
            self.shared.filled.notify_one();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.closed = true;
        let (demanded, ahead) = (std::mem::take(&mut queues.demanded), std::mem::take(&mut queues.ahead));
        drop(queues);
        // Jobs may hold what leads back here: dropped without the lock.
        drop((demanded, ahead));
        self.shared.filled.notify_all();
        let this = thread::current().id();
        // The last owner may be one of the threads, in the job that it just ran.
        self.threads.drain(..).filter(|thread| thread.thread().id() != this).for_each(|thread| {
            let _ = thread.join();
        });
    }
}

impl PoolState {
    fn run(&self) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some((job, ahead)) = queues.pop() {
                drop(queues);
                run(job);
                queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
                queues.ahead_running -= usize::from(ahead);
            } else if queues.closed {
                return;
            } else {
                queues = self.filled.wait(queues).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// Runs a job. A bug in it does not cost the thread; what the job held is dropped, and tells what was lost.
fn run(job: Job) {
    let Job { chunks, run } = job;
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
        let chunks: Vec<u32> = chunks.iter().map(|key| key.chunk.0).collect();
        tracing::error!(?chunks, "work on chunks ended in a bug");
    }
}
