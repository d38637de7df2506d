//! What the daemon logs. All tests of the process share it, so each looks for what only it can cause.

use std::io;
use std::sync::{Mutex, OnceLock};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static INSTALLED: OnceLock<()> = OnceLock::new();

/// The log from now on.
pub(crate) struct Log {
    start: usize,
}

/// Starts to log, if that was not done, and remembers where.
pub(crate) fn lines() -> Log {
    INSTALLED.get_or_init(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Writer).init());
    Log { start: LINES.lock().unwrap().len() }
}

impl Log {
    /// How many lines `matches` likes.
    pub(crate) fn count(&self, matches: impl Fn(&str) -> bool) -> usize {
        LINES.lock().unwrap()[self.start..].iter().filter(|line| matches(line)).count()
    }

    /// The first line that `matches` likes.
    pub(crate) fn find(&self, matches: impl Fn(&str) -> bool) -> String {
        let lines = LINES.lock().unwrap()[self.start..].to_vec();
        lines
            .iter()
            .find(|line| matches(line))
            .unwrap_or_else(|| panic!("no such line in {lines:#?}"))
            .clone()
    }
}

/// Takes one line with each call, as the subscriber gives them.
struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap().push(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
