//! Taking a build's result from buildkitd.
//!
//! - [`store`]: as a content store, blob by blob (`tar=false`).
//! - [`tar`]: as a tar stream of an OCI layout (`tar=true`).
//! - [`ingest`]: one blob on its way into an output.
//! - [`kept`]: a layer that is read from buildkitd when it is needed after all.
//! - [`message`]: the messages of containerd's content service.

pub(crate) mod ingest;
pub(crate) mod kept;
pub(crate) mod message;
pub(crate) mod store;
pub(crate) mod tar;

use crate::build::Build;
use crate::build::OutputError;
use crate::grpc::{Code, Status};

/// The status for what went wrong in an output, which fails the build as well.
fn fail(build: &Build, error: &OutputError) -> Status {
    let reason = error.to_string();
    build.fail(&reason);
    // Any code that buildkitd does not take for a reason to try again.
    Status::new(Code::Unknown, reason)
}
