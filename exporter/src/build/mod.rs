//! What a Solve of ours consists of, found by its ref.
//!
//! - [`documents`]: the JSON documents of an output.
//! - [`images`]: which container images the result asks for.
//! - [`ingest`]: one blob on its way into an output.
//! - [`kept`]: a layer that is read from buildkitd when it is needed after all.
//! - [`keys`]: what a user writes behind `--output type=nydus-cluster,…`.
//! - [`name_turns`]: one build at a time changes the index of a name.
//! - [`output`]: what has come for one output, and what is made of it.
//! - [`prepared`]: what its options need before its first layer.
//! - [`target`]: where it goes.
//! - [`together`]: the container images of all platforms.

pub(crate) mod documents;
pub(crate) mod images;
pub(crate) mod ingest;
pub(crate) mod kept;
pub(crate) mod keys;
pub(crate) mod name_turns;
mod output;
mod prepared;
pub(crate) mod target;
pub(crate) mod together;

pub(crate) use output::{BlobLock, Claim, Output, OutputError, Way};
pub(crate) use prepared::Preparation;
pub(crate) use together::TOGETHER;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::metrics::Tally;
use image::progress::Progress;

/// Which outputs of ours the answer to a build is about, by their indexes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Reported {
    /// Whose digest it says.
    pub(crate) digest: Option<usize>,
    /// Whose descriptor and names it says.
    pub(crate) descriptor: Option<usize>,
}

/// A Solve with outputs of ours, from its request to its response.
#[derive(Debug)]
pub(crate) struct Build {
    /// The build's name, by which Status asks.
    pub(crate) reference: String,
    /// The session by which buildkitd reaches us: the build's own, beside its client's.
    pub(crate) session: String,
    /// Which of our outputs the answer is about.
    pub(crate) reported: Reported,
    /// The outputs that are ours.
    pub(crate) outputs: Vec<Arc<Output>>,
    /// What to show of them.
    pub(crate) progress: Arc<Progress>,
    /// Set when the build is over, for whatever reason: all that works for it stops.
    pub(crate) over: CancellationToken,
    /// When its request came.
    pub(crate) started: Instant,
    failure: Mutex<Option<String>>,
}

impl Build {
    /// A build that has just begun.
    pub(crate) fn new(
        reference: String,
        session: String,
        reported: Reported,
        outputs: Vec<Arc<Output>>,
        progress: Arc<Progress>,
    ) -> Self {
        let (over, started) = (CancellationToken::new(), Instant::now());
        Self { reference, session, reported, outputs, progress, over, started, failure: Mutex::default() }
    }

    /// The output that takes blobs by the session's content store.
    pub(crate) fn store_output(&self) -> Option<&Arc<Output>> {
        self.outputs.iter().find(|output| output.takes_blobs())
    }

    /// The output that takes a tar stream as exporter `index`.
    pub(crate) fn tar_output(&self, index: usize) -> Option<&Arc<Output>> {
        self.outputs.iter().find(|output| !output.takes_blobs() && output.index() == index)
    }

    /// What came for all its outputs so far.
    pub(crate) fn tally(&self) -> Tally {
        self.outputs.iter().map(|output| output.tally()).fold(Tally::default(), Tally::plus)
    }

    /// Notes why the build fails; the first reason counts, the others follow from it.
    pub(crate) fn fail(&self, reason: &str) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| reason.to_owned());
    }

    /// Why our part failed, if it did.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Two builds of one name: Status could not tell them apart.
#[derive(Debug, thiserror::Error)]
#[error("build {reference:?} is under way already: expected another reference for each build")]
pub(crate) struct ReferenceTaken {
    reference: String,
}

/// All builds under way.
#[derive(Debug, Default)]
pub(crate) struct Builds {
    live: Mutex<Vec<Arc<Build>>>,
}

impl Builds {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Build>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a build until the result is dropped.
    pub(crate) fn register(&self, build: Build) -> Result<Registered<'_>, ReferenceTaken> {
        let mut live = self.lock();
        if live.iter().any(|other| other.reference == build.reference) {
            return Err(ReferenceTaken { reference: build.reference });
        }
        let build = Arc::new(build);
        live.push(Arc::clone(&build));
        Ok(Registered { builds: self, build })
    }

    /// Whether there is but one build.
    pub(crate) fn is_alone(&self) -> bool {
        self.lock().len() == 1
    }

    /// The build of this ref.
    pub(crate) fn by_ref(&self, reference: &str) -> Option<Arc<Build>> {
        self.lock().iter().find(|build| build.reference == reference).cloned()
    }
}

/// A build's entry; dropping it ends all that works for the build.
#[derive(Debug)]
pub(crate) struct Registered<'a> {
    builds: &'a Builds,
    pub(crate) build: Arc<Build>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.builds.lock().retain(|build| !Arc::ptr_eq(build, &self.build));
        self.build.over.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(reference: &str, session: &str) -> Build {
        Build::new(reference.to_owned(), session.to_owned(), Reported::default(), Vec::new(), Progress::new())
    }

    #[test]
    fn a_build_is_found_until_it_is_over() {
        let builds = Builds::default();
        let registered = builds.register(build("r", "s")).unwrap();
        let over = registered.build.over.clone();
        assert!(builds.by_ref("r").is_some());
        drop(registered);
        assert!(builds.by_ref("r").is_none() && over.is_cancelled());
    }

    #[test]
    fn two_builds_of_one_name_are_refused() {
        let builds = Builds::default();
        let _first = builds.register(build("a", "s")).unwrap();
        assert!(builds.register(build("a", "t")).is_err());
        assert!(builds.register(build("b", "t")).is_ok());
    }

    #[test]
    fn the_first_failure_is_the_reason() {
        let build = build("r", "s");
        build.fail("disk full");
        build.fail("cancelled");
        assert_eq!(build.failure().as_deref(), Some("disk full"));
    }
}
