//! Logs of failed reads, a line a second at most: a program that retries, or the kernel for it, fails thousands of
//! times in the same way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::fs::{FsError, Ino};

const PERIOD: Duration = Duration::from_secs(1);

/// The failed reads of an image.
#[derive(Debug)]
pub(super) struct Failures {
    image: String,
    searches: PathSearches,
    /// When the last line was logged, and how many were left out since.
    logged: Mutex<(Option<Instant>, u64)>,
}

/// Searches for paths of files, one at a time for all mounts. Each is a walk through an image: a line in a second is worth it, but no
/// other read may wait for it, and who has a read fail is a thread that answers others too.
#[derive(Clone, Debug, Default)]
pub(crate) struct PathSearches {
    is_busy: Arc<AtomicBool>,
}

/// A search that is under way, until this is dropped.
struct PathSearch(Arc<AtomicBool>);

impl Failures {
    pub(super) fn new(image: &str, searches: PathSearches) -> Self {
        Self { image: image.to_owned(), searches, logged: Mutex::default() }
    }

    /// Logs a failed read, unless it is to be left out: a moment later, with the file's path.
    pub(super) fn log(
        &self,
        search: impl FnOnce() -> Option<Box<[u8]>> + Send + 'static,
        ino: Ino,
        offset: u64,
        error: &FsError,
    ) {
        let Some(left_out) = self.next(Instant::now()) else { return };
        let (image, error) = (self.image.clone(), error.to_string());
        let tell = move |path: Option<Box<[u8]>>| {
            let path = path.map_or_else(
                || format!("of inode {}", ino.0),
                |path| String::from_utf8_lossy(&path).into_owned(),
            );
            tracing::error!(image, path, offset, left_out, %error, "read fails");
        };
        self.searches.find(search, tell);
    }

    /// How many were left out before this one, unless it is to be left out as well.
    fn next(&self, now: Instant) -> Option<u64> {
        let mut state = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, left_out) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            *left_out += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(left_out))
    }
}

impl PathSearches {
    /// Calls `tell` with what `search` finds, on another thread; or with nothing, before this returns, where another search is under
    /// way or there is no thread.
    fn find(
        &self,
        search: impl FnOnce() -> Option<Box<[u8]>> + Send + 'static,
        tell: impl Fn(Option<Box<[u8]>>) + Send + Sync + 'static,
    ) {
        let tell = Arc::new(tell);
        let searching = self.begin().and_then(|under_way| {
            let tell = Arc::clone(&tell);
            let run = move || {
                let found = search();
                drop(under_way);
                tell(found);
            };
            std::thread::Builder::new().name("paths".to_owned()).spawn(run).ok()
        });
        if searching.is_none() {
            tell(None);
        }
    }

    fn begin(&self) -> Option<PathSearch> {
        let was_busy = self.is_busy.swap(true, Ordering::AcqRel);
        (!was_busy).then(|| PathSearch(Arc::clone(&self.is_busy)))
    }
}

impl Drop for PathSearch {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn one_failure_a_second_is_logged_and_the_others_are_counted() {
        let (failures, start) = (Failures::new("i", PathSearches::default()), Instant::now());
        let after = |milliseconds| failures.next(start + Duration::from_millis(milliseconds));
        assert_eq!([0, 1, 999, 1000, 1001, 2001].map(after), [Some(0), None, None, Some(2), None, Some(1)]);
    }

    /// A read of a mount fails.
    fn fail(
        searches: &PathSearches,
        told: &mpsc::Sender<Option<Box<[u8]>>>,
        search: impl FnOnce() -> Option<Box<[u8]>> + Send + 'static,
    ) {
        let told = told.clone();
        searches.clone().find(search, move |path| told.send(path).unwrap());
    }

    #[test]
    fn while_a_path_is_looked_for_other_failures_are_told_without_theirs() {
        let searches = PathSearches::default();
        let (told, lines) = mpsc::channel();
        let (go_on, gate) = mpsc::channel();
        fail(&searches, &told, move || {
            gate.recv().unwrap();
            Some(b"/first"[..].into())
        });
        assert!(lines.try_recv().is_err(), "who has failed does not wait, the line does");
        fail(&searches, &told, || panic!("one search is under way"));
        assert_eq!(lines.try_recv().unwrap(), None);
        go_on.send(()).unwrap();
        assert_eq!(lines.recv_timeout(SOON).unwrap().as_deref(), Some(&b"/first"[..]));
        fail(&searches, &told, || Some(b"/third"[..].into()));
        assert_eq!(lines.recv_timeout(SOON).unwrap().as_deref(), Some(&b"/third"[..]));
    }
}
