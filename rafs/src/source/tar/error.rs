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
            write!(f, ", entry {}", Quoted(entry))?;
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
    /// The stream ends too early.
    #[error("the stream ends {missing} bytes early, within {within}")]
    Truncated {
        /// How many bytes more were announced.
        missing: u64,
        /// What they would have been.
        within: &'static str,
    },
    /// A header's checksum is that of neither unsigned nor signed bytes, so this is no header.
    #[error(
        "header with checksum {stored:o} (octal), expected {computed:o}: the archive is corrupt or no tar archive"
    )]
    Checksum {
        /// The sum in the header.
        stored: i64,
        /// The sum of the header's bytes.
        computed: u32,
    },
    /// A header's number is neither octal nor base-256, or out of range.
    #[error("header field {field} is {}, expected {expected}", Quoted(.value))]
    Number {
        /// The field's name in the POSIX description of the format.
        field: &'static str,
        /// Its bytes.
        value: Box<[u8]>,
        /// What it should be.
        expected: &'static str,
    },
    /// One block of zeros that is followed by another entry; the end is marked by two.
    #[error("a single block of zeros is followed by data, expected two blocks at the end of the archive")]
    LoneZeroBlock,
    /// An entry without a name.
    #[error("entry without a name")]
    NoName,
    /// A link without a target.
    #[error("link without a target")]
    NoTarget,
    /// Something that is kept in memory is too large.
    #[error("{what} has {size} bytes, the limit is {limit}")]
    TooLong {
        /// What is too large.
        what: &'static str,
        /// Its size as announced, in bytes.
        size: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// A PAX extended header that is not a sequence of records.
    #[error("broken PAX record: {0}")]
    PaxRecord(&'static str),
    /// A PAX record whose value cannot be.
    #[error("PAX record {} is {}, expected {expected}", Quoted(.key), Quoted(.value))]
    PaxValue {
        /// The record's keyword.
        key: Box<[u8]>,
        /// The start of its value.
        value: Box<[u8]>,
        /// What it should be.
        expected: &'static str,
    },
    /// A sparse file's map contradicts itself, the file's size, or the stored data.
    #[error("broken sparse file: {0}")]
    Sparse(&'static str),
    /// The archive uses something that cannot be read without loss.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The archive ends where an entry must follow.
    #[error("the archive ends after an extension header, expected the entry that it extends")]
    NoEntryAfterExtension,
}

/// Shows foreign bytes in a message: quoted, escaped, and cut where they are long.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Longer than any name component, short enough for a log line.
        const SHOWN_BYTES: usize = 512;
        let shown = &self.0[..self.0.len().min(SHOWN_BYTES)];
        write!(f, "{:?}", String::from_utf8_lossy(shown))?;
        if shown.len() < self.0.len() {
            write!(f, "… ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}
