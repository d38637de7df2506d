//! What a check finds.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

use crate::blob::meta::MetaError;
use crate::blob::source::BlobError;
use crate::bootstrap::ReadError;
use crate::limits::Limits;

/// Something that is wrong, or that could not be looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What it is about: a path, a blob, a chunk.
    pub subject: String,
    /// What is wrong with it, and what was expected.
    pub problem: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.problem)
    }
}

/// What a check found, and how much it looked at.
#[derive(Clone, Debug)]
pub struct Report {
    /// What is wrong, the first of them.
    pub findings: Vec<Finding>,
    /// How many findings are not listed.
    pub omitted: u64,
    /// What could not be looked at, for reasons that say nothing of the image: a registry that does not answer, a file that
    /// may not be read, a format that is not supported. The first of them.
    pub unknown: Vec<Finding>,
    /// Inodes looked at.
    pub inodes: u64,
    /// Chunks whose content was verified.
    pub chunks: u64,
    /// Bytes of chunk content verified.
    pub bytes: u64,
    limit: usize,
}

impl Default for Report {
    fn default() -> Self {
        Self::new(Limits::DEFAULT)
    }
}

/// What an error says.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Says {
    /// Something is wrong with the image.
    Damaged,
    /// Nothing of the image.
    Unknown,
}

impl Report {
    /// A report that lists as many findings as the limits say.
    pub fn new(limits: Limits) -> Self {
        Self {
            findings: Vec::new(),
            omitted: 0,
            unknown: Vec::new(),
            inodes: 0,
            chunks: 0,
            bytes: 0,
            limit: limits.findings,
        }
    }

    /// Whether all was looked at and nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.unknown.is_empty()
    }

    /// Adds what another check found.
    pub fn merge(&mut self, other: Self) {
        for finding in other.findings {
            self.push(finding);
        }
        for Finding { subject, problem } in other.unknown {
            self.add_unknown(subject, problem);
        }
        self.omitted += other.omitted;
        self.inodes += other.inodes;
        self.chunks += other.chunks;
        self.bytes += other.bytes;
    }

    /// Adds something that is wrong.
    pub fn add(&mut self, subject: impl Into<String>, problem: impl Into<String>) {
        self.push(Finding { subject: subject.into(), problem: problem.into() });
    }

    /// Adds an error with its causes: as something that could not be looked at where a source could not be read or something
    /// is not supported, as something that is wrong otherwise.
    pub fn error(&mut self, subject: impl Into<String>, error: &(dyn Error + 'static)) {
        let unknown = chain(error).any(|error| of_image(error) == Says::Unknown);
        self.say(subject, error, if unknown { Says::Unknown } else { Says::Damaged });
    }

    /// Adds an error of reading a source.
    pub(super) fn source_error(&mut self, subject: impl Into<String>, error: &io::Error) {
        self.say(subject, error, of_source(error));
    }

    /// Adds something that could not be looked at.
    pub fn add_unknown(&mut self, subject: impl Into<String>, problem: impl Into<String>) {
        if self.unknown.len() < self.limit {
            self.unknown.push(Finding { subject: subject.into(), problem: problem.into() });
        }
    }

    /// Puts findings in order of what they are about.
    pub(super) fn sort(&mut self) {
        self.findings.sort_unstable_by(|a, b| a.subject.cmp(&b.subject));
    }

    fn say(&mut self, subject: impl Into<String>, error: &(dyn Error + 'static), says: Says) {
        let problem = chain(error).map(ToString::to_string).collect::<Vec<_>>().join(": ");
        match says {
            Says::Damaged => self.add(subject, problem),
            Says::Unknown => self.add_unknown(subject, problem),
        }
    }

    fn push(&mut self, finding: Finding) {
        if self.findings.len() < self.limit {
            self.findings.push(finding);
        } else {
            self.omitted += 1;
        }
    }
}

/// An error and its causes.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// What an error says, without its causes. The kind of an [`io::Error`] counts only where it is that of a source: a
/// decompressor has such errors too, and means the image.
fn of_image(error: &(dyn Error + 'static)) -> Says {
    if let Some(ReadError::Of { error, .. }) = error.downcast_ref() {
        return of_image(&**error);
    }
    let unknown = match error.downcast_ref::<BlobError>() {
        Some(BlobError::Io { source, .. }) => return of_source(source),
        Some(BlobError::Bootstrap(error)) => return of_image(error),
        Some(BlobError::TooMuchChunkInfo { .. }) => true,
        _ => {
            matches!(
                error.downcast_ref(),
                Some(ReadError::Io { .. } | ReadError::Damaged { .. } | ReadError::Unsupported(_))
            ) || matches!(error.downcast_ref(), Some(MetaError::Unsupported { .. }))
        }
    };
    if unknown { Says::Unknown } else { Says::Damaged }
}

/// Whether a source says something of the image: that a part is not there, too short, or broken.
fn of_source(error: &io::Error) -> Says {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData => Says::Damaged,
        _ => Says::Unknown,
    }
}
