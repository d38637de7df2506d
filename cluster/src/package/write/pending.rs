//! Which images are not complete yet, and what could not be fetched of them.

use super::contents::{Blob, Gathered};
use crate::save::{Done, Failed, NotSaved, Report, SaveError};

/// An image that is reported when it is complete.
struct Unfinished {
    report: Report,
    /// How many of its blobs are not there yet.
    left: usize,
    /// Whether it was reported before.
    said: bool,
}

/// All images of a package on its way.
pub(super) struct Pending<'a> {
    images: Vec<Unfinished>,
    failed: Vec<Failed>,
    done: &'a Done<'a>,
}

impl<'a> Pending<'a> {
    pub(super) fn new(gathered: &Gathered, done: &'a Done<'a>) -> Self {
        let images = gathered.images.iter().map(|image| {
            let report = Report { image: image.reference.clone(), bytes: image.bytes, fetched: 0 };
            Unfinished { report, left: image.blobs, said: image.said }
        });
        Self { images: images.collect(), failed: Vec::new(), done }
    }

    /// Notes what became of a blob: it was fetched for the first image that has it.
    pub(super) fn blob(&mut self, blob: &Blob, brought: Result<u64, SaveError>) {
        let reason = brought.as_ref().err().map(ToString::to_string);
        let mut brought = Some(brought);
        for &number in &blob.images {
            let Some(Unfinished { report, left, said }) = self.images.get_mut(number) else { continue };
            match (brought.take(), &reason) {
                (Some(Err(error)), _) => self.failed.push(Failed { image: report.image.clone(), error }),
                (None, Some(reason)) => {
                    let error =
                        SaveError::Blob { digest: blob.descriptor.digest().clone(), reason: reason.clone() };
                    self.failed.push(Failed { image: report.image.clone(), error });
                }
                (fetched, _) => {
                    report.fetched += fetched.and_then(Result::ok).unwrap_or(0);
                    *left -= 1;
                    if *left == 0 && !*said {
                        (self.done)(report);
                    }
                }
            }
        }
    }

    /// Which images are not complete.
    pub(super) fn ended(self) -> Result<(), NotSaved> {
        if self.failed.is_empty() { Ok(()) } else { Err(NotSaved::Images(self.failed)) }
    }
}
