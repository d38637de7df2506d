//! The disk of a BuildKit client, as a destination: what the client serves for its own OCI outputs takes the image, so
//! it lies there as if buildkitd had sent it.
//!
//! - [`archive`]: a file of the client's (`type=oci,dest=FILE`), to which the tar of an OCI layout is sent.
//! - [`store`]: a directory of the client's (`type=oci,dest=DIR,tar=false`), into which each blob goes as it is made.

mod archive;
mod store;

pub(crate) use archive::{ClientArchive, RootAnnotations};
pub(crate) use store::ClientStore;

use image::destination::StoreError;

use super::CLIENT;
use crate::grpc::Status;

fn refused(status: Status) -> StoreError {
    StoreError::Refused { receiver: CLIENT, reason: status.message }
}
