//! What a check finds.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

/// Beyond this many, findings are counted only: a broken image should not flood its reader.
const MAX_FINDINGS: usize = 1000;

/// Something that is wrong.
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
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong, the first of them.
    pub findings: Vec<Finding>,
    /// How many findings are not listed.
    pub omitted: u64,
    /// What could not be looked at, for reasons that say nothing of the image: a registry that does not answer, a file that
    /// may not be read.
    pub unknown: Vec<Finding>,
    /// Inodes looked at.
    pub inodes: u64,
    /// Chunks looked at.
    pub chunks: u64,
    /// Bytes of chunk content verified.
    pub bytes: u64,
}

impl Report {
    /// Whether all was looked at and nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.unknown.is_empty()
    }

    /// Adds what another check found.
    pub fn merge(&mut self, other: Self) {
        for finding in other.findings {
            self.push(finding);
        }
        self.unknown.extend(other.unknown);
        self.omitted += other.omitted;
        self.inodes += other.inodes;
        self.chunks += other.chunks;
        self.bytes += other.bytes;
    }

    pub(super) fn add(&mut self, subject: impl Into<String>, problem: impl Into<String>) {
        self.push(Finding { subject: subject.into(), problem: problem.into() });
    }

    /// Adds an error with its causes.
    pub(super) fn error(&mut self, subject: impl Into<String>, error: &(dyn Error + 'static)) {
        let mut problem = error.to_string();
        let mut known = says_something(error);
        let mut cause = error.source();
        while let Some(error) = cause {
            problem = format!("{problem}: {error}");
            known &= says_something(error);
            cause = error.source();
        }
        if known {
            self.add(subject, problem);
        } else {
            self.unknown.push(Finding { subject: subject.into(), problem });
        }
    }

    fn push(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        } else {
            self.omitted += 1;
        }
    }
}

/// Whether an error tells something of the image: that a part is not there, too short, or broken.
fn says_something(error: &(dyn Error + 'static)) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    kind.is_none_or(|kind| {
        matches!(kind, ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData)
    })
}
