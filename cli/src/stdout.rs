//! Standard output and standard error as commands use them: that nobody reads them is no reason to panic.

use std::io::{self, Write};

use serde::Serialize;

/// Nobody reads standard output any more: a command has nothing left to do.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
struct Closed;

/// Standard output. Once nobody reads it, writing fails with an error that [`is_closed`] knows.
pub(crate) struct Stdout(io::StdoutLock<'static>);

impl Stdout {
    pub(crate) fn lock() -> Self {
        Self(io::stdout().lock())
    }
}

fn named(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, Closed),
        _ => error,
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

/// Whether a command failed because nobody reads its standard output.
pub(crate) fn is_closed(error: &anyhow::Error) -> bool {
    let of_stdout = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<Closed>());
    error.chain().any(|cause| cause.downcast_ref().is_some_and(of_stdout))
}

/// Writes text to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = Stdout::lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a value to standard output, as JSON for programs.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Writes a line to standard error, to whoever reads it.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
