//! Progress of our part of a build, or of a conversion, kept until whoever shows it fetches it.
//!
//! Work reports to a [`Task`]; whoever shows it asks for all [`Update`]s since the last time, so that a slow reader costs
//! no memory and a fast worker no time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use registry::digest::Digest;
use tokio::sync::watch;

/// What belongs to one build.
#[derive(Debug)]
pub struct Progress {
    tasks: Mutex<Tasks>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Tasks {
    version: u64,
    tasks: BTreeMap<usize, (u64, Update)>,
}

/// The state of one task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Update {
    /// Which task of all: they count from 0.
    pub task: usize,
    /// The output that it is a part of.
    pub output: usize,
    /// Whether it is a step of its own: BuildKit's export step is over by then.
    pub step: bool,
    /// What is done, to be shown.
    pub name: String,
    /// Bytes done.
    pub current: u64,
    /// Bytes in all; 0 where that is unknown or no matter of bytes.
    pub total: u64,
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub completed: Option<SystemTime>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Progress {
    /// Nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { tasks: Mutex::default(), changed: watch::Sender::new(0) })
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a part of the export step of `output`.
    pub fn task(self: &Arc<Self>, output: usize, name: impl Into<String>, total: u64) -> Task {
        self.begin(output, false, name.into(), total)
    }

    /// Begins a step of its own.
    pub fn step(self: &Arc<Self>, output: usize, name: impl Into<String>) -> Task {
        self.begin(output, true, name.into(), 0)
    }

    fn begin(self: &Arc<Self>, output: usize, step: bool, name: String, total: u64) -> Task {
        let started = SystemTime::now();
        let mut tasks = self.lock();
        let id = tasks.tasks.len();
        let update =
            Update { task: id, output, step, name, current: 0, total, started, completed: None, error: None };
        tasks.version += 1;
        let version = tasks.version;
        tasks.tasks.insert(id, (version, update));
        drop(tasks);
        self.changed.send_replace(version);
        Task { progress: Arc::clone(self), id }
    }

    /// `change` gives what became of the task, or `None` if that is nothing new.
    fn change(&self, id: usize, change: impl FnOnce(&Update) -> Option<Update>) {
        let mut tasks = self.lock();
        let Some(new) = tasks.tasks.get(&id).and_then(|(_, update)| change(update)) else { return };
        tasks.version += 1;
        let version = tasks.version;
        tasks.tasks.insert(id, (version, new));
        drop(tasks);
        self.changed.send_replace(version);
    }

    /// Tells of changes: its value is the version to give to [`Progress::since`].
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// All that changed after `version`, and the version that this is.
    pub fn since(&self, version: u64) -> (Vec<Update>, u64) {
        let tasks = self.lock();
        let changed = tasks.tasks.values().filter(|(changed, _)| *changed > version);
        (changed.map(|(_, update)| update.clone()).collect(), tasks.version)
    }
}

/// A digest as short as people compare them, with its algorithm.
pub fn short(digest: &Digest) -> String {
    digest.as_ref().chars().take("sha256:".len() + 12).collect()
}

/// Why work that was dropped ended, in the words by which BuildKit's clients tell cancelled steps from failed ones.
const CANCELLED: &str = "context canceled";

/// A piece of work that reports. Dropped without [`Task::finish`] or [`Task::fail`] it was cancelled.
#[derive(Debug)]
pub struct Task {
    progress: Arc<Progress>,
    id: usize,
}

impl Task {
    /// So many more bytes are done.
    pub fn advance(&self, bytes: u64) {
        self.progress.change(self.id, |old| Some(Update { current: old.current + bytes, ..old.clone() }));
    }

    /// All is done.
    pub fn finish(self) {
        let now = Some(SystemTime::now());
        let current = |old: &Update| if old.total > 0 { old.total } else { old.current };
        self.progress
            .change(self.id, |old| Some(Update { current: current(old), completed: now, ..old.clone() }));
    }

    /// It failed for this reason.
    pub fn fail(self, error: &str) {
        let now = Some(SystemTime::now());
        let error = Some(error.to_owned());
        self.progress.change(self.id, |old| Some(Update { error, completed: now, ..old.clone() }));
    }
}

impl Drop for Task {
    /// A part that stayed open would keep a client from showing how its step ended: buildctl leaves out the error then.
    fn drop(&mut self) {
        let now = Some(SystemTime::now());
        let error = Some(CANCELLED.to_owned());
        self.progress.change(self.id, |old| {
            old.completed.is_none().then(|| Update { error, completed: now, ..old.clone() })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_each_change_once_and_only_the_last_of_many() {
        let progress = Progress::new();
        let task = progress.task(0, "layer", 100);
        let (first, version) = progress.since(0);
        assert_eq!(first.len(), 1);
        for _ in 0..10 {
            task.advance(10);
        }
        let (second, version) = progress.since(version);
        assert_eq!(second.iter().map(|update| update.current).collect::<Vec<_>>(), [100]);
        assert_eq!(progress.since(version).0, []);
        task.finish();
        assert!(progress.since(version).0[0].completed.is_some());
    }

    #[test]
    fn work_that_is_dropped_was_cancelled_and_work_that_ended_stays_as_it_ended() {
        let progress = Progress::new();
        drop(progress.task(0, "dropped", 0));
        progress.task(0, "done", 0).finish();
        progress.task(0, "failed", 0).fail("no");
        let ends = progress.since(0).0.into_iter().map(|update| (update.completed.is_some(), update.error));
        let expected = [Some(CANCELLED), None, Some("no")];
        assert_eq!(ends.collect::<Vec<_>>(), expected.map(|error| (true, error.map(str::to_owned))));
    }

    #[test]
    fn a_change_wakes_a_reader() {
        let progress = Progress::new();
        let watch = progress.watch();
        let task = progress.step(1, "push");
        assert!(watch.has_changed().unwrap());
        task.fail("no");
        let (updates, _) = progress.since(0);
        assert_eq!(updates[0].error.as_deref(), Some("no"));
        assert!(updates[0].step);
    }
}
