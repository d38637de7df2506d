//! A log that cannot hold up or end the process that writes it.
//!
//! Who reads standard error may go away (a pipe, a terminal, the journal), or stay and not read. A process that others
//! wait for, as containers do for the daemon, must not notice: lines go into a bounded queue, and one thread writes
//! them. What finds no room is counted, and the count is logged once somebody reads again.

mod queue;
mod writer;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use queue::Queue;

/// Bytes of lines that wait for a reader: some minutes of a busy log, and little compared with what a process takes anyway.
const QUEUE_BYTES: usize = 1 << 20;

/// How long the end of a process waits for a reader that may not read at all.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where lines are handed over; clones are the same log. Each `write` is one line, takes it whole, and never waits.
#[derive(Clone, Debug)]
pub struct Log {
    queue: Arc<Queue>,
}

/// Writes what is left when dropped, unless nobody takes it within a second.
#[derive(Debug)]
#[must_use = "dropped, it waits for the lines written so far"]
pub struct Flush(Arc<Queue>);

impl Log {
    /// A log on standard error, until the process ends.
    ///
    /// # Errors
    ///
    /// The operating system has no descriptor or thread left.
    pub fn on_standard_error() -> io::Result<(Self, Flush)> {
        // A descriptor of its own: the lock of `std::io::stderr` may be held by somebody who cannot write.
        let output = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Self::on(output)
    }

    fn on(output: File) -> io::Result<(Self, Flush)> {
        let queue = Arc::new(Queue::new(QUEUE_BYTES));
        let lines = Arc::clone(&queue);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || writer::run(&lines, &output))?;
        Ok((Self { queue: Arc::clone(&queue) }, Flush(queue)))
    }

    /// Lines that nobody has read or will read: the queue was full, or the reader is gone.
    pub fn lost(&self) -> u64 {
        self.queue.lost()
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.0.wait_until_written(LAST_LINES);
    }
}

/// Has panics of all threads logged. The standard hook writes to standard error itself, and waits for its reader.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let message =
            text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            tracing::error!(thread, place, %backtrace, "bug: {message}");
        } else {
            tracing::error!(thread, place, "bug: {message}");
        }
    }));
}

#[cfg(test)]
mod tests;
