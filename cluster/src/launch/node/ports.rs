//! Ports for what a node serves: below those that systems give to connections, some for each service.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

use crate::launch::error::LaunchError;

/// For the answers to names of container images.
pub(super) const IMAGES: Range<u16> = 5100..5200;
/// For a package.
pub(super) const PACKAGE: Range<u16> = 5200..5300;
/// For the image's own registry.
pub(super) const OWN_REGISTRY: Range<u16> = 5300..5400;

/// One of `ports` that nobody listens on at `address`.
pub(super) fn free(address: Ipv4Addr, ports: Range<u16>) -> Result<u16, LaunchError> {
    let is_free = |port: &u16| TcpListener::bind((address, *port)).is_ok();
    let (first, end) = (ports.start, ports.end);
    ports.into_iter().find(is_free).ok_or_else(|| {
        LaunchError::wrong(address.to_string(), format!("no port from {first} to {} is free", end - 1))
    })
}
