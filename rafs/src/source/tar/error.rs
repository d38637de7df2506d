//! What can be wrong with a tar stream.

use std::fmt;
use std::io;

/// A broken or unreadable tar stream: what, at which byte, in which entry.
#[derive(Debug)]
pub struct TarError {
    /// Where in the (uncompressed) stream the header, record or content is that is wrong.
    pub offset: u64,
    /// The entry that is being read, if its name is known yet.
    pub entry: Option<Box<[u8]>>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tar stream, byte {}", self.offset)?;
        if let Some(entry) = &self.entry {
            write!(f, ", entry {:?}", String::from_utf8_lossy(entry))?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for TarError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.problem {
            Problem::Io(error) => error.get_ref().map(|inner| inner as _),
            _ => None,
        }
    }
}

/// What is wrong with a tar stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The stream below failed: a read error, or broken compression.
    #[error("{0}")]
    Io(io::Error),
}
