//! Logs of failed reads, a line a second at most: a program that retries, or the kernel for it, fails thousands of
//! times in the same way.

use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::fs::{FileSystem, FsError, Ino};

const PERIOD: Duration = Duration::from_secs(1);

/// The failed reads of an image.
#[derive(Debug)]
pub(super) struct Failures {
    image: String,
    /// When the last line was logged, and how many were left out since.
    logged: Mutex<(Option<Instant>, u64)>,
}

impl Failures {
    pub(super) fn new(image: &str) -> Self {
        Self { image: image.to_owned(), logged: Mutex::default() }
    }

    pub(super) fn log(&self, fs: &Weak<FileSystem>, ino: Ino, offset: u64, error: &FsError) {
        if let Some(left_out) = self.next(Instant::now()) {
            // A walk through the image, which a line in a second is worth.
            let path = fs.upgrade().and_then(|fs| fs.path(ino).ok()?);
            let path = path.map_or_else(
                || format!("of inode {}", ino.0),
                |path| String::from_utf8_lossy(&path).into_owned(),
            );
            tracing::error!(image = self.image, path, offset, left_out, %error, "read fails");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_a_second_is_logged_and_the_others_are_counted() {
        let (failures, start) = (Failures::new("i"), Instant::now());
        let after = |milliseconds| failures.next(start + Duration::from_millis(milliseconds));
        assert_eq!([0, 1, 999, 1000, 1001, 2001].map(after), [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
