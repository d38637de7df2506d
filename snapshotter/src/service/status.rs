//! Errors as gRPC codes. containerd's clients tell its errors apart by these.

use tonic::{Code, Status};

use crate::daemon::describe;
use crate::error::{Error, MountFailure};

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = code(&error);
        let message = describe(&error);
        match code {
            // Part of what containerd does every day.
            Code::NotFound | Code::AlreadyExists => tracing::debug!(message, "request refused"),
            _ => tracing::warn!(message, ?code, "request failed"),
        }
        Self::new(code, message)
    }
}

fn code(error: &Error) -> Code {
    match error {
        Error::NotFound { .. } | Error::ParentNotFound { .. } => Code::NotFound,
        Error::AlreadyExists { .. } | Error::LayerInPlace { .. } => Code::AlreadyExists,
        Error::HasChildren { .. }
        | Error::WrongKind { .. }
        | Error::NoBootstrap { .. }
        | Error::BootstrapMissing { .. }
        | Error::BlobRefused { .. }
        | Error::IdMappingUnsupported { .. }
        | Error::NoImageReference { .. } => Code::FailedPrecondition,
        Error::ParentNotCommitted { .. }
        | Error::ParentChanged { .. }
        | Error::ImmutableField { .. }
        | Error::Invalid { .. }
        | Error::Filter(_)
        | Error::Set(_)
        | Error::NodeImage(_) => Code::InvalidArgument,
        Error::Mount { failure: MountFailure::Deadline(_), .. } => Code::DeadlineExceeded,
        Error::Mount { failure: MountFailure::Unavailable(_), .. } | Error::Daemon { .. } => {
            Code::Unavailable
        }
        Error::Mount { failure: MountFailure::Image(_), .. }
        | Error::State { .. }
        | Error::Record { .. }
        | Error::Io { .. }
        | Error::Bind(_)
        | Error::Metrics(_)
        | Error::Serve { .. }
        | Error::Internal(_) => Code::Unknown,
    }
}
