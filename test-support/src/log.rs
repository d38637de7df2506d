//! What a program logs, and what a test reads there: where it listens that was given port 0.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The address in the line of a log that has these words.
pub fn address_in(log: &str, words: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains(words))?;
    line.split_whitespace().find_map(|field| field.strip_prefix("address="))?.parse().ok()
}

/// Where CNCF distribution's registry listens, as its log says.
pub fn distribution_address_in(log: &str) -> Option<SocketAddr> {
    let (_, behind) = log.split_once("listening on ")?;
    behind.split(['"', ',']).next()?.parse().ok()
}

/// A log in memory.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// That of the whole process, from now on; once in a process.
    pub fn of_process() -> Self {
        let log = Self::default();
        log.subscriber().init();
        log
    }

    /// That of the thread, for as long as the guard is there: of a run time with one thread, it has all.
    pub fn of_thread() -> (Self, impl Drop) {
        let log = Self::default();
        let guard = log.subscriber().set_default();
        (log, guard)
    }

    fn subscriber(&self) -> impl tracing_subscriber::util::SubscriberInitExt + use<> {
        tracing_subscriber::fmt().with_ansi(false).with_writer(self.clone())
    }

    /// All lines that have these words.
    pub fn lines(&self, words: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }

    /// The address in the line that has these words.
    pub fn address(&self, words: &str) -> Option<SocketAddr> {
        address_in(&self.text(), words)
    }

    fn text(&self) -> String {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}
