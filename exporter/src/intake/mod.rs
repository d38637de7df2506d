//! Taking a build's result from buildkitd.
//!
//! - [`store`]: as a content store, blob by blob (`tar=false`).
//! - [`tar`]: as a tar stream of an OCI layout (`tar=true`).

pub(crate) mod store;
pub(crate) mod tar;

use std::sync::Arc;

use crate::build::{Build, OutputError};
use crate::follow::LocalStore;
use crate::grpc::{Code, Status};

/// What takes the result of a build.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) build: Arc<Build>,
    /// buildkitd's content store, if it can be read here.
    pub(crate) local: Option<Arc<LocalStore>>,
}

/// The status for what went wrong in an output, which fails the build as well.
fn fail(build: &Build, error: &OutputError) -> Status {
    let reason = error.to_string();
    build.fail(&reason);
    // Any code that buildkitd does not take for a reason to try again.
    Status::new(Code::Unknown, reason)
}
